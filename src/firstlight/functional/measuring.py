"""A model as measurements need it: eval mode, full precision, chosen parameters; then as before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map

Measured = Callable[[Any], Tensor]
"""Inputs of n examples to logits (n, K)."""

_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")
"""Attributes by which timm's and Hugging Face's modules recompute activations in the backward."""


def original(model: nn.Module) -> nn.Module:
    """Return the module under ``torch.compile`` and DistributedDataParallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def chosen_parameters(
    model: nn.Module, params: Iterable[str] | None = None
) -> dict[str, nn.Parameter]:
    """Return parameters by name: the named ones, or all that require gradients.

    A tied parameter appears once, under its first name.

    Raises:
        ValueError: on a name that the model does not have, with near ones.
    """
    everything = dict(model.named_parameters())
    if params is None:
        return {name: p for name, p in everything.items() if p.requires_grad}
    wanted = list(params)
    aliases = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in wanted if name not in aliases]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], aliases, n=3) or list(aliases)[:3]
        raise ValueError(
            f"{type(model).__name__} has no parameter {unknown[0]!r}; near: {', '.join(near)}"
        )
    held = {id(aliases[name]) for name in wanted}
    return {name: p for name, p in everything.items() if id(p) in held}


@contextmanager
def measuring(
    model: nn.Module,
    parameters: Iterable[nn.Parameter] | None = None,
    *,
    double_backward: bool = False,
) -> Iterator[None]:
    """Put a model into the state for measuring; on leaving, all is as it was.

    Inside: every module in eval mode, gradients on and inference mode off, autocast off, compiled
    parts run as they were written, activation checkpointing by timm's and Hugging Face's flags off,
    and of all parameters exactly ``parameters`` require gradients. Dictionaries of tensors that
    modules keep from one call to the next in eval mode (timm's attention biases, which go stale
    when weights move) are emptied before every call.

    Args:
        model: the module itself, not a compiled or distributed wrapper (see `original`).
        parameters: what is differentiated; None leaves ``requires_grad`` as it is.
        double_backward: attention by the only kernel that can be differentiated twice.
    """
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    flags = [
        (module, name)
        for module in modules
        for name in _CHECKPOINTING
        if module.__dict__.get(name) is True
    ]
    every = list(model.parameters())
    required = [p.requires_grad for p in every]
    wanted = None if parameters is None else {id(p) for p in parameters}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {p.device.type for p in every} | {"cpu"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if any(_is_compiled(module) for module in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if double_backward:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_forgetting(model))
        try:
            for module in modules:
                module.training = False
            for module, name in flags:
                setattr(module, name, False)
            if wanted is not None:
                for p in every:
                    p.requires_grad_(id(p) in wanted)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name in flags:
                setattr(module, name, True)
            for p, needed in zip(every, required, strict=True):
                p.requires_grad_(needed)


@contextmanager
def _forgetting(model: nn.Module) -> Iterator[None]:
    """Inside, the model's calls find no tensors of an earlier call; then as before."""
    known = set(nn.Module().__dict__)
    caches: dict[int, dict[Any, Tensor]] = {
        id(value): value
        for module in model.modules()
        for name, value in module.__dict__.items()
        if type(value) is dict and name not in known and _holds_only_tensors(value)
    }
    before = [(cache, dict(cache)) for cache in caches.values()]

    def forget(*_: Any) -> None:
        for cache in caches.values():
            if _holds_only_tensors(cache):
                cache.clear()

    hook = model.register_forward_pre_hook(forget)
    try:
        yield
    finally:
        hook.remove()
        forget()
        for cache, content in before:
            cache.update(content)


def _holds_only_tensors(cache: dict[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in cache.values())


def _is_compiled(module: nn.Module) -> bool:
    """By ``torch.compile(module)`` or ``module.compile()``."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def require_running_statistics(model: nn.Module) -> None:
    """Refuse BatchNorm that has no running statistics and so couples examples in eval mode too.

    Raises:
        ValueError: naming the first such layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name} is BatchNorm without running statistics: it mixes the examples of a batch "
                "in eval mode too, so that no example has a gradient of its own"
            )


