"""Many-, medium- and few-shot classes, by their number of training examples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHOTS = ("many", "medium", "few")


class ShotGroups(NamedTuple):
    """The group of each class, and the sentence that says how the groups were made.

    Attributes:
        groups: ``"many"``, ``"medium"``, ``"few"``, or None, for each of the C classes.
        rule: to be shown beside every number made from the groups.
    """

    groups: tuple[str | None, ...]
    rule: str


def shot_groups(train_counts: Sequence[int], thresholds: tuple[int, int] = (20, 100)) -> ShotGroups:
    """Group classes by the size of their training set.

    With thresholds (few, many): many has more than ``many`` examples, few has fewer than ``few``,
    medium lies between, both ends included (Liu et al., arXiv 1904.05160). Where that leaves a
    group empty, the classes are split into thirds by count instead, the larger groups first (this
    project's own rule): numbers by thirds do not compare with published ones, and ``rule`` says
    so. Equal counts have no groups at all.

    Args:
        train_counts: examples of each class in the *full* training set, before a hold-out is cut:
            taking it from the reduced set would move classes between groups. Shape (C,).
        thresholds: 0 < few <= many.

    Raises:
        ValueError: on thresholds out of order.

    Example:
        >>> shot_groups([500, 60, 7]).groups
        ('many', 'medium', 'few')
    """
    few, many = thresholds
    if not 0 < few <= many:
        raise ValueError(f"thresholds must satisfy 0 < few <= many, got {thresholds}")
    counts = np.asarray(train_counts)
    if len(np.unique(counts)) == 1:
        rule = f"no shot groups: every class has {counts[0]} training examples"
        return ShotGroups((None,) * len(counts), rule)
    by_threshold = np.select([counts > many, counts >= few], SHOTS[:2], SHOTS[2])
    empty = [name for name in SHOTS if name not in by_threshold]
    if not empty:
        rule = f"many > {many}, medium {few} to {many}, few < {few} training examples"
        return ShotGroups(tuple(map(str, by_threshold)), rule)
    thirds = np.empty_like(by_threshold)
    order = np.argsort(-counts, kind="stable")
    for name, members in zip(SHOTS, np.array_split(order, 3), strict=True):
        thirds[members] = name
    rule = (
        f"thirds of the classes by training examples, because the thresholds {few} and {many} "
        f"leave no {' and no '.join(empty)} class: not comparable with published groups"
    )
    return ShotGroups(tuple(map(str, thirds)), rule)
