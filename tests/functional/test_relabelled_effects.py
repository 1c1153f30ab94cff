"""Oracles: a case worked by hand, and scipy's t-test of the runs' differences."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from firstlight.functional import ScoredRuns, accepted_predictions, relabelled_effects


def test_by_hand():
    """Two arms of two runs, classes of four images; class 0's images 0 and 1 show class 1, too.

    The second arm takes them for class 1: it loses half of class 0 by the original labels, nothing
    by the others. Image 3 of class 0 and image 7 of class 1 have no other label.
    """
    targets = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    pred = np.array([[0, 0, 0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1, 0, 0],
                     [1, 1, 0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 0, 0]])  # fmt: skip
    labels = [[0, 1], [1, 0], [0], [], [1], [1], [1], []]
    accepted, labelled = accepted_predictions(pred, labels)
    runs = ScoredRuns(pred == targets, targets, [0, 0, 1, 1], 3)
    found = relabelled_effects(runs, accepted, labelled)
    assert found.n.tolist() == [3, 3, 0]
    np.testing.assert_allclose(found.original, [-2 / 3, 1 / 6, np.nan], atol=1e-12)
    np.testing.assert_allclose(found.relabelled.effect, [0, 1 / 6, np.nan], atol=1e-12)
    np.testing.assert_allclose(found.moved, [2 / 3, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(found.accuracy, [[1, 2 / 3, np.nan], [1, 5 / 6, np.nan]])
    # No run differs from its arm in what the labels change: the floor of rounding, 1/(12 n^2).
    np.testing.assert_allclose(found.moved_se, [np.sqrt(1 / 108)] * 2 + [np.nan])


def test_the_distance_has_the_error_of_the_runs_differences():
    """scipy.stats.ttest_ind of each run's accuracy by the other labels less that by its own."""
    generator, n, classes = np.random.default_rng(0), 40, 6
    targets, arms = np.repeat(np.arange(classes), n), np.repeat([0, 1], 5)
    correct = generator.random((10, classes * n)) < 0.6
    accepted = correct | (generator.random(correct.shape) < 0.3)
    labelled = generator.random(classes * n) < 0.9
    found = relabelled_effects(ScoredRuns(correct, targets, arms), accepted, labelled)
    for c in range(classes):
        images = labelled & (targets == c)
        gain = accepted[:, images].mean(1) - correct[:, images].mean(1)
        test = ttest_ind(gain[5:], gain[:5])
        assert found.moved_se[c] == pytest.approx(found.moved[c] / test.statistic, rel=1e-9)
        assert found.moved[c] == pytest.approx(gain[5:].mean() - gain[:5].mean())
        own = correct[:, images].mean(1)
        assert found.original[c] == pytest.approx(own[5:].mean() - own[:5].mean())


def test_weights_reach_all_effects():
    generator = np.random.default_rng(0)
    correct, accepted = generator.random((2, 3, 30)) < 0.6
    runs = ScoredRuns(correct, np.repeat([0, 1, 2], 10), [0, 1, 2])
    found = relabelled_effects(runs, accepted, np.ones(30), [-0.5, -0.5, 1.0])
    own, other = (each.reshape(3, 3, 10).mean(2) for each in (correct, accepted))
    weights = np.array([-0.5, -0.5, 1.0])
    np.testing.assert_allclose(found.original, weights @ own, atol=1e-12)
    np.testing.assert_allclose(found.relabelled.effect, weights @ other, atol=1e-12)
    assert np.isnan(found.moved_se).all()


def test_refuses():
    runs = ScoredRuns([[1, 0], [0, 1]], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="no image has another label"):
        relabelled_effects(runs, runs.correct, [False, False])
    with pytest.raises(ValueError, match=r"accepted must be \(2, 2\)"):
        relabelled_effects(runs, runs.correct[:1], [True, True])
