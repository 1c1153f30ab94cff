"""Calibration of probabilities, and the one number that restores most of it."""

import warnings
from dataclasses import dataclass
from math import exp

import torch
from scipy.optimize import brentq
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from firstlight.functional.per_class import score_examples

SPAN = 7.0
"""Temperatures are sought in [exp(-7), exp(7)]."""


@dataclass(frozen=True)
class Calibration:
    """How well probabilities are what they say.

    Attributes:
        ece: expected calibration error of the highest probability, in [0, 1].
        brier: mean over examples of the summed squared error, in [0, 2].
        nll: mean negative log-likelihood, in nats.
    """

    ece: float
    brier: float
    nll: float


def calibration(logits: Tensor, targets: Tensor, bins: int = 15) -> Calibration:
    """Measure calibration over all examples alike; by class: `PerClassCounts`.

    Args:
        logits: floating, (N, K), N at least 1.
        targets: integers in [0, K), (N,).
        bins: of equal width over the confidence.

    Raises:
        ValueError: as `score_examples`, or without examples.
    """
    if not len(targets):
        raise ValueError("no examples: calibration is a mean over them")
    scores = score_examples(logits, targets)
    probabilities = logits.double().softmax(1)
    ece = multiclass_calibration_error(
        probabilities, targets, num_classes=logits.shape[1], n_bins=bins, norm="l1"
    )
    return Calibration(
        ece=float(ece),
        brier=float(scores.brier.double().mean()),
        nll=float(scores.nll.double().mean()),
    )


def fit_temperature(logits: Tensor, targets: Tensor, sample_weights: Tensor | None = None) -> float:
    """Temperature T that minimises the cross-entropy of ``logits / T`` (Guo et al., 1706.04599).

    Convex in 1/T, found to 1e-10. It changes no prediction. Fit it on held-out data of the prior
    that the probabilities are meant for (weigh examples where the hold-out has another).

    Args:
        logits: floating, (N, K), held out.
        targets: integers in [0, K), (N,).
        sample_weights: (N,), 0 or more.

    Returns:
        T, in [exp(-7), exp(7)]; at an end, with a warning, where the best is beyond (all examples
        right, or logits that say nothing).

    Raises:
        ValueError: on bad targets or logits that are not finite.
    """
    score_examples(logits, targets)
    if not logits.isfinite().all():
        raise ValueError("logits are not finite: no temperature helps them")
    z = logits.double()
    true = z.gather(1, targets[:, None])[:, 0]
    weights = torch.ones_like(true) if sample_weights is None else sample_weights.to(true)
    if weights.shape != true.shape or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError("sample_weights must be (N,), 0 or more, not all 0")

    def slope(log_t: float) -> float:
        """Derivative of the mean loss by 1/T, which falls as T rises."""
        p = (z * exp(-log_t)).softmax(1)
        return float(weights @ ((p * z).sum(1) - true))

    ends = slope(-SPAN), slope(SPAN)
    if ends[0] <= 0 or ends[1] >= 0:
        end = -SPAN if ends[0] <= 0 else SPAN
        warnings.warn(
            f"no finite temperature is best: {exp(end):.2g} is the end of the range; "
            + ("every example is right" if end < 0 else "the logits say nothing of the targets"),
            stacklevel=2,
        )
        return exp(end)
    return exp(brentq(slope, -SPAN, SPAN, xtol=1e-12, rtol=1e-12))
