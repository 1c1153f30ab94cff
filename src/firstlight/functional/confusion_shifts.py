"""Which classes are taken for which others more often, or less, and how sure that is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from firstlight.functional.scored_runs import Floats
from firstlight.functional.transitions import checked_predictions


@dataclass(frozen=True)
class ConfusionShifts:
    """Pairs of a true class and a wrong one predicted for it; arrays over pairs.

    Attributes:
        target: the true class.
        pred: what is predicted in its place.
        before: share of the true class's images so predicted in arm 0, mean over runs.
        after: in arm 1.
        se: standard error of ``after - before`` over seeds; NaN, like the interval, where an arm
            has a single run.
        low: of the confidence interval of ``after - before``, for each pair by itself.
        high: likewise.
    """

    target: NDArray[np.int64]
    pred: NDArray[np.int64]
    before: Floats
    after: Floats
    se: Floats
    low: Floats
    high: Floats


def confusion_shifts(
    pred: ArrayLike, targets: ArrayLike, arms: ArrayLike, *, level: float = 0.95
) -> ConfusionShifts:
    """Change of P(pred | target) between two arms, for all pairs that occur in either.

    The interval answers: on *these* test images, what would other seeds give? It is Welch's, of the
    runs' shares s_a around their arm's mean, without equal variances, since a pair that one arm
    hardly knows varies less in it. A variance is at least that of rounding to whole images, ``1 /
    (12 n^2)``; without it, pairs that all runs confuse equally often would look certain::

        se^2 = v_0 + v_1,  v_a = max(s_a^2, 1 / (12 n^2)) / R_a,
        df = se^4 / (v_0^2 / (R_0 - 1) + v_1^2 / (R_1 - 1))

    The trap: the largest of many thousand shifts is partly chance, and intervals of single pairs do
    not correct that. Intervals of 95 % cover 94.7 to 97 % of the shifts of single pairs, and more
    (98 to 99.7 %) where a pair is seen in less than one image a run, or with two runs an arm.

    Memory is linear in the wrong predictions, never in the square of the classes.

    Args:
        pred: predicted classes, (runs, N).
        targets: true classes, (N,).
        arms: 0 or 1 for every run, (runs,).
        level: of the intervals, in (0, 1).

    Returns:
        The pairs, the largest absolute change first.

    Raises:
        ValueError: as `received`; on a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), not {level}")
    pred, targets, arms = checked_predictions(pred, targets, arms)
    classes, wrong = int(max(pred.max(), targets.max())) + 1, pred != targets
    pairs = np.broadcast_to(targets * classes, pred.shape)[wrong] + pred[wrong]
    found, place = np.unique(pairs, return_inverse=True)
    true, replicas = found // classes, np.bincount(arms)
    images = np.bincount(targets, minlength=classes)[true]
    sums, squares = _counted(place, np.nonzero(wrong)[0], arms, len(found))
    before, after = sums / (replicas[:, None] * images)
    se, df = _welch(sums, squares, replicas, images)
    half, change = student.ppf((1 + level) / 2, df) * se, after - before
    order = np.argsort(-np.abs(change), kind="stable")
    low, high = (change - half)[order], (change + half)[order]
    return ConfusionShifts(true[order], (found % classes)[order], before[order], after[order],
                           se[order], low, high)  # fmt: skip


def _counted(
    place: NDArray[np.int64], run: NDArray[np.int64], arms: NDArray[np.int64], pairs: int
) -> tuple[Floats, Floats]:
    """Sum, over each arm's runs, how often a run has a pair, and its square: (2, pairs) both."""
    cells, counts = np.unique(place * len(arms) + run, return_counts=True)
    where = arms[cells % len(arms)] * pairs + cells // len(arms)
    sums = np.bincount(where, counts, 2 * pairs).astype(np.float64)
    squares = np.bincount(where, counts**2, 2 * pairs).astype(np.float64)
    return sums.reshape(2, pairs), squares.reshape(2, pairs)


def _welch(
    sums: Floats, squares: Floats, replicas: NDArray[np.int64], images: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Standard errors and degrees of freedom, NaN where an arm has a single run."""
    several = np.where(replicas > 1, replicas - 1, np.nan)[:, None]
    counts = (squares - sums**2 / replicas[:, None]) / several
    v = np.maximum(counts, 1 / 12) / images**2 / replicas[:, None]
    df: Floats = v.sum(0) ** 2 / (v**2 / several).sum(0)
    return np.sqrt(v.sum(0)), df
