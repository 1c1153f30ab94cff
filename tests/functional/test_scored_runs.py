"""Oracles: scikit-learn's recall, numpy's polynomial fit, counts by hand."""

import numpy as np
import pytest
from sklearn.metrics import recall_score

from firstlight.functional import ScoredRuns, slope_weights


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    targets, arms = generator.integers(0, 6, 300), np.array([1, 0, 0, 1, 2])
    pred = np.where(generator.random((5, 300)) < 0.6, targets, (targets + 1) % 6)
    return ScoredRuns(pred == targets, targets, arms, 8), pred


def test_accuracy_is_recall(drawn):
    runs, pred = drawn
    for found, predicted in zip(runs.accuracy, pred, strict=True):
        expected = recall_score(runs.targets, predicted, average=None, labels=range(6))
        np.testing.assert_allclose(found[:6], expected, rtol=1e-12)
        assert np.isnan(found[6:]).all()


def test_hits_and_fractions_count_by_arm(drawn):
    runs, _ = drawn
    np.testing.assert_array_equal(runs.replicas, [2, 2, 1])
    np.testing.assert_array_equal(runs.hits[0], runs.correct[1] * 1 + runs.correct[2])
    np.testing.assert_array_equal(runs.fractions[1] * 2, runs.correct[0] * 1 + runs.correct[3])


def test_some_arms_only_in_the_order_given(drawn):
    runs, _ = drawn
    chosen = runs.of_arms(2, 0)
    np.testing.assert_array_equal(chosen.arms, [0, 1, 1])
    np.testing.assert_array_equal(chosen.correct, runs.correct[[4, 1, 2]])
    assert chosen.num_classes == 8


def test_slope_is_that_of_a_line():
    """numpy.polyfit."""
    strengths, means = np.array([0.0, 0.1, 0.4, 0.9]), np.array([0.7, 0.8, 0.5, 0.3])
    expected = np.polyfit(strengths, means, 1)[0]
    assert slope_weights(strengths) @ means == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("strengths", [[1, 1], [0, np.nan], [0, np.inf]])
def test_no_slope_on_strengths_that_do_not_differ(strengths):
    with pytest.raises(ValueError, match="finite strengths"):
        slope_weights(strengths)


@pytest.mark.parametrize(
    ("correct", "targets", "arms", "classes", "words"),
    [
        ([[1, 0]], [0], [0], None, "correct must be"),
        ([[1, 0]], [0, 1], [0, 1], None, "correct must be"),
        (np.ones((1, 0)), [], [0], None, "correct must be"),
        ([[1, 2]], [0, 1], [0], None, "booleans, or 0 and 1"),
        ([[1, np.nan]], [0, 1], [0], None, "booleans, or 0 and 1"),
        ([[1, 0]], [0, -1], [0], None, "targets must be integers"),
        ([[1, 0]], [0.0, 1.0], [0], None, "targets must be integers"),
        ([[1, 0], [1, 0]], [0, 1], [0, 2], None, "without a gap"),
        ([[1, 0]], [0, 5], [0], 5, "num_classes is 5, but targets reach 5"),
    ],
)
def test_refuses(correct, targets, arms, classes, words):
    with pytest.raises(ValueError, match=words):
        ScoredRuns(correct, targets, arms, classes)
