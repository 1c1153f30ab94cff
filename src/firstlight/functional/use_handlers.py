"""How the operations of networks treat their parameters: what stands behind `ParameterUses`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.functional import norm_kernels as kernels
from firstlight.functional.example_axes import by_example, layouts_of
from firstlight.functional.norm_kernels import precise
from firstlight.functional.parameter_joins import Join, Operand
from firstlight.functional.parameter_uses import Handler


def _linear(join: Join) -> Tensor | None:
    arguments = _bind(join, ("input", "weight", "bias"))
    return _linear_like(join, arguments["input"], arguments["weight"], arguments.get("bias"))


def _linear_like(
    join: Join, a: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool = False
) -> Tensor | None:
    layouts = layouts_of(a.shape, join.uses.count)
    if join.is_learned(a) or not layouts or a.ndim < 2:
        return None
    out: Tensor = join.call()
    split = partial(_positions, layout=join.uses.choose(layouts), count=join.uses.count)
    a = a.detach()
    operands = []
    if join.is_learned(weight):

        def gradients(g: Tensor, rows: slice) -> Tensor:
            made = kernels.linear_gradients(split(a)[rows], split(g)[rows])
            return made.transpose(1, 2) if transposed else made

        def norms(g: Tensor) -> Tensor:
            return kernels.linear_norms(split(a), split(g))

        operands.append(Operand(weight, gradients, norms))
    if bias is not None and join.is_learned(bias):
        operands.append(Operand(bias, lambda g, rows: split(g)[rows].sum(1)))
    return join.note(out, operands, layouts)


def _positions(x: Tensor, layout: str, count: int) -> Tensor:
    """Return (count, T, channels), channels being the last axis."""
    return precise(by_example(x, layout, count)).flatten(1, -2)


def _matmul(join: Join) -> Tensor | None:
    if len(join.args) != 2 or join.kwargs:
        return None
    a, weight = join.args
    if not join.is_learned(weight) or weight.ndim != 2:
        return None
    return _linear_like(join, a, weight, None, transposed=True)


def _convolution(join: Join) -> Tensor | None:
    arguments = _bind(join, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
    a, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    axes = weight.ndim - 2
    layouts = [x for x in layouts_of(a.shape, join.uses.count) if x != "second"]
    if join.is_learned(a) or not layouts or a.ndim != weight.ndim:
        return None
    stride, dilation = (_each(arguments.get(k, 1), axes) for k in ("stride", "dilation"))
    a, padding = _pad(a.detach(), weight, arguments.get("padding", 0), dilation)
    geometry = kernels.Convolution(weight, stride, padding, dilation, arguments.get("groups", 1))
    return _noted_convolution(join, layouts, geometry, a, weight, bias, transposed=False)


def _noted_convolution(
    join: Join, layouts: list[str], geometry: kernels.Convolution, a: Tensor, weight: Tensor,
    bias: Tensor | None, transposed: bool,
) -> Tensor:  # fmt: skip
    """Note a convolution; a transposed one has the places of input and gradient exchanged."""
    split = partial(_split, layout=join.uses.choose(layouts), count=join.uses.count)

    def sides(g: Tensor) -> tuple[Tensor, Tensor]:
        return (split(g), split(a)) if transposed else (split(a), split(g))

    def gradients(g: Tensor, rows: slice) -> Tensor:
        left, right = sides(g)
        return geometry.gradients(left[rows], right[rows])

    operands = []
    if join.is_learned(weight):
        operands.append(Operand(weight, gradients, lambda g: geometry.norms(*sides(g))))
    if bias is not None and join.is_learned(bias):
        operands.append(
            Operand(bias, lambda g, rows: kernels.bias_gradients(split(g)[rows], channels=2))
        )
    return join.note(join.call(), operands, layouts)


def _transposed_convolution(join: Join) -> Tensor | None:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    arguments = _bind(join, names)
    a, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    layouts = [x for x in layouts_of(a.shape, join.uses.count) if x != "second"]
    if join.is_learned(a) or not layouts or a.ndim != weight.ndim:
        return None
    defaults = {"stride": 1, "padding": 0, "dilation": 1}
    stride, padding, dilation = (
        _each(arguments.get(name, default), weight.ndim - 2) for name, default in defaults.items()
    )
    geometry = kernels.Convolution(weight, stride, padding, dilation, arguments.get("groups", 1))
    return _noted_convolution(join, layouts, geometry, a.detach(), weight, bias, transposed=True)


def _split(x: Tensor, layout: str, count: int) -> Tensor:
    return precise(by_example(x, layout, count))


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _pad(a: Tensor, weight: Tensor, padding: Any, dilation: list[int]) -> tuple[Tensor, list[int]]:
    """Turn padding by name into numbers; one that is longer on the right is done to the input."""
    if not isinstance(padding, str):
        return a, _each(padding, weight.ndim - 2)
    if padding == "valid":
        return a, [0] * (weight.ndim - 2)
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(a, sides), [0] * len(totals)


def _batch_norm(join: Join) -> Tensor | None:
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    arguments = _bind(join, names)
    a, mean, variance = (arguments[name] for name in names[:3])
    layouts = [x for x in layouts_of(a.shape, join.uses.count) if x != "second"]
    if arguments.get("training") or mean is None or join.is_learned(a) or not layouts:
        return None
    split = partial(_split, layout=join.uses.choose(layouts), count=join.uses.count)
    eps = arguments.get("eps", 1e-5)
    a = a.detach()

    def both(g: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        return kernels.batch_norm_gradients(split(a)[rows], split(g)[rows], mean, variance, eps)

    pair = _Once(both)
    operands = [
        Operand(arguments[name], partial(pair.part, index))
        for index, name in enumerate(("weight", "bias"))
        if join.is_learned(arguments.get(name))
    ]
    return join.note(join.call(), operands, layouts)


class _Once:
    """Two results of one computation, which is made when the first is asked for."""

    def __init__(self, compute: Callable[[Tensor, slice], tuple[Tensor, Tensor]]) -> None:
        self.compute = compute
        self.made: tuple[Any, ...] | None = None

    def part(self, index: int, g: Tensor, rows: slice) -> Tensor:
        if self.made is None or self.made[0] is not g or self.made[1] != rows:
            self.made = g, rows, self.compute(g, rows)
        found: Tensor = self.made[2][index]
        if index:
            self.made = None  # the gradient is not kept alive
        return found


def _normalised(join: Join, names: tuple[str, ...], normalise: Callable[..., Tensor]) -> Any:
    """Layer, group and RMS norm: the normalised input, then scale and shift."""
    arguments = _bind(join, names)
    a = arguments["input"].detach()
    layouts = layouts_of(a.shape, join.uses.count)
    if join.is_learned(arguments["input"]) or not layouts:
        return None
    split = partial(_split, layout=join.uses.choose(layouts), count=join.uses.count)
    settings = {k: arguments[k] for k in (names[1], "eps") if arguments.get(k) is not None}

    def reduce(x: Tensor, like: Tensor) -> Tensor:
        if normalise is F.group_norm:  # (b, m, C, *size)
            return kernels.bias_gradients(x, channels=2)
        return x.reshape(len(x), -1, *like.shape).sum(1)

    operands = []
    for name in ("weight", "bias"):
        x = arguments.get(name)
        if x is None or not join.is_learned(x):
            continue
        scale = name == "weight"

        def gradients(g: Tensor, rows: slice, x: Tensor = x, scale: bool = scale) -> Tensor:
            own = split(g)[rows]
            if scale:
                flat = split(a)[rows]
                own = normalise(flat.flatten(0, 1), **settings).view_as(flat) * own
            return reduce(own, x)

        operands.append(Operand(x, gradients))
    return join.note(join.call(), operands, layouts)


def _embedding(join: Join) -> Tensor | None:
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq")
    arguments = _bind(join, names)
    tokens, weight = arguments["input"], arguments["weight"]
    layouts = layouts_of((*tokens.shape, 1), join.uses.count)
    rescaled = arguments.get("max_norm") is not None or arguments.get("scale_grad_by_freq")
    if not layouts or rescaled or not join.is_learned(weight):
        return None
    layout, count = join.uses.choose(layouts), join.uses.count
    padding = arguments.get("padding_idx")
    places = by_example(tokens, layout, count).flatten(1)
    skipped = None if padding is None else (places == padding % len(weight)).unsqueeze(2)

    def split(g: Tensor) -> Tensor:
        g = precise(by_example(g, layout, count)).flatten(1, -2)
        return g if skipped is None else g.masked_fill(skipped, 0)

    operand = Operand(
        weight,
        lambda g, rows: kernels.embedding_gradients(places[rows], split(g)[rows], len(weight)),
        lambda g: kernels.embedding_norms(places, split(g)),
    )
    return join.note(join.call(), [operand], layouts)


def _bind(join: Join, names: tuple[str, ...]) -> dict[str, Any]:
    return {**dict(zip(names, join.args, strict=False)), **join.kwargs}


def _elementwise() -> dict[Any, Handler]:
    names = ("add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "divide", "rsub",
             "addcmul", "addcdiv", "lerp", "where", "maximum", "minimum", "pow", "add_", "sub_",
             "mul_", "div_", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__",
             "__mul__", "__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__itruediv__",
             "__pow__")  # fmt: skip
    holders = (torch, torch.Tensor)
    functions = {getattr(holder, name) for holder in holders for name in names
                 if hasattr(holder, name)}  # fmt: skip
    functions.add(F.scaled_dot_product_attention)
    return dict.fromkeys(functions, Join.broadcast)


HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    torch.conv_transpose1d: _transposed_convolution,
    torch.conv_transpose2d: _transposed_convolution,
    torch.conv_transpose3d: _transposed_convolution,
    F.batch_norm: _batch_norm,
    F.layer_norm: partial(
        _normalised, names=("input", "normalized_shape", "weight", "bias", "eps"),
        normalise=F.layer_norm,
    ),
    F.rms_norm: partial(
        _normalised, names=("input", "normalized_shape", "weight", "eps"), normalise=F.rms_norm
    ),
    F.group_norm: partial(
        _normalised, names=("input", "num_groups", "weight", "bias", "eps"),
        normalise=F.group_norm,
    ),
    F.embedding: _embedding,
    **_elementwise(),
}  # fmt: skip
