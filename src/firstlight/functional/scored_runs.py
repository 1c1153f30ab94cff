"""What several runs got right on one test set, by arm: the input of everything about classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredRuns:
    """Which test images each run classified correctly; runs differ by their seed within an arm.

    Checked when made. Memory: a byte for each run and image.

    Attributes:
        correct: (runs, N), booleans, or 0 and 1.
        targets: the images' classes, integers in [0, C), (N,).
        arms: which arm each run belongs to, integers 0 to A - 1, each of them at least once,
            (runs,). Seeds need not be paired between arms.
        num_classes: C; None for the highest target and those below it. Classes without images are
            allowed: they have no effect (NaN).

    Raises:
        ValueError: on shapes that do not fit, targets outside [0, C), or an arm without runs.

    Example:
        >>> runs = ScoredRuns([[1, 0, 1], [1, 1, 1]], targets=[0, 0, 1], arms=[0, 1])
        >>> runs.accuracy
        array([[0.5, 1. ],
               [1. , 1. ]])
    """

    correct: NDArray[np.bool_]
    targets: NDArray[np.int64]
    arms: NDArray[np.int64]
    num_classes: int

    def __init__(
        self,
        correct: ArrayLike,
        targets: ArrayLike,
        arms: ArrayLike,
        num_classes: int | None = None,
    ) -> None:
        right, labels, groups = np.asarray(correct), np.asarray(targets), np.asarray(arms)
        if labels.ndim != 1 or not len(labels) or right.shape != (groups.size, labels.size):
            raise ValueError(
                "correct must be (runs, images), targets (images,) not empty, arms (runs,); "
                f"got {right.shape}, {labels.shape}, {groups.shape}"
            )
        if right.dtype != bool and not np.isin(right, (0, 1)).all():
            raise ValueError("correct must hold booleans, or 0 and 1 only")
        for name, values in (("targets", labels), ("arms", groups)):
            if not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
                raise ValueError(f"{name} must be integers from 0, got {values.dtype} from "
                                 f"{values.min()}")  # fmt: skip
        if len(np.unique(groups)) <= groups.max():
            raise ValueError(
                f"arms must be numbered 0, 1, ... without a gap, got {groups.tolist()}"
            )
        classes = int(labels.max()) + 1
        if num_classes is not None and num_classes < classes:
            raise ValueError(f"num_classes is {num_classes}, but targets reach {classes - 1}")
        checked = {
            "correct": right.astype(bool),
            "targets": labels.astype(np.int64),
            "arms": groups.astype(np.int64),
            "num_classes": classes if num_classes is None else num_classes,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def replicas(self) -> NDArray[np.int64]:
        """Runs of every arm, R_a, (A,)."""
        return np.bincount(self.arms)

    @property
    def n(self) -> Floats:
        """Images of every class, (C,)."""
        return self.by_class(np.ones(len(self.targets)))

    @property
    def accuracy(self) -> Floats:
        """Accuracy of every run on every class, (runs, C); NaN without images."""
        n = np.where(self.n > 0, self.n, np.nan)
        return np.stack([self.by_class(row) for row in self.correct]) / n

    @property
    def hits(self) -> NDArray[np.int64]:
        """Of each arm, how many of its runs are right about each image, (A, N)."""
        arms = range(len(self.replicas))
        return np.stack([self.correct[self.arms == arm].sum(0) for arm in arms])

    @property
    def fractions(self) -> Floats:
        """Of each arm, the share of its runs that is right about each image, (A, N)."""
        shares: Floats = self.hits / self.replicas[:, None]
        return shares

    def by_class(self, values: NDArray[Any]) -> Floats:
        """Sum a value per image over every class's images: (N,) to (C,)."""
        sums: Floats = np.bincount(self.targets, values, self.num_classes).astype(np.float64)
        return sums

    def of_arms(self, *arms: int) -> "ScoredRuns":
        """Return the runs of some arms only, which are numbered anew in the order given."""
        rows = [np.flatnonzero(self.arms == arm) for arm in arms]
        numbers = np.repeat(np.arange(len(arms)), [len(found) for found in rows])
        return self.of_runs(np.concatenate(rows), numbers)

    def of_runs(self, rows: NDArray[np.int64], arms: NDArray[np.int64]) -> "ScoredRuns":
        """Return some runs only, as runs of the arms given."""
        return ScoredRuns(self.correct[rows], self.targets, arms, self.num_classes)


def slope_weights(strengths: ArrayLike) -> Floats:
    """Weights of the arms for which ``sum_a w_a x_a`` is the least-squares slope on strength.

    ``w_a = (s_a - mean s) / sum (s - mean s)**2``: the effect is then in accuracy per unit of
    strength. It is the slope through the arms' means, each counted once however many runs it has.

    Args:
        strengths: s, one of each arm, (A,), finite and not all equal.

    Raises:
        ValueError: where they are all equal or not finite.

    Example:
        >>> slope_weights([0.0, 0.5, 1.0])
        array([-1.,  0.,  1.])
    """
    s = np.asarray(strengths, np.float64)
    if not np.isfinite(s).all() or np.ptp(s) == 0:
        raise ValueError(f"a slope needs finite strengths that differ, got {s.tolist()}")
    centred = s - s.mean()
    weights: Floats = centred / (centred**2).sum()
    return weights


def contrast(weights: ArrayLike | None, num_arms: int) -> Floats:
    """Check the arms' weights w; None is the second arm less the first.

    Raises:
        ValueError: where they do not sum to 0, are not one of each arm, or are missing with other
            than two arms.
    """
    if weights is None:
        if num_arms != 2:
            raise ValueError(f"there are {num_arms} arms: give weights, e.g. slope_weights(...), "
                             "or take two of them with of_arms")  # fmt: skip
        return np.array([-1.0, 1.0])
    w = np.asarray(weights, np.float64)
    if w.shape != (num_arms,) or not w.any() or abs(w.sum()) > 1e-9 * np.abs(w).sum():
        raise ValueError(f"weights must be one of each of the {num_arms} arms, sum to 0 and not be "
                         f"all 0, got {w.tolist()}")  # fmt: skip
    return w
