"""The largest eigenvalue of the loss's Hessian, and how far training is from its edge."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn

from firstlight.functional.probe_loss import ProbeLoss
from firstlight.functional.ranks import ALONE, Ranks, gather_or_raise


@dataclass(frozen=True)
class TopEigenvalue:
    """The largest eigenvalue of a Hessian, as Lanczos found it.

    Attributes:
        value: the largest Ritz value: a lower bound of the largest eigenvalue up to rounding.
        residual: norm of ``H v - value v`` for the unit vector v: some eigenvalue lies within it.
        smallest: the smallest Ritz value, an upper bound of the smallest eigenvalue; seldom
            converged.
        vector: v by parameter name, in the parameters' shapes.
        steps: Hessian-vector products used.
        n: examples.
        loss: at the weights.
    """

    value: float
    residual: float
    smallest: float
    vector: dict[str, Tensor] = field(repr=False)
    steps: int
    n: int
    loss: float


def hessian_top_eigenvalue(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    max_steps: int = 30,
    tolerance: float = 1e-3,
    batch_size: int = 256,
    params: Iterable[str] | None = None,
    normalize_logits: bool = False,
    seed: int = 0,
    ranks: Ranks = ALONE,
) -> TopEigenvalue:
    """Largest eigenvalue of the Hessian of the mean cross-entropy, by Lanczos, in eval mode.

    Krylov space of a random start, every vector orthogonalised against all before, twice. Unlike
    power iteration, which finds the eigenvalue of the largest magnitude, it finds the largest one
    where a negative one is larger in magnitude, as happens early in training. It stops when the
    residual is ``tolerance`` times the value; where that does not happen in ``max_steps``, look at
    ``residual``. For symmetric matrices the value is far closer than the residual says: within its
    square over the distance to the next eigenvalue (Parlett, The Symmetric Eigenvalue Problem).

    The maximum over few examples lies above that over many: compare equal probe sets only.

    Cost: a Hessian-vector product a step, on all examples, about two gradients; where the probe set
    is one batch its graph is kept, which saves one of them. Memory beyond the model's: ``steps``
    vectors of its parameters' size, and the graph of a gradient of one batch, about three times
    that of a training step.

    Args:
        model: called as ``model(inputs) -> logits (n, K)``; measured in eval mode, then as before.
        inputs: a tensor, or any nesting of tensors, with examples along the first axis.
        targets: class indices (n,) or probabilities (n, K).
        max_steps: most Hessian-vector products; P are enough for P parameters.
        tolerance: residual at which to stop, as a share of the value; 0: go on to ``max_steps``.
        batch_size: examples in one pass; the value does not hang on it.
        params: names of parameters; None: all that require gradients.
        normalize_logits: subtract each example's mean logit and divide by the norm of the rest,
            which takes the scale of the logits away.
        seed: of the start.
        ranks: processes that share the batches; the result is the same on any number. Collective.

    Returns:
        The eigenvalue with its vector and residual.

    Raises:
        ValueError: on a bad argument, an empty probe set, no parameter, half precision, targets
            that do not fit the logits, logits or products that are not finite.
        RuntimeError: where another rank met an error, or the model cannot be differentiated twice.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, not {max_steps}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be 0 or positive, and finite, not {tolerance}")
    probe = ProbeLoss(
        model,
        inputs,
        targets,
        params=params,
        batch_size=batch_size,
        normalize_logits=normalize_logits,
    )
    with probe.measuring(double_backward=True):
        products = _Products(probe, ranks)
        found = _lanczos(products, probe.normal(seed), max_steps, tolerance)
    return TopEigenvalue(
        value=found.value,
        residual=found.residual,
        smallest=found.smallest,
        vector={name: part.clone() for name, part in probe.split(found.vector).items()},
        steps=found.steps,
        n=probe.count,
        loss=products.loss,
    )


