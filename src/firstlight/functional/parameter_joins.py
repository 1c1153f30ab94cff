"""A call that joins data with parameters, and how its gradients are kept apart by example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map

from firstlight.functional.example_axes import by_example, layouts_of


@dataclass
class Operand:
    """A parameter, or a tensor made of parameters only, where it met the data.

    Attributes:
        tensor: the parameter or what was made of it.
        gradients: the gradient at the operation's output and some examples to the per-example
            gradients (b, *tensor.shape).
        norms: gradient at the output to squared norms (count,), where that is cheaper.
        local: the operation by name, where it is differentiated anew, one example at a time.
    """

    tensor: Tensor
    gradients: Callable[[Tensor, slice], Tensor]
    norms: Callable[[Tensor], Tensor] | None = None
    local: str | None = None


class Notes(Protocol):
    """Where joins note the uses of learned tensors, see `ParameterUses`."""

    count: int

    def note(
        self, name: str, output: Tensor, operands: list[Operand], layouts: list[str], source: bool
    ) -> None:
        """Add a use."""

    def repeat(
        self,
        x: Tensor,
        ndim: int,
        axis: int,
        size: int,
        layout: str = "first",
        layouts: Sequence[str] = (),
    ) -> Tensor:
        """Return x with ``ndim`` axes, ``size`` times along ``axis``; noted as a use of its own."""
        ...

    def choose(self, layouts: list[str]) -> str:
        """Return the layout of the next use."""
        ...

    def give_up(self, tensor: Tensor, operation: str) -> None:
        """Note that the parameters under a tensor have no per-example form here."""


@dataclass
class Join:
    """A call that joins data with learned tensors, as handlers see it.

    Attributes:
        uses: where uses are noted.
        func: of torch.
        args: of the call.
        kwargs: of the call.
        data: tensors among the arguments that may depend on the examples.
        learned: those made of parameters of interest, each once.
    """

    uses: Notes
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: list[Tensor]
    learned: list[Tensor]

    @property
    def name(self) -> str:
        """Of the function."""
        return getattr(self.func, "__name__", repr(self.func))

    def is_learned(self, value: Any) -> bool:
        """Whether a value is one of the learned tensors."""
        return any(value is x for x in self.learned)

    def call(self) -> Any:
        """Call the function as it is."""
        return self.func(*self.args, **self.kwargs)

    def call_with(self, change: Callable[[Tensor], Any]) -> Any:
        """Call the function on changed tensors."""
        args, kwargs = tree_map(
            lambda v: change(v) if isinstance(v, Tensor) else v, (self.args, self.kwargs)
        )
        return self.func(*args, **kwargs)

    def note(self, output: Tensor, operands: list[Operand], layouts: list[str]) -> Tensor:
        """Add a use whose gradient is looked at where the function puts out."""
        source = not any(x.requires_grad for x in self.data)
        self.uses.note(self.name, output, operands, layouts, source)
        return output

    def over_batch(self) -> Tensor | None:
        """Repeat a learned tensor for every example, where the call does that."""
        x, count = self.args[0], self.uses.count
        shape = self.call_with(Tensor.detach).shape
        own = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
        axis = next((i for i in (0, 1) if i < len(shape) and shape[i] == count), None)
        if axis is None or own[axis] != 1 or not self.is_learned(x):
            return None
        repeated = self.uses.repeat(x, len(shape), axis, count)
        factors = [to // now for to, now in zip(shape, repeated.shape, strict=True)]
        return repeated.repeat(factors) if "expand" not in self.name else repeated.expand(shape)

    def broadcast(self) -> Any | None:
        """Repeat learned operands over the batch, so that autograd keeps examples apart."""
        data = max(self.data, key=lambda x: (x.ndim, x.numel()))
        if any(x.ndim > data.ndim for x in self.learned):
            return None
        layouts = [
            layout
            for layout in layouts_of(data.shape, self.uses.count)
            if all(_size(x, data.ndim, int(layout == "second")) == 1 for x in self.learned)
        ]
        if not layouts:
            return None
        layout = self.uses.choose(layouts)
        axis = int(layout == "second")
        size = data.shape[axis]
        changed = {
            id(x): self.uses.repeat(x, data.ndim, axis, size, layout, layouts) for x in self.learned
        }
        return self.call_with(lambda v: changed.get(id(v), v))

    def locally(self) -> Any:
        """Differentiate this one operation anew for every example, if it depends on them."""
        out = self.call()
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not any(_depends(x, self.learned, self.data) for x in made):
            return out
        in_place = self.name.endswith("_") or "out" in self.kwargs
        apart = isinstance(out, Tensor) and not in_place
        layouts = [
            layout
            for layout in (layouts_of(out.shape, self.uses.count) if apart else [])
            if _Anew(self, layout, len(out)).fits(out)
        ]
        if not layouts:
            for x in self.learned:
                self.uses.give_up(x, self.name)
            return out
        anew = _Anew(self, self.uses.choose(layouts), len(out))
        operands = [Operand(x, anew.gradients(x), local=self.name) for x in self.learned]
        return self.note(out, operands, layouts)


class _Anew:
    """An operation differentiated example by example."""

    def __init__(self, join: Join, layout: str, length: int) -> None:
        self.join, self.count = join, join.uses.count
        self.axis = 1 if layout == "second" else 0
        rows = torch.arange(self.count if self.axis else length)
        self.places = by_example(rows, "first" if self.axis else layout, self.count)
        length = self.count if self.axis else length
        self.split = {
            id(x) for x in join.data if x.ndim > self.axis and x.shape[self.axis] == length
        }

    def fits(self, out: Tensor) -> bool:
        """Whether the first example's own output has the shape of its part of ``out``."""
        try:
            with torch.no_grad():
                alone = self.join.call_with(lambda v: self._own(v, 0))
        except RuntimeError:  # shapes that do not go together
            return False
        return bool(alone.shape == self._pick(out, 0).shape)

    def gradients(self, x: Tensor) -> Callable[[Tensor, slice], Tensor]:
        """Return what makes per-example gradients of a learned tensor."""

        def one(g: Tensor, example: int) -> Tensor:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                out = self.join.call_with(lambda v: leaf if v is x else self._own(v, example))
                return torch.autograd.grad(out, leaf, self._pick(g, example))[0]

        return lambda g, rows: torch.stack([one(g, i) for i in range(*rows.indices(self.count))])

    def _own(self, value: Tensor, example: int) -> Tensor:
        return self._pick(value, example) if id(value) in self.split else value.detach()

    def _pick(self, value: Tensor, example: int) -> Tensor:
        return value.detach().index_select(self.axis, self.places[example].to(value.device))


def _size(x: Tensor, ndim: int, axis: int) -> int:
    own = axis - (ndim - x.ndim)
    return x.shape[own] if own >= 0 else 1


def _depends(out: Tensor, learned: list[Tensor], data: list[Tensor]) -> bool:
    """Whether a learned tensor lies upstream of ``out`` without any data between."""
    if not out.requires_grad or out.grad_fn is None:
        return False
    goals = {get_gradient_edge(x).node for x in learned}
    stops = {get_gradient_edge(x).node for x in data if x.requires_grad and x is not out}
    stack, seen = [out.grad_fn], set()
    while stack:
        node = stack.pop()
        if node in goals:
            return True
        if node in seen or node in stops:
            continue
        seen.add(node)
        stack += [inner for inner, _ in node.next_functions if inner is not None]
    return False
