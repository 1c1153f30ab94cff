"""How much the loss can rise in a small ball around the weights: Auto-PGD."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from firstlight.functional.probe_loss import ProbeLoss, moved_by, require_positive
from firstlight.functional.ranks import ALONE, Ranks
from firstlight.functional.sharpness import Sharpness

_MOMENTUM = 0.75
"""Share of the gradient step in a move after the first; the rest is the previous move."""

_RISING = 0.75
"""Least share of moves that must raise the loss for the step to stay as long as it is."""


def worst_case_sharpness(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    rho: float = 0.01,
    norm: Literal["l2", "linf"] = "l2",
    adaptive: bool = False,
    steps: int = 15,
    batch_size: int = 256,
    params: Iterable[str] | None = None,
    normalize_logits: bool = False,
    ranks: Ranks = ALONE,
) -> Sharpness:
    """Highest rise of the loss in a ball around the weights (arXiv 2302.07011, 2403.15210).

        S = E_batches max_{‖e‖ <= rho} L(w + c e) - L(w)

    with L the mean cross-entropy of a batch in eval mode, c = 1 or, adaptive, c = |w|, and the norm
    that of the whole vector: for small rho S is ``rho ‖c g‖₂`` for L2 and ``rho ‖c g‖₁`` for Linf,
    g the gradient. Never negative, and a lower bound of the maximum: it is the best of ``steps``
    points. It depends on ``batch_size``, since the maximum for fewer examples is higher.

    Auto-PGD (arXiv 2003.01690) in e, started at 0, hence without randomness. The public code for
    sharpness differs: after it halves the step it goes on from a point at which the gradient was
    not taken, its adaptive L2 step is not the steepest, and a weight of zero stops its projection.

    Cost, a batch: ``steps`` forward and backward passes and one more forward pass, fewer where the
    gradient vanishes: a point's loss and the gradient for the next move share a forward pass.
    Memory beyond the model's: eight vectors of its parameters' size and the passes of 64 examples.

    Args:
        model: called as ``model(inputs) -> logits (n, K)``; measured in eval mode, then as before.
        inputs: a tensor, or any nesting of tensors, with examples along the first axis.
        targets: class indices (n,) or probabilities (n, K).
        rho: radius of the ball, in the weights' units or, adaptive, as a share of them.
        norm: of the ball.
        adaptive: scale each weight's move by the weight; weights of zero stay.
        steps: points evaluated.
        batch_size: examples that share one maximum.
        params: names of parameters to move; None: all that require gradients.
        normalize_logits: subtract each example's mean logit and divide by the norm of the rest,
            which takes the scale of the logits away.
        ranks: processes that share the batches; the result is the same on any number. Collective.

    Returns:
        Value in nats; its standard error over batches as a sample of batches of the same size, NaN
        where there is only one. ``draws`` is the highest number of points that a batch needed.

    Raises:
        ValueError: on a bad argument, an empty probe set, no parameter to move, half precision,
            targets that do not fit the logits, logits that are not finite, here or in the ball.
        RuntimeError: where another rank met an error.
    """
    require_positive(rho=rho)
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf', not {norm!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    probe = ProbeLoss(
        model,
        inputs,
        targets,
        params=params,
        batch_size=batch_size,
        normalize_logits=normalize_logits,
    )
    ball: _L2 | _Linf = _L2(rho) if norm == "l2" else _Linf(rho)
    scale = probe.weights.abs() if adaptive else torch.ones_like(probe.weights[:1])

    def measure(_: int, rows: slice) -> tuple[float, float, int]:
        def gradient_at(e: Tensor) -> tuple[float, Tensor]:
            with moved_by(rho):
                loss, gradient = probe.loss_and_gradient(rows, probe.weights + scale * e)
            if not bool(torch.isfinite(gradient).all()):
                raise ValueError(f"the gradient is not finite within rho={rho} of the weights")
            return loss, gradient * scale

        def loss_at(e: Tensor) -> float:
            with moved_by(rho):
                return probe.loss(rows, probe.weights + scale * e)

        return _auto_pgd(gradient_at, loss_at, torch.zeros_like(probe.weights), ball, steps)

    with probe.measuring():
        losses, rises, points = zip(*probe.over_batches(ranks, measure), strict=True)
    shares = np.array(probe.shares)
    value = float(shares @ np.array(rises))
    return Sharpness(
        value=value,
        se=_standard_error(np.array(rises) - value, shares),
        n=probe.count,
        loss=float(shares @ np.array(losses)),
        draws=max(points),
    )


def _standard_error(deviations: np.ndarray, shares: np.ndarray) -> float:
    """Of a weighted mean of batches; the usual one where the weights are equal."""
    count = len(shares)
    if count == 1:
        return math.nan
    return math.sqrt(float(shares**2 @ deviations**2) * count / (count - 1))


@dataclass(frozen=True)
class _L2:
    rho: float

    def ascent(self, gradient: Tensor) -> Tensor:
        """Steepest direction of length 1; the peak is divided out first lest squares underflow."""
        scaled = gradient / gradient.abs().max()
        return scaled.div_(scaled.norm())

    def project(self, e: Tensor) -> Tensor:
        length = float(e.norm())
        return e * (self.rho / length) if length > self.rho else e


@dataclass(frozen=True)
class _Linf:
    rho: float

    def ascent(self, gradient: Tensor) -> Tensor:
        """Steepest direction with coordinates of 1, those without slope at 0."""
        return gradient.sign()

    def project(self, e: Tensor) -> Tensor:
        return e.clamp(-self.rho, self.rho)


def _checkpoints(steps: int) -> set[int]:
    """Steps after which the step's length is reviewed (arXiv 2003.01690, section 3.2)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # A product such as .22 * 50 may lie above the integer that it is.
    marks = {math.ceil(steps * share - 1e-9) for share in shares[1:]}
    return {mark for mark in marks if mark <= steps}


def _auto_pgd(
    gradient_at: Callable[[Tensor], tuple[float, Tensor]],
    loss_at: Callable[[Tensor], float],
    start: Tensor,
    ball: _L2 | _Linf,
    steps: int,
) -> tuple[float, float, int]:
    """Climb from the centre; return the loss there, the highest rise, and the points evaluated."""
    checkpoints = _checkpoints(steps)
    e = previous = top_e = start
    centre, gradient = gradient_at(e)
    top, top_gradient, loss = centre, gradient, centre
    length, risen, reviewed, halved, top_then = 2 * ball.rho, 0, 0, True, centre
    points = 0
    while points < steps and bool(gradient.any()):
        aim = ball.project(e + length * ball.ascent(gradient))
        share = _MOMENTUM if points else 1
        moved = ball.project(e + share * (aim - e) + (1 - share) * (e - previous))
        e, previous, before = moved, e, loss
        points += 1
        if points == steps:
            top = max(top, loss_at(e))
            break
        loss, gradient = gradient_at(e)
        risen += loss > before
        if loss > top:
            top, top_e, top_gradient = loss, e, gradient
        if points in checkpoints:
            stalled = not halved and top == top_then
            halved = risen < _RISING * (points - reviewed) or stalled
            if halved:
                length /= 2
                e = previous = top_e
                loss, gradient = top, top_gradient
            top_then, risen, reviewed = top, 0, points
    return centre, top - centre, points
