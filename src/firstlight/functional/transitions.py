"""Where predictions went: images broken and fixed, and the classes that received them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firstlight.functional.scored_runs import Floats, ScoredRuns


@dataclass(frozen=True)
class Transitions:
    """Images of every class that change hands between a run of arm A and one of arm B; (C,).

    Attributes:
        broken: expected number that A's run gets right and B's wrong.
        fixed: the reverse; ``fixed - broken`` is n times the effect.
        no_effect: what both would be without any effect: the number that one run of A gets right
            and another of A wrong; NaN where A has a single run.
    """

    broken: Floats
    fixed: Floats
    no_effect: Floats


def transitions(runs: ScoredRuns) -> Transitions:
    """Count broken and fixed images over all pairs of a run of arm 0 and one of arm 1.

    ``broken = sum_i p_A (1 - p_B)``, ``fixed = sum_i (1 - p_A) p_B`` and ``no_effect = R_A / (R_A -
    1) sum_i p_A (1 - p_A)``, p being the share of the arm's runs that is right about image i.

    Raises:
        ValueError: where there are other than two arms; take two with `ScoredRuns.of_arms`.
    """
    if len(runs.replicas) != 2:
        raise ValueError(f"transitions are between two arms, not {len(runs.replicas)}: take two "
                         "with of_arms")  # fmt: skip
    (a, b), first = runs.fractions, runs.replicas[0]
    unbiased = first / (first - 1) if first > 1 else np.nan
    level = unbiased * runs.by_class(a * (1 - a))
    return Transitions(runs.by_class(a * (1 - b)), runs.by_class((1 - a) * b), level)


@dataclass(frozen=True)
class Received:
    """How many wrong predictions every class receives, per run; arrays are (C,).

    Attributes:
        before: false positives of arm 0, mean over its runs.
        after: of arm 1.
        growth: ``after - before``.
        se: standard error of the growth over seeds, class by class; NaN with one run in an arm.
    """

    before: Floats
    after: Floats
    growth: Floats
    se: Floats


def received(
    pred: ArrayLike, targets: ArrayLike, arms: ArrayLike, num_classes: int | None = None
) -> Received:
    """Compare the classes' false positives between two arms: who receives what others lost.

    Args:
        pred: predicted classes, (runs, N).
        targets: true classes, (N,).
        arms: 0 or 1 for every run, (runs,).
        num_classes: C; None for the highest class that occurs and those below it.

    Raises:
        ValueError: where arms are not 0 and 1, or shapes do not fit.
    """
    pred, targets, arms = checked_predictions(pred, targets, arms)
    classes = int(max(pred.max(), targets.max())) + 1 if num_classes is None else num_classes
    counts = np.stack([np.bincount(row[row != targets], minlength=classes) for row in pred])
    sides = [counts[arms == arm].astype(np.float64) for arm in (0, 1)]
    (before, after), replicas = (side.mean(0) for side in sides), [len(side) for side in sides]
    se = np.full(classes, np.nan)
    if min(replicas) > 1:
        se = np.sqrt(sum(side.var(0, ddof=1) / len(side) for side in sides))
    return Received(before, after, after - before, se)


def checked_predictions(
    pred: ArrayLike, targets: ArrayLike, arms: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Refuse predictions of other than two arms; return all as integers."""
    arrays = tuple(np.asarray(values) for values in (pred, targets, arms))
    p, y, a = arrays
    if p.shape != (a.size, y.size) or y.ndim != 1 or set(np.unique(a)) != {0, 1}:
        raise ValueError("pred must be (runs, images), targets (images,), arms 0 or 1 for every "
                         f"run, both present; got {p.shape}, {y.shape}, {a.tolist()}")  # fmt: skip
    return p.astype(np.int64), y.astype(np.int64), a.astype(np.int64)
