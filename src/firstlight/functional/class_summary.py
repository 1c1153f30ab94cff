"""Twelve numbers that say what an evaluation did to its classes, and what stands behind them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from firstlight.functional.shot_groups import SHOTS

Floats = NDArray[np.float64]


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def per_class_rates(counts: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Accuracy (equal to recall), precision and F1 of every class, in [0, 1].

    Args:
        counts: ``n``, ``correct`` and ``pred_count``, each (C,), as `PerClassCounts` returns them.

    Returns:
        ``accuracy`` = correct / n (NaN for a class without examples), ``precision`` = correct /
        pred_count (NaN for a class never predicted) and ``f1`` = 2 correct / (n + pred_count) (NaN
        where both are 0), each float64 (C,).
    """
    n, correct, predicted = (counts[k].double().numpy() for k in ("n", "correct", "pred_count"))
    return {
        "accuracy": _ratio(correct, n),
        "precision": _ratio(correct, predicted),
        "f1": _ratio(2 * correct, n + predicted),
    }


def summarise_classes(
    counts: Mapping[str, Tensor], shots: Sequence[str | None] | None = None, worst: float = 0.01
) -> dict[str, float]:
    """The scalars that a logger gets; classes without examples are left out, and counted.

    Args:
        counts: as for `per_class_rates`; at least one class must have examples.
        shots: each class's group, as `shot_groups` returns it; None leaves the groups NaN.
        worst: q of the worst-q mean: the mean over the ``ceil(q * classes present)`` lowest.

    Returns:
        ``micro`` (accuracy over examples), ``macro`` (mean over classes), ``min``, ``p1`` and
        ``p5`` (percentiles over classes, linear interpolation), ``worst_1pct``, ``std`` (over
        classes), ``worst_class`` (index, the first on a tie), ``absent`` (classes without
        examples), ``many``, ``medium``, ``few`` (means of a group, NaN for an empty one). The
        minimum is biased low, see `expected_worst_accuracy`: do not select checkpoints on it.

    Raises:
        ValueError: where no class has examples.
    """
    accuracy = per_class_rates(counts)["accuracy"]
    present = ~np.isnan(accuracy)
    if not present.any():
        raise ValueError("no class has examples: nothing was counted before the summary")
    ranked = np.sort(accuracy[present])
    p1, p5 = np.percentile(ranked, [1, 5])
    summary = {
        "micro": float(counts["correct"].sum() / counts["n"].sum()),
        "macro": float(ranked.mean()),
        "min": float(ranked[0]),
        "p1": float(p1),
        "p5": float(p5),
        "worst_1pct": float(ranked[: math.ceil(worst * len(ranked))].mean()),
        "std": float(ranked.std()),
        "worst_class": float(np.nanargmin(accuracy)),
        "absent": float((~present).sum()),
    }
    groups = np.array(shots if shots is not None else [None] * len(accuracy), dtype=object)
    for name in SHOTS:
        members = present & (groups == name)
        summary[name] = float(accuracy[members].mean()) if members.any() else math.nan
    return summary


def wilson_interval(correct: Floats, n: Floats, z: float = 1.96) -> tuple[Floats, Floats]:
    """Wilson score interval of a proportion (Wilson 1927), honest for classes of few examples.

    Args:
        correct: successes, shape (C,).
        n: trials, shape (C,); 0 gives NaN.
        z: normal quantile; 1.96 for 95 %.

    Returns:
        Lower and upper bounds in [0, 1], each (C,).
    """
    correct, n = np.asarray(correct, np.float64), np.asarray(n, np.float64)
    a = _ratio(correct, n)
    shrink = 1 + _ratio(np.full_like(n, z**2), n)
    centre = (a + _ratio(np.full_like(n, z**2 / 2), n)) / shrink
    half = z * np.sqrt(_ratio(a * (1 - a), n) + _ratio(np.full_like(n, z**2 / 4), n**2)) / shrink
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def expected_worst_accuracy(num_classes: int, n: int, accuracy: float) -> float:
    """Expected lowest observed accuracy of equally good classes: what chance alone produces.

    ``E[min] = (1/n) sum_{j=1..n} P(X >= j)**C`` with X binomial(n, accuracy).

    Args:
        num_classes: C, classes of the same true accuracy.
        n: test examples of each.
        accuracy: their true accuracy, in [0, 1].

    Example:
        >>> round(expected_worst_accuracy(1000, 50, 0.76), 4)
        0.5513
    """
    return float((binom.sf(np.arange(n), n, accuracy) ** num_classes).sum() / n)


def confusion_pairs(
    target: NDArray[np.int64], pred: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count each pair of a true class and the wrong class predicted instead.

    Memory is linear in the errors, never in the square of the classes.

    Args:
        target: true classes, (N,), non-negative.
        pred: predicted classes, (N,), non-negative.

    Returns:
        ``target``, ``pred`` and ``count`` of the pairs that occur, the most frequent first.
    """
    wrong = target != pred
    pairs, count = np.unique(
        np.stack([target[wrong], pred[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-count, kind="stable")
    return pairs[order, 0], pairs[order, 1], count[order]
