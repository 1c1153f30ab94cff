"""The losses that long-tailed training is compared with, each one set of terms.

Formulas are published (of the papers named, or their official repositories) unless said otherwise.
"""

from collections.abc import Sequence
from math import pi
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.functional.class_count_loss import ClassCountLoss, LossTerms, focal_terms
from firstlight.functional.class_weights import class_weights

Normalise = Literal["weights", "count"]


class VectorScalingLoss(ClassCountLoss):
    """``CE(z_k (n_k/n_max)^gamma + tau log pi_k, y)`` (Kini et al., arXiv 2103.01550).

    Predict by z. ``gamma=0`` is logit adjustment, ``tau=0`` CDT.

    Args:
        gamma: 0 or above; the paper's code has .3, its README .2 for CIFAR-10-LT at factor 100.
        tau: 1 in the paper's code, 1.2 in that README.
        class_counts: see `ClassCountLoss`.
    """

    def __init__(
        self, gamma: float = 0.3, tau: float = 1.0, class_counts: Sequence[int] | None = None
    ) -> None:
        _check_finite(gamma=gamma, tau=tau)
        super().__init__(None)
        self.gamma, self.tau = gamma, tau
        _give(self, class_counts)

    def terms(self, counts: Tensor) -> LossTerms:
        """Scale and offset."""
        return LossTerms(
            scale=(counts / counts.max()) ** self.gamma if self.gamma else None,
            offset=self.tau * (counts / counts.sum()).log() if self.tau else None,
        )


class LogitAdjustedLoss(VectorScalingLoss):
    """``CE(z + tau log pi, y)`` (Menon et al., arXiv 2007.07314); predict by z.

    Args:
        tau: 1 is consistent for the balanced error.
        class_counts: see `ClassCountLoss`.
    """

    def __init__(self, tau: float = 1.0, class_counts: Sequence[int] | None = None) -> None:
        super().__init__(0.0, tau, class_counts)


class BalancedSoftmaxLoss(VectorScalingLoss):
    """``CE(z + log n, y)`` (Ren et al., arXiv 2007.10740): logit adjustment at tau = 1.

    Args:
        class_counts: see `ClassCountLoss`.
    """

    def __init__(self, class_counts: Sequence[int] | None = None) -> None:
        super().__init__(0.0, 1.0, class_counts)


class CDTLoss(VectorScalingLoss):
    """``CE(z_k (n_k/n_max)^gamma, y)``, class-dependent temperatures (Ye et al., arXiv 2001.01385).

    Predict by z.

    Args:
        gamma: at most .4 for CIFAR-10, .2 for CIFAR-100, .1 for iNaturalist in the paper.
        class_counts: see `ClassCountLoss`.
    """

    def __init__(self, gamma: float = 0.2, class_counts: Sequence[int] | None = None) -> None:
        super().__init__(gamma, 0.0, class_counts)


class ClassBalancedLoss(ClassCountLoss):
    """Cross-entropy weighted by ``(1-beta)/(1-beta^n_k)`` (Cui et al., arXiv 1901.05555).

    Weights sum to K. With ``gamma`` above 0 the softmax form of focal loss is weighted; the paper's
    own focal loss is a sigmoid for each class, which this is not. With ``deferred=0.8`` it is the
    deferred re-weighting of arXiv 1906.07413.

    Args:
        beta: in [0, 1).
        gamma: focal exponent.
        deferred: share of training without weights.
        normalise: see `ClassCountLoss`.
        until: share of training after which weights are left out again.
        class_counts: see `ClassCountLoss`.
    """

    def __init__(
        self,
        beta: float = 0.9999,
        gamma: float = 0.0,
        deferred: float = 0.0,
        normalise: Normalise = "weights",
        class_counts: Sequence[int] | None = None,
        until: float = 1.0,
    ) -> None:
        class_weights([1, 1], "effective_number", beta=beta)
        super().__init__(None, gamma, deferred, normalise, until)
        self.beta, self.gamma = beta, gamma
        _give(self, class_counts)

    def terms(self, counts: Tensor) -> LossTerms:
        """The weights."""
        weights = class_weights(counts, "effective_number", beta=self.beta)
        return LossTerms(weight=weights.per_class())


class CostSensitiveLoss(ClassCountLoss):
    """Cross-entropy weighted by ``(n_min/n_k)^exponent``.

    Args:
        exponent: 1 is inverse frequency, .5 the safer square root.
        deferred: share of training without weights.
        normalise: see `ClassCountLoss`.
        until: share of training after which weights are left out again.
        class_counts: see `ClassCountLoss`.
    """

    def __init__(
        self,
        exponent: float = 1.0,
        deferred: float = 0.0,
        normalise: Normalise = "weights",
        class_counts: Sequence[int] | None = None,
        until: float = 1.0,
    ) -> None:
        _check_finite(exponent=exponent)
        super().__init__(None, 0.0, deferred, normalise, until)
        self.exponent = exponent
        _give(self, class_counts)

    def terms(self, counts: Tensor) -> LossTerms:
        """The weights."""
        return LossTerms(weight=(counts.min() / counts) ** self.exponent)


