"""Long-tailed subsets of balanced data sets, and stratified slices of what is left."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from firstlight.functional.seeding import keyed_generator

ImbalanceType = Literal["exp", "step"]


def long_tailed_counts(
    num_classes: int,
    n_max: int,
    imbalance_factor: float,
    imbalance_type: ImbalanceType = "exp",
    class_names: Sequence[str] | None = None,
) -> list[int]:
    """Examples per class of a long-tailed data set, largest class first.

    With ``f = 1 / imbalance_factor``, ``exp`` gives class ``c`` of ``C``
    ``int(n_max * f ** (c / (C - 1)))`` examples; ``step`` gives ``n_max`` to the first ``C // 2``
    classes and ``int(n_max * f)`` to the others (LDAM-DRW, arXiv:1906.07413).

    Args:
        num_classes: number of classes C, at least 2.
        n_max: examples of the largest class.
        imbalance_factor: largest class over smallest, at least 1: 100 means a hundred to one.
        imbalance_type: ``exp`` or ``step``.
        class_names: used in the error message only.

    Returns:
        C counts, each at least 1.

    Raises:
        ValueError: for a factor below 1 (some code calls ``f`` the factor), or a class left empty.

    Example:
        >>> long_tailed_counts(10, 5000, 100)
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    _check_factor(imbalance_factor)
    if num_classes < 2:
        raise ValueError(f"a long-tailed data set needs at least 2 classes, got {num_classes}")
    fraction = 1.0 / imbalance_factor
    if imbalance_type == "exp":
        counts = [int(n_max * fraction ** (c / (num_classes - 1.0))) for c in range(num_classes)]
    elif imbalance_type == "step":
        head = num_classes // 2
        counts = [n_max] * head + [int(n_max * fraction)] * (num_classes - head)
    else:
        raise ValueError(f"imbalance_type is 'exp' or 'step', got {imbalance_type!r}")
    if 0 in counts:
        empty = counts.index(0)
        name = f"{empty} ({class_names[empty]!r})" if class_names is not None else f"{empty}"
        raise ValueError(
            f"imbalance_factor={imbalance_factor:g} leaves class {name} empty, because the largest "
            f"class has {n_max} examples: use a factor below {n_max}"
        )
    return counts


def _check_factor(factor: float) -> None:
    if not math.isfinite(factor) or factor <= 0:
        raise ValueError(f"imbalance_factor is a finite number of at least 1, got {factor}")
    if factor < 1:
        raise ValueError(
            f"imbalance_factor={factor:g} is the smallest class over the largest; firstlight takes "
            f"the largest over the smallest: did you mean {1 / factor:g}?"
        )


def long_tailed_indices(
    targets: Sequence[int] | Tensor,
    imbalance_factor: float,
    imbalance_type: ImbalanceType = "exp",
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> Tensor:
    """Indices of the published long-tailed subset, bit for bit.

    One legacy numpy generator, seeded once, shuffles the indices of each class in label order; the
    first ``n_c`` of each are kept and concatenated in class order. On CIFAR with ``seed=0`` these
    are the examples, in the order, of the LDAM-DRW code and of those derived from it. numpy's
    global random state is neither read nor written.

    Args:
        targets: N labels ``0 .. C-1``; every class must occur. Where classes differ in size,
            ``n_max`` is the size of the smallest, so that the profile is exact.
        imbalance_factor: largest class over smallest, at least 1.
        imbalance_type: ``exp`` or ``step``.
        seed: 0 is the published one; another gives different examples, so other numbers.
        class_names: used in error messages only.

    Returns:
        int64 of shape (sum of counts,), ordered by class, shuffled within each.

    Raises:
        ValueError: as `long_tailed_counts`, and for a class without any example in ``targets``.
    """
    labels = np.asarray(targets, dtype=np.int64)
    available = np.bincount(labels)
    n_max = int(available.min())
    if n_max == 0:
        raise ValueError(f"class {int(available.argmin())} has no example to choose from")
    counts = long_tailed_counts(
        len(available), n_max, imbalance_factor, imbalance_type, class_names
    )
    random = np.random.RandomState(seed)
    kept = []
    for label, count in enumerate(counts):
        indices = np.where(labels == label)[0]
        random.shuffle(indices)
        kept.append(indices[:count])
    return torch.from_numpy(np.concatenate(kept))


def stratified_split(
    targets: Sequence[int] | Tensor, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Take about ``fraction`` of every class, never a class's last example.

    Of ``n_k`` examples ``min(max(1, round(fraction * n_k)), n_k - 1)`` are taken, so a class of two
    gives one and a class of one gives none. What is taken from a class depends on the seed and the
    class's own members only. Cut a slice *after* a long-tailed construction: before it, the
    construction would no longer be the published one.

    Args:
        targets: N labels, non-negative.
        fraction: in [0, 1); 0 takes nothing.
        seed: any integer.

    Returns:
        ``(rest, taken)``, int64 indices into ``targets``, disjoint, each ascending.

    Raises:
        ValueError: for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"a slice is a fraction in [0, 1), got {fraction}")
    labels = torch.as_tensor(targets, dtype=torch.int64)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    if fraction > 0:
        # one sort for all classes: a pass over the examples for each took minutes at 8,142 of them
        by_class, end = labels.argsort(stable=True), 0
        for label, size in enumerate(torch.bincount(labels).tolist()):
            members = by_class[end : end + size]
            end += size
            count = max(0, min(max(1, round(fraction * size)), size - 1))
            order = torch.randperm(size, generator=keyed_generator(seed, label))
            taken[members[order[:count]]] = True
    return (~taken).nonzero().squeeze(1), taken.nonzero().squeeze(1)
