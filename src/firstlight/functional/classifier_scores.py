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

TEMPERATURES = tuple(2 ** (step / 8) for step in range(-24, 25))
"""Tried for temperature scaling: 1/8 to 8, eight an octave."""

CHUNK = 1 << 22
"""Most numbers held at once while they are."""


@dataclass(frozen=True)
class ClassifierScores:
    """Accuracies and calibration of one classifier on one data set.

    Attributes:
        accuracy: (K,) float64 in [0, 1]; NaN for a class without examples.
        counts: (K,) float64, examples of each class.
        ece: expected calibration error, in [0, 1]; NaN where scores are no log-posteriors.
        brier: mean summed squared error, in [0, 2]; NaN likewise.
        temperature: that of ``TEMPERATURES`` by which logits are to be divided for the lowest
            cross-entropy (Guo et al., 1706.04599); NaN likewise. It changes no prediction.
        ece_scaled: calibration error after that, cross-fitted: each half of the examples at the
            temperature that is best for the other half, so that none is scored by one that has
            seen it. NaN likewise, or where there is one half only.
    """

    accuracy: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    ece: float
    brier: float
    temperature: float
    ece_scaled: float

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

    Cost: of the 49 temperatures, as many exponentials of each logit.

    Args:
        num_classes: K.
        device: where sums live; that of the group's backend, where ranks reduce.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        # Rows: examples, correct ones.
        self.classes = torch.zeros(2, num_classes, dtype=torch.float64, device=device)
        self.bins = torch.zeros(2, BINS + 1, dtype=torch.float64, device=device)
        self.brier = torch.zeros(1, dtype=torch.float64, device=device)
        # By half: examples; and by temperature: loss and, by bin, confidence less correct examples.
        grid = (2, len(TEMPERATURES))
        self.halves = torch.zeros(2, dtype=torch.float64, device=device)
        self.losses = torch.zeros(*grid, dtype=torch.float64, device=device)
        self.gaps = torch.zeros(*grid, BINS + 1, dtype=torch.float64, device=device)
        self._seen = 0

    def update(self, logits: Tensor, targets: Tensor, positions: Tensor | None = None) -> None:
        """Add logits (N, K) and targets (N,).

        Args:
            logits: floating.
            targets: integers in [0, K).
            positions: (N,), the examples' numbers among those of all ranks, even ones in one half
                and odd ones in the other; default: in the order in which they come.

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
        place = _bins(confidence)
        self.bins[0].index_add_(0, place, confidence)
        self.bins[1].index_add_(0, place, correct)
        self.brier += scores.brier.to(device).double().sum()
        if positions is None:
            positions = torch.arange(self._seen, self._seen + len(targets))
        self._seen += len(targets)
        for half in (0, 1):
            own = (positions % 2 == half).to(logits.device)
            self._scale(half, logits[own], targets.to(logits.device)[own], correct[own.to(device)])

    def _scale(self, half: int, logits: Tensor, targets: Tensor, correct: Tensor) -> None:
        """Add examples of one half at every temperature."""
        if not len(targets):
            return
        device = self.losses.device
        self.halves[half] += len(targets)
        work = logits if logits.dtype == torch.float64 else logits.float()
        work = work - work.max(1, keepdim=True).values
        true = work.gather(1, targets[:, None])[:, 0]
        inverse = 1 / torch.tensor(TEMPERATURES, dtype=work.dtype, device=work.device)
        rows = max(1, CHUNK // work.numel())
        for first in range(0, len(TEMPERATURES), rows):
            part = slice(first, first + rows)
            total = (inverse[part, None, None] * work).exp_().sum(2)
            loss = total.log() - inverse[part, None] * true
            self.losses[half, part] += loss.to(device).sum(1, dtype=torch.float64)
            confidence = (1 / total).to(device).double()
            self.gaps[half, part].scatter_add_(1, _bins(confidence), confidence - correct)

    def compute(self, probabilities: bool = True, ranks: Ranks = ALONE) -> ClassifierScores:
        """Return the scores over all ranks; see `score_classifier`. Collective."""
        parts = [self.classes, self.bins, self.brier, self.halves, self.losses, self.gaps]
        sums = ranks.sum(torch.cat([part.flatten() for part in parts])).cpu()
        split = torch.split(sums, [part.numel() for part in parts])
        (counts, right), bins, brier, halves, losses, gaps = (
            one.view_as(part) for one, part in zip(split, parts, strict=True)
        )
        total = float(counts.sum())
        if not total:
            raise ValueError("no examples to score")
        measured = (float("nan"),) * 4
        if probabilities:
            known = losses.nan_to_num(nan=float("inf"))
            best = TEMPERATURES[int(known.sum(0).argmin())]
            scaled = _scaled_gap(known, gaps) if halves.all() else float("nan")
            gap = float((bins[0] - bins[1]).abs().sum())
            measured = gap / total, float(brier) / total, best, scaled / total
        return ClassifierScores(right / counts, counts, *measured)


def _bins(confidence: Tensor) -> Tensor:
    """The bin of each confidence; 1 has one of its own, as in torchmetrics."""
    edges = torch.linspace(0, 1, BINS + 1, device=confidence.device, dtype=torch.float64)
    return (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, BINS)


def _scaled_gap(losses: Tensor, gaps: Tensor) -> float:
    """Calibration error times examples, each half at the temperature of the other."""
    best = losses.argmin(1)
    return float((gaps[0, best[1]] + gaps[1, best[0]]).abs().sum())


def score_classifier(
    batches: Iterable[tuple[Tensor, ...]],
    num_classes: int,
    *,
    probabilities: bool = True,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> ClassifierScores:
    """Score a classifier by its logits.

    Args:
        batches: logits (N, K) and targets (N,) of each, and positions (N,) where known (see
            `ScoreSums.update`); none at all is allowed on some ranks.
        num_classes: K.
        probabilities: whether the softmax of the logits means anything; scores of a squared loss
            are no log-posteriors, and have no calibration.
        device: see `ScoreSums`.
        ranks: processes that hold a part of the examples each. Collective.

    Raises:
        ValueError: on bad targets, or without any example.
    """
    sums = ScoreSums(num_classes, device)
    for logits, targets, *positions in batches:
        sums.update(logits, targets, *positions)
    return sums.compute(probabilities, ranks)
