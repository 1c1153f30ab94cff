import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firstlight.functional.long_tail import (
    long_tailed_counts,
    long_tailed_indices,
    stratified_split,
)

# classes, factor, total, many/medium/few, first 16 hex of the sha256 of the positions
PUBLISHED = [
    (10, 10, 20431, (10, 0, 0), "2b3a8656bec514c6"),
    (10, 50, 13996, (9, 1, 0), "7bb90363b243a944"),
    (10, 100, 12406, (8, 2, 0), "8a54f5b6fa972295"),
    (10, 200, 11203, (7, 3, 0), "334c2d61143b39bf"),
    (100, 10, 19573, (69, 31, 0), "5906ba7310b91b5e"),
    (100, 50, 12608, (41, 41, 18), "1bc82de2629e5cbd"),
    (100, 100, 10847, (35, 35, 30), "f123ec136d44ab1b"),
    (100, 200, 9502, (30, 31, 39), "36f76462dfbbe6f4"),
]


def balanced(classes):
    return np.repeat(np.arange(classes), 50_000 // classes)


@pytest.mark.parametrize(("classes", "factor", "total", "shots", "digest"), PUBLISHED)
def test_indices_are_the_published_ones(classes, factor, total, shots, digest):
    targets = balanced(classes)
    indices = long_tailed_indices(targets, factor).numpy()
    positions = indices - targets[indices] * (50_000 // classes)
    assert hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:16] == digest
    assert len(indices) == total
    counts = np.bincount(targets[indices])
    groups = ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum())
    assert groups == shots


@pytest.mark.parametrize(
    ("classes", "first"),
    [(10, [398, 3833, 4836, 4572, 636]), (100, [90, 254, 283, 445, 461])],
)
def test_first_indices_are_the_published_ones(classes, first):
    assert long_tailed_indices(balanced(classes), 100)[:5].tolist() == first


def test_indices_of_interleaved_targets_index_the_right_classes():
    targets = torch.arange(50_000) % 10
    indices = long_tailed_indices(targets, 100)
    assert targets[indices].bincount().tolist() == long_tailed_counts(10, 5000, 100)
    assert len(indices.unique()) == len(indices)


def test_published_counts():
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tailed_counts(10, 5000, 100) == counts
    assert long_tailed_counts(10, 5000, 100, "step") == [5000] * 5 + [50] * 5


def test_global_numpy_state_is_untouched():
    np.random.seed(5)  # noqa: NPY002  # the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    long_tailed_indices(balanced(10), 100)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_unequal_classes_give_the_exact_profile():
    targets = np.repeat(np.arange(3), [90, 50, 60])
    kept = targets[long_tailed_indices(targets, 25).numpy()]
    assert np.bincount(kept).tolist() == [50, 10, 2]


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.01, "did you mean 100?"),
        (0.04, "did you mean 25?"),
        (0, "at least 1"),
        (-3, "at least 1"),
        (float("nan"), "finite"),
    ],
)
def test_factors_that_cannot_be_meant_are_refused(factor, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        long_tailed_counts(10, 5000, factor)


def test_an_emptied_class_is_named():
    with pytest.raises(ValueError, match="leaves class 8 empty"):
        long_tailed_counts(10, 100, 200)
    with pytest.raises(ValueError, match=r"leaves class 2 \('owl'\) empty"):
        long_tailed_counts(3, 10, 50, class_names=["cat", "dog", "owl"])
    with pytest.raises(ValueError, match="class 1 has no example"):
        long_tailed_indices([0, 0, 2], 2)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.floats(0, 0.99),
    st.integers(0, 2**40),
)
def test_slices_are_disjoint_complete_and_leave_every_class(counts, fraction, seed):
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rest, taken = stratified_split(targets, fraction, seed)
    assert sorted(rest.tolist() + taken.tolist()) == list(range(len(targets)))
    assert set(targets[rest].tolist()) == set(range(len(counts)))


@pytest.mark.parametrize(
    ("size", "expected"), [(1, 0), (2, 1), (4, 1), (14, 1), (16, 2), (100, 10), (5000, 500)]
)
def test_a_tenth_is_taken_but_never_the_last(size, expected):
    assert len(stratified_split([0] * size, 0.1, seed=1)[1]) == expected


def test_slices_follow_the_seed_and_cover_the_class():
    targets = [0] * 20
    assert torch.equal(*(stratified_split(targets, 0.1, 7)[1] for _ in range(2)))
    drawn = Counter(
        i for seed in range(2000) for i in stratified_split(targets, 0.1, seed)[1].tolist()
    )
    # each of 20 is drawn with probability .1 per seed: 200 times, standard deviation 13.4
    assert len(drawn) == 20
    assert all(abs(n - 200) < 5 * 13.4 for n in drawn.values())


def test_fractions_outside_the_range_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        stratified_split([0, 1], 1.0, seed=0)
