"""Accuracy against sets of labels, as of ImageNet's reassessed validation images."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


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


def accepted_predictions(
    pred: ArrayLike, labels: Sequence[Collection[int]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Judge the predictions of several runs by any of an image's labels.

    Args:
        pred: predicted classes, (runs, N).
        labels: N collections of classes, in the order of the images.

    Returns:
        Which predictions are among the labels, (runs, N), and which images have a label, (N,): the
        others are to be left out. Memory is linear in runs x N.

    Raises:
        ValueError: if the numbers of images differ.
    """
    predicted = np.asarray(pred)
    if predicted.ndim != 2 or predicted.shape[1] != len(labels):
        raise ValueError(f"pred must be (runs, {len(labels)}), a column for each image with its "
                         f"labels, not {predicted.shape}")  # fmt: skip
    counts = np.array([len(accepted) for accepted in labels], np.int64)
    flat = np.array([label for accepted in labels for label in accepted], np.int64)
    starts, right = np.cumsum(counts) - counts, np.zeros(predicted.shape, np.bool_)
    for place in range(int(counts.max(initial=0))):
        images = np.flatnonzero(counts > place)
        right[:, images] |= predicted[:, images] == flat[starts[images] + place]
    return right, counts > 0
