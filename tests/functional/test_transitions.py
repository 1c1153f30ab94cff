"""Oracles: loops over pairs of runs, scikit-learn's confusion matrix."""

from itertools import permutations, product

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from firstlight.functional import (
    ScoredRuns,
    class_effects,
    received,
    transitions,
)

CLASSES, ARMS = 5, np.array([0, 1, 0, 1, 0])


def mean_over(pairs, correct, targets):
    lost = [np.bincount(targets, correct[a] & ~correct[b], CLASSES) for a, b in pairs]
    return np.mean(lost, axis=0)


def test_transitions_are_means_over_pairs_of_runs(predicted):
    pred, targets = predicted
    correct = pred == targets
    runs = ScoredRuns(correct, targets, ARMS, CLASSES)
    found = transitions(runs)
    first, second = np.flatnonzero(ARMS == 0), np.flatnonzero(ARMS == 1)
    expected = mean_over(list(product(first, second)), correct, targets)
    np.testing.assert_allclose(found.broken, expected, atol=1e-9)
    expected = mean_over(list(product(second, first)), correct, targets)
    np.testing.assert_allclose(found.fixed, expected, atol=1e-9)
    expected = mean_over(list(permutations(first, 2)), correct, targets)
    np.testing.assert_allclose(found.no_effect, expected, atol=1e-9)
    effect = np.nan_to_num(class_effects(runs).effect)
    np.testing.assert_allclose(found.fixed - found.broken, runs.n * effect, atol=1e-9)


def test_no_level_without_a_second_run():
    found = transitions(ScoredRuns([[1, 0], [0, 0]], [0, 1], [0, 1]))
    np.testing.assert_array_equal(found.broken, [1, 0])
    assert np.isnan(found.no_effect).all()


def test_received_equals_confusion_matrices(predicted):
    """sklearn.metrics.confusion_matrix of every run."""
    pred, targets = predicted
    each = np.stack([confusion_matrix(targets, row, labels=range(CLASSES)) for row in pred])
    for matrix in each:
        np.fill_diagonal(matrix, 0)
    before, after = (each[arm == ARMS] for arm in (0, 1))
    found = received(pred, targets, ARMS, CLASSES)
    growth = after.mean(0).sum(0) - before.mean(0).sum(0)
    np.testing.assert_allclose(found.growth, growth, atol=1e-12)
    np.testing.assert_allclose(found.before, before.sum(1).mean(0))
    errors = [np.std(side.sum(1), axis=0, ddof=1) / np.sqrt(len(side)) for side in (before, after)]
    np.testing.assert_allclose(found.se, np.hypot(*errors), rtol=1e-12)


def test_errors_of_received_need_two_runs(predicted):
    pred, targets = predicted
    found = received(pred[:3], targets, [0, 1, 0])
    assert len(found.growth) == CLASSES and np.isnan(found.se).all()


def test_refuses_other_than_two_arms(predicted):
    pred, targets = predicted
    with pytest.raises(ValueError, match="two arms, not 3"):
        transitions(ScoredRuns(pred == targets, targets, [0, 1, 2, 0, 1]))
    with pytest.raises(ValueError, match="arms 0 or 1"):
        received(pred, targets, [0, 0, 0, 0, 0])
