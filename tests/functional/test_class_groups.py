"""Accuracy by group; oracles: counting by hand, and example by example."""

import math

import numpy as np
import pytest

from firstlight.functional import group_accuracy, same_group_share

GROUPS = ["bird", "plant", "bird", "fungus", "plant", "bird"]


def test_by_hand():
    accuracy = np.array([1.0, 0.25, 0.5, np.nan, 0.75, np.nan])
    found = group_accuracy(accuracy, GROUPS)
    assert found.names == ["bird", "fungus", "plant"]
    assert found.mean[[0, 2]].tolist() == [0.75, 0.5]
    assert math.isnan(found.mean[1])
    assert found.classes.tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match="6 classes have 5 groups"):
        group_accuracy(accuracy, GROUPS[:5])


def test_the_share_in_the_right_group_is_that_of_an_enumeration():
    random = np.random.default_rng(0)
    target, pred = random.integers(0, 6, (2, 500))
    right = [GROUPS[t] == GROUPS[p] for t, p in zip(target, pred, strict=True)]
    assert same_group_share(target, pred, GROUPS) == pytest.approx(sum(right) / 500, rel=1e-12)
    assert same_group_share(target, pred, GROUPS) > (target == pred).mean()
    assert same_group_share(target, pred, list("abcdef")) == (target == pred).mean()
    assert math.isnan(same_group_share(target[:0], pred[:0], GROUPS))
