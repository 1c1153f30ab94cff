"""How much the loss rises when the weights move: on average over random noise."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from firstlight.functional.probe_loss import ProbeLoss, moved_by, require_positive
from firstlight.functional.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Sharpness:
    """A rise of the loss when the weights move.

    Attributes:
        value: of the mean loss, natural logarithm; negative where noise lowers the loss.
        se: standard error of the value; NaN where there is too little to tell it from.
        n: examples.
        loss: mean loss at the weights.
        draws: losses away from the weights that each batch was evaluated for.
    """

    value: float
    se: float
    n: int
    loss: float
    draws: int = 0


def average_sharpness(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    rho: float = 0.01,
    noise: Literal["normal", "uniform"] = "normal",
    adaptive: bool = False,
    draws: int = 15,
    antithetic: Literal["auto"] | bool = "auto",
    batch_size: int = 256,
    params: Iterable[str] | None = None,
    normalize_logits: bool = False,
    seed: int = 0,
    ranks: Ranks = ALONE,
) -> Sharpness:
    """Average rise of the loss under random noise in the weights (arXiv 2302.07011, 2403.15210).

        S = E_batches E_noise[ L(w + rho c ε) ] - L(w)

    with L the mean cross-entropy of a batch in eval mode, ε drawn for every parameter from N(0, 1)
    or, with ``noise="uniform"``, from [-1, 1], and c = 1 or, adaptive, c = |w|. For small rho
    S is ``rho² / 2`` times the trace of the Hessian (a sixth for uniform noise), for larger ones
    it knows no Taylor series. It may be negative.

    rho is the standard deviation of each weight, not the length of the displacement, which is
    ``rho sqrt(P)``: do not compare with `worst_case_sharpness` at the same rho.

    The noise of a parameter depends on ``seed``, the number of the batch, the number of the draw
    and the parameter's name alone: measured at every step of a run it is the same noise (common
    random numbers, which makes differences between steps more precise than either value), and
    freezing one parameter changes no other's. It is drawn on the parameters' device, whose kinds
    differ in what they draw.

    Three ways to draw N displacements; let O and E be the variances of the odd and the even part of
    ``L(w + δ)`` in δ, to second order ``ρ²‖c g‖²`` and ``½ρ⁴‖C H C‖²``:

    - ``antithetic=False``: independent, variance ``(O + E) / N``.
    - ``True``: pairs of opposite sign, variance ``2E / N``: better only where O > E.
    - ``"auto"``: jointly normal with correlation ``-1 / (N - 1)`` between any two, each N(0, rho²)
      as before, so that they sum to zero and the linear term cancels (antithetic variates for N
      draws, after Craiu and Meng, Annals of Statistics 33, 2005; N = 2 is a pair). Variance
      ``E / (N - 1)`` to second order, which is below that of pairs and needs no choice by
      condition; higher orders vary as among independent draws. Uniform noise is the image of such
      normal draws under their distribution function: the linear term then shrinks 22-fold for
      large N. The use for sharpness is ours.

    The standard error is over the noise only, for this probe set: NaN for one draw or one pair, and
    below three draws of ``"auto"``. For the latter no spread of the losses shows it, since their
    sum is what cancels; it is that of the losses less a multiple of ``g·δ``, and errs upwards
    where the loss is far from linear in ρ.

    Cost, a batch: ``draws`` + 1 forward passes (pairs: an odd number of draws is rounded up), and
    with ``"auto"`` and three draws or more one backward pass, for the standard error. Memory beyond
    the model's: three vectors of its parameters' size, a forward pass of one batch, and a backward
    pass of 64 examples. In float32 a rise below 1e-6 of the loss is lost in rounding.

    Args:
        model: called as ``model(inputs) -> logits (n, K)``; measured in eval mode, then as before.
        inputs: a tensor, or any nesting of tensors, with examples along the first axis.
        targets: class indices (n,) or probabilities (n, K).
        rho: standard deviation (uniform: half width) of the noise in a weight, or, adaptive, in a
            weight's share of itself.
        noise: its distribution.
        adaptive: scale each weight's noise by the weight.
        draws: displacements a batch.
        antithetic: how they hang together, see above.
        batch_size: each batch has its own noise; the mean loss of a batch is what is perturbed.
        params: names of parameters to move; None: all that require gradients.
        normalize_logits: subtract each example's mean logit and divide by the norm of the rest,
            which takes the scale of the logits away.
        seed: of the noise; leave it the same along a run.
        ranks: processes that share the batches; the result is the same on any number. Collective.

    Returns:
        Value and standard error in nats.

    Raises:
        ValueError: on a bad argument, an empty probe set, no parameter to move, half precision,
            targets that do not fit the logits, logits that are not finite, here or under noise.
        RuntimeError: where another rank met an error.
    """
    _check_arguments(rho, noise, draws, antithetic)
    probe = ProbeLoss(
        model,
        inputs,
        targets,
        params=params,
        batch_size=batch_size,
        normalize_logits=normalize_logits,
    )
    cloud = _Cloud(probe, rho, noise, adaptive, draws, antithetic, seed)
    with probe.measuring():
        batches = probe.over_batches(ranks, cloud.measure)
    losses, rises, variances = np.array(batches).T
    shares = np.array(probe.shares)
    return Sharpness(
        value=float(shares @ rises),
        se=math.sqrt(float(shares**2 @ variances)),
        n=probe.count,
        loss=float(shares @ losses),
        draws=cloud.draws,
    )


class _Cloud:
    """Random displacements of the weights, and the losses there."""

    def __init__(
        self,
        probe: ProbeLoss,
        rho: float,
        noise: str,
        adaptive: bool,
        draws: int,
        antithetic: Literal["auto"] | bool,
        seed: int,
    ) -> None:
        self.probe, self.rho, self.noise, self.seed = probe, rho, noise, seed
        self.draws = draws + draws % 2 if antithetic is True else draws
        # A set of correlated draws: all, a pair, or a single one.
        self.together = self.draws if antithetic == "auto" else 1 + antithetic
        self.scale = probe.weights.abs() if adaptive else None

    def measure(self, batch: int, rows: slice) -> tuple[float, float, float]:
        """Return a batch's loss, its rise, and the variance of the rise."""
        weights = self.probe.weights
        gradient = None
        if self.together > 2:
            loss, gradient = self.probe.loss_and_gradient(rows, weights)
        else:
            loss = self.probe.loss(rows, weights)
        rises, slopes = np.zeros(self.draws), np.zeros(self.draws)
        for draw, moved in enumerate(self.displacements(batch)):
            if gradient is not None:
                slopes[draw] = float(gradient @ moved)
            with moved_by(self.rho):
                rises[draw] = self.probe.loss(rows, moved.add_(weights)) - loss
        if gradient is None:
            return loss, rises.mean(), _variance_of_mean(rises.reshape(-1, self.together).mean(1))
        return loss, rises.mean(), self.variance_beside(rises, slopes)

    def variance_beside(self, rises: np.ndarray, slopes: np.ndarray) -> float:
        """Variance of the mean of draws whose linear part, told by the slopes, cancels."""
        rises, slopes = rises - rises.mean(), slopes - slopes.mean()
        square = slopes @ slopes
        factor = (slopes @ rises) / square if square else 0.0
        left = rises - factor * slopes
        count = self.draws
        variance = (left @ left) / (count - 2) / (count - 1)
        if self.noise == "uniform":
            # What the distribution function leaves of the correlation -1 / (count - 1).
            kept = 1 - (count - 1) * 6 / math.pi * math.asin(0.5 / (count - 1))
            variance += kept * factor**2 * square / (count - 1) / count
        return float(variance)

    def displacements(self, batch: int) -> Iterator[Tensor]:
        """Yield all displacements (P,) for a batch, each a tensor that may be written to."""
        for first in range(0, self.draws, self.together):
            for moved in self.correlated(batch, first):
                if self.noise == "uniform":
                    moved = torch.erf_(moved.div_(math.sqrt(2)))
                moved *= self.rho
                yield moved if self.scale is None else moved.mul_(self.scale)

    def correlated(self, batch: int, first: int) -> Iterator[Tensor]:
        """Yield standard normal draws (P,) that sum to zero, unless there is only one.

        One after the other, given the sum of those before: the mean is its share of what must come
        back, and the variance what correlation -1 / (N - 1) leaves.
        """
        size = self.together
        if size == 1:
            yield self.probe.normal(self.seed, batch, first)
            return
        total = torch.zeros_like(self.probe.weights)
        for left in range(size, 1, -1):
            moved = self.probe.normal(self.seed, batch, first + size - left)
            moved *= math.sqrt(size * (left - 1) / ((size - 1) * left))
            moved.sub_(total, alpha=1 / left)
            total += moved
            yield moved
        yield total.neg_()


def _variance_of_mean(values: np.ndarray) -> float:
    """Variance of the mean of independent values; NaN for one."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan


def _check_arguments(rho: float, noise: str, draws: int, antithetic: object) -> None:
    require_positive(rho=rho)
    if noise not in ("normal", "uniform"):
        raise ValueError(f"noise must be 'normal' or 'uniform', not {noise!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    if antithetic not in (True, False, "auto"):
        raise ValueError(f"antithetic must be True, False or 'auto', not {antithetic!r}")
