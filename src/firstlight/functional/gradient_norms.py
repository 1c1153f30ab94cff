"""Squared norms of per-example gradients, by parameter, from one forward and one backward pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from firstlight.functional.logit_draws import Draw
from firstlight.functional.measuring import logits_of, take
from firstlight.functional.norm_ledger import Ledger
from firstlight.functional.parameter_uses import ParameterUses
from firstlight.functional.use_handlers import HANDLERS

CHECKED = 3
"""Examples on which a plan is checked against autograd, one by one."""

MISMATCH = "its fast kernel disagreed with autograd"
UNSEEN = "used in a way that was not seen"


@dataclass(frozen=True)
class Plan:
    """How a model's gradients are kept apart by example, once that has been checked.

    Attributes:
        layouts: how examples lie, by the number of the use, where it is not the likeliest way.
        slow: parameters that are differentiated example by example, and why.
    """

    layouts: Mapping[int, str] = field(default_factory=dict)
    slow: Mapping[str, str] = field(default_factory=dict)


_plans: WeakKeyDictionary[nn.Module, dict[Any, Plan]] = WeakKeyDictionary()
"""By model, parameters and the operations they went through: checked once, not at every call."""


class GradientNorms:
    """Squared norms of ``J_i^T u_i`` for every parameter and example i of a batch.

    One forward and, for each draw, one backward pass that stops at the lowest chosen parameter and
    forms no gradient of a batch: where an operation meets a parameter, the norms are taken from
    its input and the gradient at its output. What has no such form is differentiated example by
    example, and named. On its first batch (and on every one whose operations differ) the result is
    compared with plain autograd on three of its examples, so that no model is measured by a kernel
    that does not fit it.

    Args:
        model: maps inputs to logits (n, K); in the state of `firstlight.functional.measuring`.
        parameters: by name; exactly they require gradients.

    Attributes:
        slow: parameters that went by the slow path, and why.
        checked: whether a batch was compared with autograd.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.model, self.parameters = model, parameters
        self.slow: dict[str, str] = {}
        self._plans = _plans.setdefault(model, {})

    def __call__(
        self, inputs: Any, count: int, draw: Callable[[Tensor, bool], list[Draw]]
    ) -> Tensor:
        """Return squared norms (parameters, count), float64 on the CPU, summed over the draws.

        Args:
            inputs: of ``count`` examples.
            count: of them.
            draw: from the logits (count, K), and whether a linear head is all there is.

        Raises:
            ValueError: where there are no finite logits, or one example's depend on the others.
        """
        if count == 1:  # twice, for the reason that logits_of gives
            return self(take(inputs, [0, 0]), 2, draw)[:, :1]
        trace = self._trace(inputs, count, {})
        key = (tuple(self.parameters), *(use.signature for use in trace.uses))
        plan = self._plans.get(key)
        if plan is not None and plan.layouts:
            del trace  # one graph at a time
            trace = self._trace(inputs, count, plan.layouts)
        draws = draw(trace.logits.detach(), trace.is_linear_head)
        if count <= CHECKED:
            self._require_independence(inputs, list(range(count)), trace.logits)
            return self._one_by_one(inputs, count, draws, self.parameters)
        if plan is None:
            found, trace, plan = self._checked(trace, inputs, count, draws)
            self._plans[key] = plan
        else:
            found = trace.norms(draws)
        slow = {**plan.slow, **trace.missed}
        if slow:
            chosen = {name: self.parameters[name] for name in slow}
            rows = [list(self.parameters).index(name) for name in slow]
            found[rows] = self._one_by_one(inputs, count, draws, chosen)
        self.slow |= {**trace.local, **slow}
        return found

    def _trace(self, inputs: Any, count: int, layouts: Mapping[int, str]) -> "_Trace":
        with ParameterUses(self.model, self.parameters, count, HANDLERS, layouts) as uses:
            logits = logits_of(self.model, inputs, count)
        return _Trace(uses, logits, self.parameters)

    def _checked(
        self, trace: "_Trace", inputs: Any, count: int, draws: list[Draw]
    ) -> tuple[Tensor, "_Trace", Plan]:
        """Compare with autograd; try the other layouts; what still differs goes the slow way."""
        rows = [0, count // 2, count - 1]
        self._require_independence(inputs, rows, trace.logits)
        first, layouts, attempt = draws[:1], dict[int, str](), 1
        want = trace.by_autograd(rows, first)
        found = trace.norms(first, keep=True)
        wrong = self._mismatches(found[:, rows], want, trace)
        while wrong and (others := trace.other_layouts(wrong, attempt)):
            layouts |= others
            trace = self._trace(inputs, count, layouts)
            found = trace.norms(first, keep=True)
            wrong = self._mismatches(found[:, rows], want, trace)
            attempt += 1
        plan = Plan(layouts, {**trace.unknown, **dict.fromkeys(wrong, MISMATCH)})
        return found if len(draws) == 1 else trace.norms(draws), trace, plan

    def _require_independence(self, inputs: Any, rows: list[int], logits: Tensor) -> None:
        """Refuse a model whose logits of an example depend on the others of its batch."""
        for i in rows:
            with torch.no_grad():
                alone = logits_of(self.model, take(inputs, slice(i, i + 1)), 1)[0]
            together = logits[i].detach()
            tolerance = 1e-9 if alone.dtype == torch.float64 else 1e-2
            difference = float((alone - together).abs().max())
            if difference > tolerance * max(1.0, float(together.abs().max())):
                raise ValueError(
                    f"the logits of example {i} differ by {difference:.3g} when it is measured "
                    "alone: the model mixes the examples of a batch, or draws random numbers in "
                    "eval mode, so that no example has a gradient of its own"
                )

    def _mismatches(self, found: Tensor, want: Tensor, trace: "_Trace") -> list[str]:
        double = all(p.dtype == torch.float64 for p in self.parameters.values())
        relative, floor = (1e-7, 1e-12) if double else (1e-3, 1e-8)
        tolerance = relative * want + floor * want.sum(0)
        bad = ((found - want).abs() > tolerance).any(1).tolist()
        known = {**trace.unknown, **trace.missed}
        return [n for n, b in zip(self.parameters, bad, strict=True) if b and n not in known]

    def _one_by_one(
        self, inputs: Any, count: int, draws: list[Draw], parameters: Mapping[str, nn.Parameter]
    ) -> Tensor:
        """Return norms (parameters, count) by one forward and backward pass an example."""
        columns = []
        for i in range(count):
            own = logits_of(self.model, take(inputs, slice(i, i + 1)), 1)[0]
            columns.append(_squared_gradients(own, i, draws, parameters))
        return torch.stack(columns, 1)


def _squared_gradients(
    logits: Tensor, row: int, draws: list[Draw], parameters: Mapping[str, nn.Parameter]
) -> Tensor:
    """Return squared norms (parameters,) of one example's gradients, summed over the draws."""
    total = torch.zeros(len(parameters), dtype=torch.float64)
    if not logits.requires_grad:
        return total
    for unit, weight in draws:
        gradients = torch.autograd.grad(
            (logits * unit[row].to(logits)).sum(), list(parameters.values()), allow_unused=True,
            retain_graph=True,
        )  # fmt: skip
        norms = [0.0 if g is None else float(torch.linalg.vector_norm(g)) for g in gradients]
        total += weight[row] * torch.tensor(norms, dtype=torch.float64).square()
    return total


class _Trace:
    """One forward pass, and what its backward passes bring."""

    def __init__(
        self, uses: ParameterUses, logits: Tensor, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        self.uses, self.unknown, self.logits = uses.hand_over(), uses.unknown, logits
        self.parameters, self.count = parameters, uses.count
        self._under = {
            id(o.tensor): uses.parameters_under(o.tensor) for use in self.uses for o in use.operands
        }
        seen = {name for names in self._under.values() for name in names} | set(self.unknown)
        self._unseen = [name for name in parameters if name not in seen]
        self.missed: dict[str, str] = {}
        self.local = {
            name: f"{operand.local} is differentiated one example at a time"
            for use in self.uses for operand in use.operands if operand.local
            for name in self._under[id(operand.tensor)]
        }  # fmt: skip

    @property
    def is_linear_head(self) -> bool:
        """Whether one linear layer, whose output is the logits, holds all the parameters."""
        if len(self.uses) != 1 or self.uses[0].name != "linear" or self._unseen:
            return False
        return (
            self.logits.grad_fn is not None
            and get_gradient_edge(self.logits) == self.uses[0].edge
            and all(o.tensor.is_leaf for o in self.uses[0].operands)
            and any(o.tensor.ndim == 2 for o in self.uses[0].operands)
        )

    def other_layouts(self, names: list[str], attempt: int) -> dict[int, str]:
        """Return the next layout to try for every use of some parameters that has one left."""
        return {
            number: use.layouts[attempt]
            for number, use in enumerate(self.uses)
            if attempt < len(use.layouts)
            and any(name in names for o in use.operands for name in self._under[id(o.tensor)])
        }

    def by_autograd(self, rows: list[int], draws: list[Draw]) -> Tensor:
        """Return squared norms (parameters, rows) by plain autograd through the batch's graph.

        A forward pass of one example would round otherwise, and near the kink of a ReLU that shows.
        """
        return torch.stack(
            [_squared_gradients(self.logits[i], i, draws, self.parameters) for i in rows], 1
        )

    def norms(self, draws: list[Draw], keep: bool = False) -> Tensor:
        """Return squared norms (parameters, count), summed over the draws: one backward each.

        Args:
            draws: of all examples.
            keep: the graph, for another backward pass.
        """
        total = torch.zeros(len(self.parameters), self.count, dtype=torch.float64)
        for number, (unit, weight) in enumerate(draws):
            found = self._backward(unit, retain=keep or number + 1 < len(draws))
            for row, name in enumerate(self.parameters):
                if name in found:
                    total[row] += weight * found[name]
        return total

    def _backward(self, unit: Tensor, retain: bool) -> dict[str, Tensor]:
        ledger = Ledger(self.uses, self._under, self.parameters, self.count)
        edges = [use.edge for use in self.uses if use.source]
        unseen = [get_gradient_edge(self.parameters[name]) for name in self._unseen]
        if not self.logits.requires_grad or not (edges or unseen):
            return {}
        u = unit.to(self.logits.device, self.logits.dtype)
        gradients = torch.autograd.grad(
            (self.logits * u).sum(), [*edges, *unseen], allow_unused=True, retain_graph=retain
        )
        for name, gradient in zip(self._unseen, gradients[len(edges) :], strict=True):
            if gradient is not None:
                self.missed[name] = UNSEEN
        return ledger.close()
