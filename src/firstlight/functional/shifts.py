"""Accuracy on shifted test sets beside that on the own one: by section, by class, aggregated."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

ALEXNET_ERRORS: dict[str, float] = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948,
    "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324,
    "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's mean error over ImageNet-C's five severities, by which mCE divides."""


def scored_classes(loader: Any) -> list[int] | None:
    """The classes among which a loader's data set wants the largest logit sought; None: all."""
    found: list[int] | None = getattr(getattr(loader, "dataset", None), "scored_classes", None)
    return found


def restrict_logits(logits: Tensor, classes: Sequence[int] | None) -> Tensor:
    """Set the logits of all but some classes to minus infinity.

    ImageNet-R and ImageNet-A are scored so, each over its 200 of the 1,000 classes: prediction,
    rank and softmax are then those among the classes given, under their own numbers.

    Args:
        logits: floating, (N, C).
        classes: numbers in [0, C); None leaves the logits as they are.
    """
    if classes is None:
        return logits
    kept = torch.full_like(logits, -torch.inf)
    kept[:, classes] = logits[:, classes]
    return kept


def section_counts(
    target: NDArray[Any], pred: NDArray[Any], section: NDArray[Any], shape: tuple[int, int]
) -> tuple[Counts, Counts]:
    """Count examples, and those predicted rightly, by section and class.

    Args:
        target: class of each example, (N,).
        pred: prediction for each, (N,).
        section: section of each, (N,).
        shape: numbers of sections S and of classes C.

    Returns:
        Two arrays (S, C).
    """
    sections, classes = shape
    code = section.astype(np.int64) * classes + target
    counts = [np.bincount(c, minlength=sections * classes) for c in (code, code[target == pred])]
    n, correct = (c.reshape(shape).astype(np.int64) for c in counts)
    return n, correct


class SetAccuracy(NamedTuple):
    """How well a set is classified; shares in [0, 1], NaN where there is no example.

    Attributes:
        n: examples.
        top1: share of them that is right.
        macro: mean of the classes' accuracies, absent ones left out.
        worst_class: the class of the lowest accuracy, the first on a tie; -1: none.
        worst: its accuracy.
    """

    n: int
    top1: float
    macro: float
    worst_class: int
    worst: float


def set_accuracy(n: Counts, correct: Counts) -> SetAccuracy:
    """Summarise counts by class, (C,) each."""
    total = int(n.sum())
    if not total:
        return SetAccuracy(0, np.nan, np.nan, -1, np.nan)
    by_class = class_accuracy(n, correct)
    worst = int(np.nanargmin(by_class))
    top1 = float(correct.sum() / total)
    return SetAccuracy(total, top1, float(np.nanmean(by_class)), worst, float(by_class[worst]))


def class_accuracy(n: Counts, correct: Counts) -> Floats:
    """Accuracy by class, any shape; NaN where there is no example."""
    known: Floats = np.where(n > 0, correct / np.maximum(n, 1), np.nan)
    return known


def class_changes(
    n: Counts, correct: Counts, own_n: Counts, own_correct: Counts
) -> tuple[Floats, float]:
    """How much each class's accuracy changes from the own set to another.

    Args:
        n: examples by class of the other set, (C,).
        correct: those that are right, (C,).
        own_n: the same of the own set.
        own_correct: the same.

    Returns:
        The differences (C,) in [-1, 1], NaN for a class that either set lacks; and their mean over
        the classes that both have, NaN where there is none. Means over different classes are not
        compared.
    """
    by_class = class_accuracy(n, correct) - class_accuracy(own_n, own_correct)
    shared = by_class[~np.isnan(by_class)]
    return by_class, float(shared.mean()) if len(shared) else np.nan


def by_corruption(sections: Sequence[str], values: Sequence[float]) -> dict[str, dict[str, float]]:
    """Arrange values of sections ``<corruption>/<severity>``: severity to value, by corruption.

    A section without a slash has the one severity "".
    """
    arranged: dict[str, dict[str, float]] = {}
    for section, value in zip(sections, values, strict=True):
        corruption, _, severity = section.partition("/")
        arranged.setdefault(corruption, {})[severity] = value
    return arranged


def mean_corruption_error(
    accuracies: Mapping[str, Mapping[str, float]], baseline: Mapping[str, float]
) -> float | None:
    """Mean over corruptions of the error over the baseline's (mCE, arXiv 1903.12261, section 4.2).

    Args:
        accuracies: top-1 by corruption and severity, as `by_corruption` arranges them.
        baseline: mean error over the five severities, by corruption.

    Returns:
        1 for errors like the baseline's; None unless all of the baseline's corruptions are there
        in five severities and no other, since other means are not comparable.
    """
    if accuracies.keys() != baseline.keys() or any(len(a) != 5 for a in accuracies.values()):
        return None
    ratios = [
        (1 - np.mean(list(accuracies[name].values()))) / error for name, error in baseline.items()
    ]
    return float(np.mean(ratios))
