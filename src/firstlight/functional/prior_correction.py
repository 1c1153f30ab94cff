"""The prior that a classifier carries, and how to put another in its place."""

from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

from firstlight.functional.class_weights import check_counts
from firstlight.functional.ranks import Ranks
from firstlight.functional.retrained_head import check_per_class

SMALLEST = 1e-8
"""Least prior of a class; what lies below is raised to it, and counted."""
SAME = 1e-3
"""Total variation below which the correction is logit adjustment."""
CHUNK = 1 << 22


class EffectivePrior:
    """Mean posterior of a classifier over the examples it is shown, exact under any batching.

    ``q = mean_i softmax(z(x_i) + offsets)``; labels are not used. ``z`` in float32 or as given,
    probabilities and their sum in float64. Prior2Posterior, arXiv 2412.16540, after the abstract
    and secondary descriptions; this project has not compared with the paper's full text.

    Args:
        num_classes: K.
        offsets: (K,), what the training loss added to the logits: 0 for cross-entropy, ``tau log
            pi`` for logit-adjusted and balanced-softmax losses. Left out for such a model, q is not
            its prior.
        device: where the sum lives; that of the group's backend, where ranks reduce.
    """

    def __init__(
        self,
        num_classes: int,
        offsets: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        none = torch.zeros(num_classes)
        self.offsets = check_per_class(none if offsets is None else offsets, num_classes, "offsets")
        self.total = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.mass = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, logits: Tensor, sample_weights: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: (N, K), from eval mode, without augmentation or mixing.
            sample_weights: (N,), those of training (of a class-weighted or re-sampled model), or
                those that weigh a hold-out back to the training distribution.

        Raises:
            ValueError: on another shape, or logits that are not finite, naming the example.
        """
        classes = len(self.total)
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"expected logits (N, {classes}), got {tuple(logits.shape)}")
        weights = torch.ones(len(logits)) if sample_weights is None else sample_weights
        if weights.shape != logits.shape[:1] or not (weights >= 0).all():
            raise ValueError("sample_weights must be (N,), none below 0")
        bad = (~logits.isfinite().all(1)).nonzero()
        if len(bad):
            raise ValueError(
                f"logits of example {int(bad[0])} of the batch are not finite: a prior of them "
                "would not be either; look at its input and at the precision of the forward pass"
            )
        weights = weights.to(logits.device, torch.float64)
        offsets = self.offsets.to(logits.device)
        rows = max(1, CHUNK // classes)
        parts = torch.split(logits.detach(), rows), torch.split(weights, rows)
        for part, w in zip(*parts, strict=True):
            self.total += (w @ (part.double() + offsets).softmax(1)).to(self.total)
        self.mass += weights.sum().to(self.mass)

    def reduce(self, ranks: Ranks) -> None:
        """Add up over all ranks, on all of them. Collective."""
        self.total, self.mass = ranks.sum(self.total), ranks.sum(self.mass)

    def compute(self) -> Tensor:
        """Return q, (K,) float64, at least 1e-8 everywhere, of sum 1.

        Raises:
            ValueError: before any example.
        """
        if not self.mass > 0:
            raise ValueError("no examples were shown: there is no prior to estimate")
        q = (self.total / self.mass).clamp(min=SMALLEST).cpu()
        return q / q.sum()


def effective_prior(
    logits: Tensor, *, offsets: Tensor | None = None, sample_weights: Tensor | None = None
) -> Tensor:
    """Mean posterior (K,) over logits (N, K); see `EffectivePrior`, which does it by batches."""
    prior = EffectivePrior(logits.shape[-1], offsets, logits.device)
    prior.update(logits, sample_weights)
    return prior.compute()


def prior_offset(
    prior: Tensor,
    *,
    offsets: Tensor | None = None,
    tau: float = 1.0,
    target_prior: Tensor | None = None,
) -> Tensor:
    """What to add to raw logits, or to the last layer's bias: ``o - tau log p + log u``.

    The corrected posterior is proportional to ``softmax(z + o) u / p``. With the effective prior
    as p it is Prior2Posterior (arXiv 2412.16540, see `EffectivePrior`); with class frequencies,
    post-hoc logit adjustment (arXiv 2007.07314). Offset and tau in one formula are this project's
    own generalisation.

    The trap: of losses that scale logits (vector scaling, CDT, LDAM) the test rule is raw logits,
    and no correction is established; their offsets alone are not what the loss added.

    Args:
        prior: p, (K,), above 0; scaled to sum 1.
        offsets: o, what the training loss added to the logits; default 0.
        tau: 0 leaves the prior in.
        target_prior: u, (K,), above 0, scaled to sum 1; default uniform.

    Returns:
        (K,) float64, of mean 0.

    Raises:
        ValueError: on other shapes, priors that are not above 0, or a tau that is not finite.
    """
    classes = len(prior)
    p = check_per_class(prior, classes, "prior", positive=True)
    u = torch.ones(classes) if target_prior is None else target_prior
    u = check_per_class(u, classes, "target_prior", positive=True)
    o = check_per_class(torch.zeros(classes) if offsets is None else offsets, classes, "offsets")
    if not abs(tau) < float("inf"):
        raise ValueError(f"tau must be finite, not {tau}")
    shift = o - tau * (p / p.sum()).log() + (u / u.sum()).log()
    return shift - shift.mean()


def correct_logits(
    logits: Tensor,
    prior: Tensor,
    *,
    offsets: Tensor | None = None,
    tau: float = 1.0,
    target_prior: Tensor | None = None,
) -> Tensor:
    """Add `prior_offset` to logits (..., K), in their own type; see there for the arguments.

    Example:
        >>> logits = torch.tensor([[2.0, 1.9]])  # of a classifier that saw 9 of 10 in class 0
        >>> correct_logits(logits, torch.tensor([0.9, 0.1])).argmax(1).item()
        1
    """
    shift = prior_offset(prior, offsets=offsets, tau=tau, target_prior=target_prior)
    if logits.shape[-1:] != shift.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not end in {len(shift)} classes")
    return logits + shift.to(logits)


@dataclass(frozen=True)
class PriorDistance:
    """How far a classifier's prior is from the frequencies of its classes.

    Attributes:
        total_variation: half the sum of absolute differences, in [0, 1].
        spearman: rank correlation, in [-1, 1]; NaN for a constant prior.
        entropy: of the effective prior, in nats; log K where it is uniform.
        largest_ratio: of the effective prior's largest to its smallest class.
        raised: classes at the smallest prior allowed: their corrections are bounds.
        sentence: what follows.
    """

    total_variation: float
    spearman: float
    entropy: float
    largest_ratio: float
    raised: int
    sentence: str


def prior_distance(prior: Tensor, counts: Tensor) -> PriorDistance:
    """Compare an effective prior with the class frequencies, and say what it changes.

    In sample and at a stationary point of cross-entropy with an unpenalised bias, ``q - pi`` is the
    gradient by the bias, hence 0, and Prior2Posterior is logit adjustment exactly (this project's
    own derivation). They differ by bias decay or no bias, label smoothing, mixing, BatchNorm,
    early stopping, or a held-out estimate.

    Args:
        prior: q, (K,), above 0.
        counts: training examples of each class, (K,).

    Raises:
        ValueError: on other shapes, or a class without examples.
    """
    n = check_counts(counts)
    q = check_per_class(prior, len(n), "prior", positive=True)
    q, pi = q / q.sum(), n / n.sum()
    distance = float((q - pi).abs().sum()) / 2
    constant = bool((q == q[0]).all() or (pi == pi[0]).all())
    rank = float("nan") if constant else float(spearmanr(q.numpy(), pi.numpy()).statistic)
    if distance < SAME:
        sentence = "identical to logit adjustment here"
    else:
        most = int((q - pi).abs().argmax())
        sentence = (
            f"differs from logit adjustment: total variation {distance:.3f}, most in class {most} "
            f"(effective prior {float(q[most]):.4f}, frequency {float(pi[most]):.4f})"
        )
    return PriorDistance(
        total_variation=distance,
        spearman=rank,
        entropy=float(torch.special.entr(q).sum()),
        largest_ratio=float(q.max() / q.min()),
        raised=int((q <= SMALLEST * (1 + 1e-6)).sum()),
        sentence=sentence,
    )
