"""Which operations of a forward pass use which parameters, and on which data.

The operations themselves are watched, not the modules: a weight counts wherever a function of torch
meets it, be it in a subclass, in a functional call, standardised, concatenated or shared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from firstlight.functional.example_axes import by_example
from firstlight.functional.parameter_joins import Join, Operand

Handler = Callable[[Join], Any]
"""Calls the function and notes the use; None where it has no form for this call."""


@dataclass
class Use:
    """One operation on data and parameters.

    Attributes:
        name: of the operation.
        edge: the place in the graph whose gradient ``operands`` take, before anything was done to
            the operation's output in place.
        source: whether no learned tensor lies upstream, so that a backward pass may end here.
        operands: the parameters' side.
        layouts: the ways in which examples may lie along the axes of the data, the likeliest first.
        receive: called with the gradient in every backward pass that reaches the edge.
    """

    name: str
    edge: GradientEdge
    source: bool
    operands: list[Operand]
    layouts: list[str]
    receive: Callable[[Tensor], None] = field(default=lambda _: None)

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two passes through the same operations have in common."""
        return self.name, tuple(self.layouts), tuple(o.tensor.shape for o in self.operands)


class ParameterUses(TorchFunctionMode):
    """Inside, every operation that joins data with chosen parameters is noted.

    Tensors made of parameters, buffers and constants alone are followed, up to where they meet the
    data; anything of unknown origin counts as data.

    Args:
        model: all of its parameters and buffers are known not to be data.
        parameters: those of interest, by name; they require gradients.
        count: examples in the batch.
        handlers: by function of torch, what notes its uses.
        layouts: how examples lie, by the number of the use; the likeliest where not given.

    Attributes:
        uses: in the order of the forward pass.
        unknown: parameters met in a way that has no per-example form, and the operation.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        count: int,
        handlers: Mapping[Any, Handler],
        layouts: Mapping[int, str],
    ) -> None:
        super().__init__()
        self.count, self.handlers, self.layouts = count, handlers, layouts
        self.uses: list[Use] = []
        self.unknown: dict[str, str] = {}
        self._names = {id(p): name for name, p in parameters.items()}
        # Held, so that no identity is used twice.
        self._constant = {id(x): x for x in (*model.parameters(), *model.buffers())}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function; note it if it joins data and parameters."""
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        data = [x for x in tensors if id(x) not in self._constant]
        learned = {id(x): x for x in tensors if id(x) in self._constant and x.requires_grad}
        context = Join(self, func, args, kwargs, data, list(learned.values()))
        if not data:
            repeated = context.over_batch() if learned and func in EXPANDING else None
            return self._remember(func(*args, **kwargs)) if repeated is None else repeated
        versions = [(x, x._version) for x in tensors if id(x) in self._constant]
        out = self._join(context) if learned and torch.is_grad_enabled() else context.call()
        for x, version in versions:
            if x._version != version:  # data were written into it
                self._constant.pop(id(x), None)
        return out

    def _remember(self, out: Any) -> Any:
        self._constant.update((id(x), x) for x in tree_leaves(out) if isinstance(x, Tensor))
        return out

    def _join(self, context: Join) -> Any:
        handler = self.handlers.get(context.func)
        if handler is None and isinstance(context.func, FunctionType):
            with self:  # look at the operations inside
                return _see_through(context.func)(*context.args, **context.kwargs)
        out = handler(context) if handler is not None else None
        return context.locally() if out is None else out

    def repeat(
        self,
        x: Tensor,
        ndim: int,
        axis: int,
        size: int,
        layout: str = "first",
        layouts: Sequence[str] = (),
    ) -> Tensor:
        """Return x with ``ndim`` axes, ``size`` times along ``axis``; noted as a use of its own.

        Autograd sums gradients over the repetitions only behind this place: here they are still
        apart.
        """
        padded = x.reshape((1,) * (ndim - x.ndim) + tuple(x.shape))
        shape = list(padded.shape)
        shape[axis] = size
        repeated = padded.expand(shape)

        def gradients(g: Tensor, rows: slice) -> Tensor:
            each = by_example(g.movedim(axis, 0), "first" if axis else layout, self.count)
            return each[rows].sum(1).reshape(-1, *x.shape)

        self.note("repeat", repeated, [Operand(x, gradients)], list(layouts), source=True)
        return repeated

    def note(
        self, name: str, output: Tensor, operands: list[Operand], layouts: list[str], source: bool
    ) -> None:
        """Add a use."""
        use = Use(name, get_gradient_edge(output), source, operands, layouts)
        self.uses.append(use)
        # A strong reference would close a circle through the graph that nothing could collect.
        alive = ref(use)

        def receive(g: Tensor) -> None:
            if (listening := alive()) is not None:
                listening.receive(g.detach())

        output.register_hook(receive)  # type: ignore[no-untyped-call]  # untyped in torch

    def hand_over(self) -> list[Use]:
        """Return the uses and forget them.

        Kept here, they and the graph would outlive a measurement: operands may know this object.
        """
        found, self.uses = self.uses, []
        return found

    def choose(self, layouts: list[str]) -> str:
        """Return the layout of the next use."""
        chosen = self.layouts.get(len(self.uses))
        return chosen if chosen in layouts else layouts[0]

    def give_up(self, tensor: Tensor, operation: str) -> None:
        """Note that the parameters under a tensor have no per-example form here."""
        for name in self.parameters_under(tensor):
            self.unknown[name] = operation

    def parameters_under(self, tensor: Tensor) -> list[str]:
        """Names of the parameters of interest that a tensor is made of."""
        if tensor.is_leaf:
            return [self._names[id(tensor)]] if id(tensor) in self._names else []
        found, stack, seen = [], [get_gradient_edge(tensor).node], set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in self._names:
                found.append(self._names[id(leaf)])
            stack += [inner for inner, _ in node.next_functions if inner is not None]
        return found


EXPANDING = {
    torch.Tensor.expand,
    torch.Tensor.expand_as,
    torch.Tensor.repeat,
    torch.Tensor.tile,
    torch.tile,
    torch.Tensor.broadcast_to,
    torch.broadcast_to,
}
"""Functions that may repeat a class token for every example."""

_transparent: dict[FunctionType, FunctionType] = {}


def _see_through(func: FunctionType) -> FunctionType:
    """Return a copy of a function of torch's that runs its body instead of asking overrides."""
    if func not in _transparent:
        asked = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
        blind = dict.fromkeys(asked, lambda *_: False)
        copy = FunctionType(
            func.__code__,
            {**func.__globals__, **blind},
            func.__name__,
            func.__defaults__,
            func.__closure__,
        )
        copy.__kwdefaults__ = func.__kwdefaults__
        _transparent[func] = copy
    return _transparent[func]
