"""What a classifier does to its classes, in a few sums that ranks can add: for comparing heads."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firstlight.functional.per_class import score_examples
from firstlight.functional.ranks import ALONE, Ranks
from firstlight.functional.retrained_head import check_per_class

BINS = 15
"""Of equal width over the confidence, as in `calibration`."""


@dataclass(frozen=True)
class ClassifierScores:
    """Accuracies and calibration of one classifier on one data set.

    Attributes:
        accuracy: (K,) float64 in [0, 1]; NaN for a class without examples.
        counts: (K,) float64, examples of each class.
        ece: expected calibration error, in [0, 1]; NaN where scores are no log-posteriors.
        brier: mean summed squared error, in [0, 2]; NaN likewise.
    """

    accuracy: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    ece: float
    brier: float

    @property
    def micro(self) -> float:
        """Accuracy over examples."""
        return self.under(self.counts)

    @property
    def macro(self) -> float:
        """Mean accuracy over the classes that have examples: that under the uniform prior."""
        return float(self.accuracy.nanmean())

    @property
    def worst(self) -> float:
        """Lowest accuracy of a class that has examples."""
        return float(self.accuracy[self.worst_class])

    @property
    def worst_class(self) -> int:
        """Its number, the lower one on a tie."""
        return int(self.accuracy.nan_to_num(nan=float("inf")).argmin())

    def under(self, prior: Tensor) -> float:
        """Accuracy if classes came as often as ``prior`` (K,) says; absent classes are left out.

        Raises:
            ValueError: on another shape, or where no class of the prior has examples.
        """
        weights = check_per_class(prior, len(self.counts), "prior")
        weights = weights.where(self.counts > 0, 0.0)
        if not weights.sum() > 0:
            raise ValueError("no class of the prior has examples: there is no accuracy under it")
        return float(weights @ self.accuracy.nan_to_num() / weights.sum())


class ScoreSums:
    """The sums behind `ClassifierScores`, batch by batch, exact under any batching and any ranks.

    Args:
        num_classes: K.
        device: where sums live; that of the group's backend, where ranks reduce.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        # Rows: examples, correct ones. A confidence of 1 has a bin of its own, as in torchmetrics.
        self.classes = torch.zeros(2, num_classes, dtype=torch.float64, device=device)
        self.bins = torch.zeros(2, BINS + 1, dtype=torch.float64, device=device)
        self.brier = torch.zeros(1, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (N, K) and targets (N,).

        Raises:
            ValueError: on bad targets.
        """
        scores, device = score_examples(logits, targets), self.classes.device
        # Neither the first of equal logits nor one that is NaN is right by its place alone.
        hit = (scores.pred == targets) & (scores.rank_true == 0)
        correct = hit.to(device, torch.float64)
        target = targets.to(device)
        self.classes[0] += torch.bincount(target, minlength=self.classes.shape[1])
        self.classes[1].index_add_(0, target, correct)
        confidence = scores.p_pred.to(device).double()
        edges = torch.linspace(0, 1, BINS + 1, device=device, dtype=torch.float64)
        place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, BINS)
        self.bins[0].index_add_(0, place, confidence)
        self.bins[1].index_add_(0, place, correct)
        self.brier += scores.brier.to(device).double().sum()

    def compute(self, probabilities: bool = True, ranks: Ranks = ALONE) -> ClassifierScores:
        """Return the scores over all ranks; see `score_classifier`. Collective."""
        classes = self.classes.shape[1]
        parts = [self.classes.flatten(), self.bins.flatten(), self.brier]
        sums = ranks.sum(torch.cat(parts)).cpu()
        counts, right = sums[: 2 * classes].view(2, classes)
        total = float(counts.sum())
        if not total:
            raise ValueError("no examples to score")
        confident, correct = sums[2 * classes : -1].view(2, BINS + 1)
        nothing = float("nan")
        return ClassifierScores(
            accuracy=right / counts,
            counts=counts,
            ece=float((confident - correct).abs().sum()) / total if probabilities else nothing,
            brier=float(sums[-1]) / total if probabilities else nothing,
        )


def score_classifier(
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    probabilities: bool = True,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> ClassifierScores:
    """Score a classifier by its logits.

    Args:
        batches: logits (N, K) and targets (N,) of each; none at all is allowed on some ranks.
        num_classes: K.
        probabilities: whether the softmax of the logits means anything; scores of a squared loss
            are no log-posteriors, and have no calibration.
        device: see `ScoreSums`.
        ranks: processes that hold a part of the examples each. Collective.

    Raises:
        ValueError: on bad targets, or without any example.
    """
    sums = ScoreSums(num_classes, device)
    for logits, targets in batches:
        sums.update(logits, targets)
    return sums.compute(probabilities, ranks)
