"""Accuracy by groups of classes: what becomes of each, and how near a miss a wrong class is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GroupAccuracy(NamedTuple):
    """The groups, sorted by name.

    Attributes:
        names: of the G groups.
        mean: mean over a group's classes of their accuracy, float64 (G,); NaN where no class of the
            group has examples.
        classes: classes with examples in the group, (G,).
    """

    names: list[str]
    mean: NDArray[np.float64]
    classes: NDArray[np.int64]


def group_accuracy(accuracy: NDArray[np.float64], groups: Sequence[str]) -> GroupAccuracy:
    """Average the accuracies of classes by group; classes without examples are left out.

    Args:
        accuracy: of each class, (C,), NaN for one without examples.
        groups: name of each class's group, (C,).

    Raises:
        ValueError: if there are not as many groups as accuracies.

    Example:
        >>> group_accuracy(np.array([1.0, 0.5, np.nan]), ["bird", "bird", "plant"]).mean
        array([0.75,  nan])
    """
    if len(accuracy) != len(groups):
        raise ValueError(f"{len(accuracy)} classes have {len(groups)} groups")
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    present = ~np.isnan(accuracy)
    classes = np.bincount(group[present], minlength=len(names))
    sums = np.bincount(group[present], accuracy[present], len(names))
    mean = np.divide(sums, classes, out=np.full(len(names), np.nan), where=classes > 0)
    return GroupAccuracy(names.tolist(), mean, classes)


def same_group_share(
    target: NDArray[np.int64], pred: NDArray[np.int64], groups: Sequence[str]
) -> float:
    """Share of examples whose predicted class is of the true class's group; NaN of no examples.

    Never below the accuracy: a right class is in the right group. For species and their families it
    is the accuracy at the family's level of a classifier of species.

    Args:
        target: true classes, (N,).
        pred: predicted classes, (N,).
        groups: name of each class's group, (C,).
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    return float((group[target] == group[pred]).mean()) if len(target) else float("nan")