def number_of_examples(inputs: Any) -> int:
    """Return the length of the first axis, the same in all tensors of ``inputs``.

    Raises:
        ValueError: where there is no tensor, no example, or the lengths differ.
    """
    lengths = sorted({len(x) for x in tree_flatten(inputs)[0] if isinstance(x, Tensor) and x.ndim})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(
            "nothing to measure: the probe set is empty"
            if lengths in ([], [0])
            else f"the tensors of the inputs hold different numbers of examples: {lengths}"
        )
    return lengths[0]


def take(inputs: Any, rows: slice | list[int]) -> Any:
    """Return some examples of ``inputs``, a tensor or any nesting of tensors."""
    return tree_map(lambda x: x[rows] if isinstance(x, Tensor) and x.ndim else x, inputs)


def batches_of(count: int, batch_size: int) -> list[slice]:
    """Cut ``count`` examples into consecutive batches, the last one maybe smaller.

    Raises:
        ValueError: on a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return [slice(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]


def batches_of_two(count: int, batch_size: int) -> list[slice]:
    """As `batches_of`, the last example in the batch before where it would be alone.

    BatchNorm cannot normalise a single example by itself.
    """
    rows = batches_of(count, batch_size)
    if len(rows) > 1 and rows[-1].stop - rows[-1].start == 1:
        rows[-2:] = [slice(rows[-2].start, count)]
    return rows


def logits_of(model: Measured, inputs: Any, count: int) -> Tensor:
    """Return ``model(inputs)``, checked to be logits of ``count`` examples.

    A single example is passed twice: torch's backward pass of BatchNorm in eval mode is wrong for
    batches of one whose gradient comes transposed (2.15, CPU; after ``flatten(2).transpose(1, 2)``,
    as in EfficientFormer).

    Raises:
        ValueError: where it is no floating tensor (count, K >= 2), or not finite.
    """
    if count == 1:
        return logits_of(model, take(inputs, [0, 0]), 2)[:1]
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"the model must return logits (examples, classes), not {_describe(logits)}; wrap it "
            "in a module that does"
        )
    if logits.shape[0] != count or logits.shape[1] < 2:
        raise ValueError(
            f"the model returned {_describe(logits)} for {count} examples: expected logits "
            f"({count}, classes) of at least two classes"
        )
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise ValueError(
            f"the logits of {bad} of {count} examples are not finite (NaN or infinite): there is "
            "nothing to measure; look for a diverged run or bad inputs"
        )
    return logits


def _describe(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def untouched_batch_norms(model: nn.Module) -> list[str]:
    """Names of BatchNorm layers whose running statistics are still at their start, (0, 1).

    In eval mode such layers normalise nothing, and what is measured moves for about 50 steps merely
    because the statistics do; see `warm_batch_norm`.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
        and not bool(module.running_mean.any())
        and bool((module.running_var == 1).all())
    ]


@contextmanager
def warm_batch_norm(model: nn.Module, inputs: Sequence[Any]) -> Iterator[None]:
    """Inside, BatchNorm's running statistics are those of ``inputs``; then they are as before.

    One forward pass over the batches, see `estimate_batch_norm`.

    Args:
        model: called as ``model(batch)``.
        inputs: batches of at least two examples.
    """
    norms = _with_statistics(model)
    buffers = [(b, b.clone()) for m in norms for b in m.buffers(recurse=False)]
    try:
        estimate_batch_norm(model, inputs, norms=norms)
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def estimate_batch_norm(
    model: nn.Module,
    inputs: Iterable[Any],
    *,
    forward: Callable[[Any], Any] | None = None,
    norms: Sequence[_BatchNorm] | None = None,
) -> None:
    """Replace BatchNorm's running statistics by those of ``inputs`` at the weights as they are.

    As `torch.optim.swa_utils.update_bn` does: BatchNorm normalises by the batch and averages its
    statistics over all batches. Unlike there, all else is in eval mode (dropout draws nothing), and
    modes come back as they were.

    Args:
        model: owns the layers.
        inputs: batches of at least two examples.
        forward: called with each batch; None: the model.
        norms: layers to estimate; None: all that keep statistics.
    """
    norms = _with_statistics(model) if norms is None else norms
    momenta = [(module, module.momentum) for module in norms]
    try:
        with measuring(model), torch.no_grad():
            for module in norms:
                module.reset_running_stats()
                module.momentum = None
                module.training = True
            for batch in inputs:
                (forward or model)(batch)
    finally:
        for module, momentum in momenta:
            module.momentum = momentum


def _with_statistics(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
