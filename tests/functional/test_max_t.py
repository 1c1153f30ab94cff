"""Oracle: scipy.stats.permutation_test of the largest |t| of scipy's t-tests."""

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_ind

from firstlight.functional import ScoredRuns, max_t_permutations, slope_weights


def drawn(classes, sizes, shift=0.0, seed=0, n=2000):
    generator = np.random.default_rng(seed)
    arms, targets = np.repeat(range(len(sizes)), sizes), np.arange(classes * n) % classes
    level = generator.uniform(0.3, 0.6, (len(arms), classes))  # runs differ widely: no ties
    level[arms == 1, 0] += shift
    return ScoredRuns(generator.random((len(arms), classes * n)) < level[:, targets], targets, arms)


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5)])
@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_equals_the_permutation_test_of_scipy(sizes, shift):
    runs = drawn(4, sizes, shift)
    x = runs.accuracy

    def largest(a, b, axis):
        t = ttest_ind(np.moveaxis(b, axis, 0), np.moveaxis(a, axis, 0)).statistic
        return np.abs(t).max()

    def of_rows(first, second):
        return largest(x[first.astype(int)], x[second.astype(int)], 0)

    rows = np.arange(len(x))
    expected = permutation_test(
        (rows[: sizes[0]], rows[sizes[0] :]), of_rows, vectorized=False, n_resamples=np.inf,
        alternative="greater",
    )  # fmt: skip
    found = max_t_permutations(runs)
    assert found.exhaustive
    assert len(found.largest) == len(expected.null_distribution)
    assert found.p.min() == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.largest[0] == pytest.approx(expected.statistic, rel=1e-9)
    np.testing.assert_allclose(
        np.sort(found.largest), np.sort(expected.null_distribution), rtol=1e-9
    )


@pytest.mark.slow
def test_level_holds_over_the_family():
    """30 classes without effect, 5 + 5 runs: p <= .05 in at most 5 % of 60 sets, + 2 sd."""
    wrong = sum(max_t_permutations(drawn(30, (5, 5), 0, s, 40)).p.min() <= 0.05 for s in range(60))
    assert wrong <= 7


def test_large_effect_has_the_least_p_there_is():
    found = max_t_permutations(drawn(3, (5, 5), shift=0.39))
    assert found.p[0] == pytest.approx(2 / 252)
    assert (found.p[1:] > found.p[0]).all()


def test_many_relabelings_are_drawn():
    runs = drawn(4, (3, 3, 3), shift=0.0)
    weights = slope_weights([0, 1, 3])
    found, again = (max_t_permutations(runs, weights, relabelings=300, seed=5) for _ in range(2))
    assert not found.exhaustive and len(found.largest) == 300
    np.testing.assert_array_equal(found.p, again.p)
    some = max_t_permutations(drawn(4, (4, 4)), relabelings=69)
    every = max_t_permutations(drawn(4, (4, 4)), relabelings=70)
    assert every.exhaustive and not some.exhaustive
    np.testing.assert_allclose(some.p, every.p, atol=0.2)


def test_needs_more_than_one_run():
    with pytest.raises(ValueError, match="more than one run"):
        max_t_permutations(drawn(3, (1, 1)))
