"""What one backward pass brings to every parameter, as gradients arrive."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from firstlight.functional.norm_kernels import example_norms, in_chunks, squares
from firstlight.functional.parameter_joins import Operand
from firstlight.functional.parameter_uses import Use

Part = tuple[Operand, Tensor]
"""A parameter's side of an operation, and the gradient at the operation's output."""


class Ledger:
    """Squared per-example norms, by parameter.

    A parameter that met the data once is squared as soon as its gradient arrives, and the gradient
    is let go. Where parameters met the data more than once, or through tensors made of them
    (standardised or tied weights), gradients at the outputs are kept until all have arrived; then
    per-example gradients are added up, chunk by chunk, before they are squared.

    Args:
        uses: of the forward pass; their ``receive`` is set.
        under: names of the parameters under a tensor, by its id.
        parameters: by name.
        count: examples.
    """

    def __init__(
        self,
        uses: list[Use],
        under: Mapping[int, list[str]],
        parameters: Mapping[str, nn.Parameter],
        count: int,
    ) -> None:
        self.parameters, self.count, self._under = parameters, count, under
        self.norms: dict[str, Tensor] = {}
        operands = [o for use in uses for o in use.operands]
        self._groups = _connected([under[id(o.tensor)] for o in operands])
        times: dict[str, int] = {}
        for operand in operands:
            for name in under[id(operand.tensor)]:
                times[name] = times.get(name, 0) + 1
        self._alone = {
            id(o.tensor) for o in operands
            if o.tensor.is_leaf and all(times[name] == 1 for name in under[id(o.tensor)])
        }  # fmt: skip
        self._kept: dict[str, list[Part]] = {}
        for use in uses:
            use.receive = self._receiver(use.operands)

    def _receiver(self, operands: list[Operand]) -> Callable[[Tensor], None]:
        def receive(g: Tensor) -> None:
            for operand in operands:
                names = self._under[id(operand.tensor)]
                if id(operand.tensor) in self._alone:
                    self.norms[names[0]] = self._squares(operand, g)
                elif names:
                    self._kept.setdefault(self._groups[names[0]], []).append((operand, g))

        return receive

    def _squares(self, operand: Operand, g: Tensor) -> Tensor:
        if operand.norms is not None:
            return operand.norms(g)
        return squares(lambda rows: operand.gradients(g, rows), self.count, operand.tensor.numel())

    def close(self) -> dict[str, Tensor]:
        """Return the norms (count,) of all parameters whose gradient arrived, float64, on the CPU.

        One transfer for all of them.
        """
        for group, parts in self._kept.items():
            names = [name for name, own in self._groups.items() if own == group]
            self.norms |= self._summed(names, parts)
        self._kept = {}
        if not self.norms:
            return {}
        table = torch.stack(list(self.norms.values())).cpu().double()
        return dict(zip(self.norms, table, strict=True))

    def _summed(self, names: list[str], parts: list[Part]) -> dict[str, Tensor]:
        """Squared norms of parameters that met the data more than once, or in disguise."""
        numbers = sum({id(o.tensor): o.tensor.numel() for o, _ in parts}.values())
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for rows in in_chunks(self.count, numbers):
            totals: dict[int, tuple[Tensor, Tensor]] = {}
            for operand, g in parts:
                own, key = operand.gradients(g, rows), id(operand.tensor)
                totals[key] = operand.tensor, totals[key][1] + own if key in totals else own
            gradients = self._pulled_back(names, list(totals.values()))
            for name in names:
                found[name].append(example_norms(gradients[name]))
        return {name: torch.cat(chunks) for name, chunks in found.items()}

    def _pulled_back(
        self, names: list[str], totals: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Return per-example gradients of parameters from those of the tensors made of them."""
        gradients: dict[str, Tensor] = {}

        def add(name: str, gradient: Tensor | None) -> None:
            if gradient is not None:
                before = gradients.get(name)
                gradients[name] = gradient if before is None else before + gradient

        for tensor, total in totals:
            under = [name for name in self._under[id(tensor)] if name in names]
            if tensor.is_leaf:
                add(under[0], total)
                continue
            leaves = [self.parameters[name] for name in under]
            for name, own in zip(under, _batched_grad(tensor, leaves, total), strict=True):
                add(name, own)
        examples = totals[0][1]
        for name in names:
            if name not in gradients:
                shape = (len(examples), *self.parameters[name].shape)
                gradients[name] = examples.new_zeros(shape)
        return gradients


def _batched_grad(tensor: Tensor, leaves: list[nn.Parameter], total: Tensor) -> list[Tensor | None]:
    """Return vector-Jacobian products of a batch of vectors, by vmap where it can."""
    total = total.to(tensor.dtype)
    settings = {"retain_graph": True, "allow_unused": True}
    with torch.enable_grad():
        try:
            return list(
                torch.autograd.grad(tensor, leaves, total, is_grads_batched=True, **settings)
            )
        except RuntimeError:  # an operation that vmap does not know
            each = [torch.autograd.grad(tensor, leaves, one, **settings) for one in total]
    return [
        None if own[0] is None else torch.stack([g for g in own if g is not None])
        for own in zip(*each, strict=True)
    ]


def _connected(sets: list[list[str]]) -> dict[str, str]:
    """Return for every name the first of those it is joined with, directly or through others."""
    first: dict[str, str] = {}
    for names in sets:
        heads = {first.get(name, name) for name in names}
        if not heads:
            continue
        head = min(heads)
        first |= dict.fromkeys(names, head)
        first |= {name: head for name, own in first.items() if own in heads}
    return first