class _Products:
    """Hessian-vector products over all batches.

    Attributes:
        loss: at the weights, after the first product.
        ranks: that share the batches.
    """

    def __init__(self, probe: ProbeLoss, ranks: Ranks) -> None:
        self.probe, self.ranks, self.loss = probe, ranks, math.nan
        self._leaf = probe.weights.clone().requires_grad_()
        self._losses: dict[int, Any] = {}
        self._kept: Tensor | None = None

    def __call__(self, vector: Tensor) -> Tensor:
        """Return H vector (P,). Collective."""
        total = torch.zeros_like(vector)
        count, world = len(self.probe.batches), self.ranks.world
        for first in range(0, count, world):
            mine = self._part(first + self.ranks.rank, vector)
            for rank in range(min(world, count - first)):
                # Adding zeros is exact, and the order of batches the same on any number of ranks.
                shared = mine if rank == self.ranks.rank else torch.zeros_like(vector)
                total += self.ranks.sum(shared)
        if math.isnan(self.loss):
            self.loss = math.fsum(self.ranks.gather(self._losses))
        return total

    def _part(self, number: int, vector: Tensor) -> Tensor:
        part, error = torch.zeros_like(vector), None
        try:
            if number < len(self.probe.batches):
                part = self._product(number, vector)
        except Exception as caught:
            error = caught
        gather_or_raise(self.ranks, {}, error)
        return part

    def _product(self, number: int, vector: Tensor) -> Tensor:
        alone = len(self.probe.batches) == 1
        gradient = self._gradient(number) if self._kept is None else self._kept
        self._kept = gradient if alone else None
        if not gradient.requires_grad:
            return torch.zeros_like(vector)
        (product,) = torch.autograd.grad(
            gradient, self._leaf, vector, retain_graph=alone, materialize_grads=True
        )
        if not bool(torch.isfinite(product).all()):
            raise ValueError("the second derivatives of the loss are not finite at these weights")
        return product

    def _gradient(self, number: int) -> Tensor:
        """Gradient of a batch's part of the loss, with its graph."""
        losses = self.probe.losses(self.probe.batches[number], self._leaf)
        self._losses[number] = float(losses.detach().cpu().double().sum()) / self.probe.count
        if not losses.requires_grad:
            return torch.zeros_like(self.probe.weights)
        (gradient,) = torch.autograd.grad(
            losses.sum() / self.probe.count, self._leaf, create_graph=True
        )
        return gradient


@dataclass(frozen=True)
class _Ritz:
    value: float
    residual: float
    smallest: float
    vector: Tensor
    steps: int


def _lanczos(products: _Products, start: Tensor, max_steps: int, tolerance: float) -> _Ritz:
    size = len(start)
    most = min(max_steps, size)
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(1, most + 1):
        left = products(basis[-1])
        length = float(left.norm())
        diagonal.append(float(basis[-1] @ left))
        for _ in range(2):  # what one pass leaves by rounding, the second takes
            for earlier in basis:
                left.sub_(earlier, alpha=float(earlier @ left))
        rest = float(left.norm())
        # Below rounding there is no next direction: the space holds all that the start reaches.
        exhausted = step == size or rest <= 10 * torch.finfo(left.dtype).eps * length
        values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside))
        residual = rest * abs(float(vectors[-1, -1]))
        done = exhausted or step == most or residual <= tolerance * abs(float(values[-1]))
        # All ranks do as the first: on unlike machines rounding could part them.
        if products.ranks.gather({products.ranks.rank: done})[0]:
            break
        basis.append(left / rest)
        beside.append(rest)
    vector = torch.zeros_like(start)
    for share, part in zip(vectors[:, -1], basis, strict=True):
        vector.add_(part, alpha=float(share))
    return _Ritz(
        float(values[-1]), residual, float(values[0]), vector / vector.norm(), len(diagonal)
    )


def edge_of_stability(eigenvalue: float, optimizer: torch.optim.Optimizer) -> float | None:
    """Largest Hessian eigenvalue over the one at which full-batch SGD turns unstable.

    On a quadratic of curvature λ the iteration of step η and momentum β, ``torch.optim.SGD``'s
    form, grows where λ exceeds ``(2 + 2β) / η``, with Nesterov's momentum
    ``(2 + 2β) / (η (1 + 2β))`` (arXiv 2103.00065). Full-batch training rises to a ratio of about 1
    and hovers there; minibatch training stays below, at no fixed level.

    Dampening d multiplies the step by 1 - d (our derivation: the velocity is 1 - d times that of
    the same gradients undamped). Weight decay adds its coefficient to every curvature; where groups
    differ in it, the largest is taken, so that the ratio is at most that much too high.

    Args:
        eigenvalue: of the Hessian of the loss without the decay, over the parameters trained.
        optimizer: with the learning rate of the step in question.

    Returns:
        The ratio, 1 at the edge; None where there is no single threshold: an optimiser other than
        SGD, ascent (``maximize``), momentum of 1 or more, dampening above 1, groups of trainable
        parameters that differ in step, momentum or dampening, or none at all.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    groups = [g for g in optimizer.param_groups if any(p.requires_grad for p in g["params"])]
    kinds = {
        (float(g["lr"]), g["momentum"], g["dampening"], g["nesterov"], g["maximize"])
        for g in groups
    }
    if len(kinds) != 1:
        return None
    ((step, momentum, dampening, nesterov, maximize),) = kinds
    if maximize or momentum >= 1 or dampening > 1:
        return None
    decay = max(float(g["weight_decay"]) for g in groups)
    factor = 1 + 2 * momentum if nesterov else 1 - dampening if momentum else 1
    return float((eigenvalue + decay) * step * factor / (2 + 2 * momentum))