class LDAMLoss(ClassCountLoss):
    """``CE(s (c_k - m_k 1[k = y]), y)``, ``m_k = max_margin (n_min/n_k)^(1/4)``, arXiv 1906.07413.

    ``c`` are cosines between features and class weights: the head has to be a `CosineHead`, without
    bias, and logits outside [-1, 1] are refused. With ``deferred`` (the paper: .8) the weights of
    `ClassBalancedLoss` come on after that share of training: LDAM-DRW. Predict by c.

    Args:
        max_margin: of the rarest class.
        scale: s.
        deferred: share of training without weights; 1 leaves them out altogether.
        beta: of the weights.
        class_counts: see `ClassCountLoss`.
    """

    def __init__(
        self,
        max_margin: float = 0.5,
        scale: float = 30.0,
        deferred: float = 1.0,
        beta: float = 0.9999,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        _check_finite(max_margin=max_margin, scale=scale)
        super().__init__(None, 0.0, deferred)
        self.max_margin, self.scale, self.beta = max_margin, scale, beta
        _give(self, class_counts)

    def terms(self, counts: Tensor) -> LossTerms:
        """Scale, margin and, where deferred to before the end, weights."""
        weights = class_weights(counts, "effective_number", beta=self.beta).per_class()
        return LossTerms(
            scale=torch.full_like(counts, self.scale),
            margin=self.scale * self.max_margin * (counts.min() / counts) ** 0.25,
            weight=weights if self.deferred < 1 else None,
        )

    def _check(self, logits: Tensor) -> None:
        super()._check(logits)
        largest = float(logits.detach().abs().max()) if len(logits) else 0.0
        if not largest <= 1.001:
            raise ValueError(
                f"LDAMLoss takes cosines in [-1, 1], but a logit is {largest:.3g} in size: put a "
                "CosineHead in the place of the linear head"
            )


class LabelAwareSmoothingLoss(ClassCountLoss):
    """Label smoothing that is stronger the more examples a class has (Zhong et al., 2104.00466).

    ``(1 - e_y) CE(z, y) + e_y mean_k CE(z, k)``, ``e`` rising from ``tail`` at the rarest class to
    ``head`` at the largest, along a sine (``concave``), a line, or a shifted sine (``convex``) in
    ``(n_y - n_min)/(n_max - n_min)``, as in the official repository. Meant for a second stage.

    Args:
        head: of the largest class, in [0, 1).
        tail: of the rarest, in [0, 1).
        shape: of the rise.
        class_counts: see `ClassCountLoss`.
    """

    def __init__(
        self,
        head: float = 0.3,
        tail: float = 0.0,
        shape: Literal["concave", "linear", "convex"] = "concave",
        class_counts: Sequence[int] | None = None,
    ) -> None:
        if not (0 <= head < 1 and 0 <= tail < 1):
            raise ValueError(f"head={head} and tail={tail} must lie in [0, 1)")
        if shape not in ("concave", "linear", "convex"):
            raise ValueError(f"shape must be 'concave', 'linear' or 'convex', not {shape!r}")
        super().__init__(None)
        self.head, self.tail, self.shape = head, tail, shape
        _give(self, class_counts)

    def terms(self, counts: Tensor) -> LossTerms:
        """The smoothing."""
        span = counts.max() - counts.min()
        place = (counts - counts.min()) / span if span > 0 else torch.ones_like(counts)
        if self.shape == "concave":
            place = (place * pi / 2).sin()
        elif self.shape == "convex":
            place = 1 + (1.5 * pi + place * pi / 2).sin()
        return LossTerms(smoothing=self.tail + (self.head - self.tail) * place)


class FocalLoss(nn.Module):
    """``(1 - p_y)^gamma CE``, softmax form, without class counts (Lin et al., arXiv 1708.02002).

    Args:
        gamma: 1 as in the long-tail comparisons of arXiv 1906.07413; 2 in the focal paper.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma must be finite, 0 or above, not {gamma}")
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over (N, K) logits and labels (N,), or probabilities (N, K)."""
        log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(1)
        given = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1])
        return (given.to(log_p) * focal_terms(log_p, self.gamma)).sum() / len(logits)


class CosineHead(nn.Module):
    """Cosines (N, K) between features (N, d) and K weight vectors: the head that LDAM needs.

    Args:
        in_features: d.
        num_classes: K.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return cosines."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


def _give(loss: ClassCountLoss, class_counts: Sequence[int] | None) -> None:
    if class_counts is not None:
        loss.set_class_counts(class_counts)


def _check_finite(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite, 0 or above, not {value}")
