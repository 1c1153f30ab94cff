"""Accuracy against sets of labels, as of ImageNet's reassessed validation images."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple


class MultiLabelAccuracy(NamedTuple):
    """Share of the predictions that are right by any of an example's labels.

    Attributes:
        accuracy: in [0, 1]; NaN where no example has a label.
        n: examples with at least one label.
        unlabelled: examples left out for having none.
    """

    accuracy: float
    n: int
    unlabelled: int


def multi_label_accuracy(
    pred: Sequence[int], labels: Sequence[Collection[int]]
) -> MultiLabelAccuracy:
    """ReaL accuracy (Beyer et al., arXiv 2006.07159, section 3).

    A prediction is right if it is among the labels that people accepted for the image; images for
    which they accepted none are left out. It does not compare with top-1 on all images.

    Args:
        pred: class predicted for each example, (N,).
        labels: N collections of classes, in the same order.

    Raises:
        ValueError: if their numbers differ.

    Example:
        >>> multi_label_accuracy([3, 1, 0, 2], [[3], [0, 1], [2], []])
        MultiLabelAccuracy(accuracy=0.6666666666666666, n=3, unlabelled=1)
    """
    right = [p in accepted for p, accepted in zip(pred, labels, strict=True) if accepted]
    accuracy = sum(right) / len(right) if right else math.nan
    return MultiLabelAccuracy(accuracy, len(right), len(labels) - len(right))
