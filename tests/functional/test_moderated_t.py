"""Oracles: limma's numbers (tests/data/limma), scipy's t-test, simulations of known variances."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.special import polygamma
from scipy.stats import kstest, ttest_ind, uniform

from firstlight.functional import benjamini_hochberg, moderate_variances, moderated_t, slope_weights

LIMMA = Path(__file__).parents[1] / "data" / "limma"
STRENGTHS = [0, 0.25, 0.5, 1]
CASES = {
    "two_arms": ([0] * 3 + [1] * 3, None, False),
    "unequal_runs": ([0] * 3 + [1] * 5, None, False),
    "slope": (np.repeat(range(4), 2), slope_weights(STRENGTHS), False),
    "equal_variances": ([0] * 3 + [1] * 3, None, False),
    "trend": ([0] * 3 + [1] * 3, None, True),
}


def reference(name):
    with (LIMMA / f"{name}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    columns = {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
    accuracy = np.stack([columns[key] for key in columns if key.startswith("X")])
    return accuracy, columns


@pytest.mark.parametrize("name", CASES)
def test_equals_limma(name):
    """Bioconductor's limma 3.54.1; the trend by R's lm and limma's trigammaInverse."""
    accuracy, expected = reference(name)
    arms, weights, trend = CASES[name]
    found = moderated_t(accuracy, expected["n"], arms, weights, trend=trend)
    for key in ("effect", "t", "p", "u0"):
        np.testing.assert_allclose(getattr(found, key), expected[key], rtol=1e-6, err_msg=key)
    assert found.d0 == pytest.approx(expected["d0"][0], rel=1e-6)
    assert found.df == pytest.approx(expected["df"][0], rel=1e-6)
    if "q" in expected:
        np.testing.assert_allclose(benjamini_hochberg(found.p), expected["q"], rtol=1e-6)


def test_equal_variances_are_in_the_reference():
    assert np.isinf(reference("equal_variances")[1]["d0"]).all()
    assert np.isfinite(reference("trend")[1]["d0"]).all()


def test_numbers_of_the_worked_example():
    """Six variances with 4 degrees of freedom, worked out by hand with limma."""
    variances = np.array([1, 2, 4, 8, 0.5, 3])
    prior = moderate_variances(variances, 4)
    assert prior.d0 == pytest.approx(6.7685, abs=1e-4)
    np.testing.assert_allclose(prior.u0, 2.4016, atol=1e-4)
    posterior = [1.8810, 2.2524, 2.9953, 4.4811, 1.6952, 2.6239]
    np.testing.assert_allclose(prior.posterior, posterior, atol=1e-4)
    # Runs at -s, 0, s around each arm's mean have just these variances.
    effect, spread = np.array([1, -2, 0.5, 3, -1, 0.2]), np.sqrt(variances)
    arm = np.stack([-spread, 0 * spread, spread])
    found = moderated_t([*arm, *(arm + effect)], np.ones(6), [0] * 3 + [1] * 3, moderate=True)
    t = [0.8930, -1.6321, 0.3538, 1.7357, -0.9407, 0.1512]
    np.testing.assert_allclose(found.t, t, atol=1e-4)
    q = [0.5871, 0.3946, 0.8764, 0.3946, 0.5871, 0.8826]
    np.testing.assert_allclose(benjamini_hochberg(found.p), q, atol=1e-4)


@pytest.mark.parametrize("runs", [(3, 3), (4, 6)])
def test_without_moderation_equals_students_t(runs):
    """scipy.stats.ttest_ind with equal variances."""
    generator = np.random.default_rng(1)
    sides = [generator.normal(0.6, 0.1, (count, 20)) for count in runs]
    arms = np.repeat([0, 1], runs)
    found = moderated_t(np.concatenate(sides), np.full(20, 500), arms)
    expected = ttest_ind(sides[1], sides[0])
    np.testing.assert_allclose(found.t, expected.statistic, rtol=1e-12)
    np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-10)
    assert found.d0 == 0 and found.df == sum(runs) - 2


def gaussian(generator, d0, classes=1000, replicas=3):
    """Runs whose class variances are 4 d0/chi2(d0), and no effect; equal ones for infinite d0."""
    variance = 4 * (d0 / generator.chisquare(d0, classes) if np.isfinite(d0) else np.ones(classes))
    x = generator.standard_normal((2 * replicas, classes)) * np.sqrt(variance)
    return moderated_t(x, np.ones(classes), np.repeat([0, 1], replicas))


def test_gaussian_null_finds_the_prior_and_keeps_its_level():
    """50,000 tests: the standard error of a rate of 5 % is .001, of a median d0 about 1 %."""
    generator = np.random.default_rng(0)
    found = [gaussian(generator, 4) for _ in range(50)]
    assert np.median([one.d0 for one in found]) == pytest.approx(4, rel=0.15)
    p = np.concatenate([one.p for one in found])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.004)
    assert kstest(p, "uniform").statistic < 0.015


def test_equal_variances_give_a_strong_prior():
    generator = np.random.default_rng(0)
    assert np.median([gaussian(generator, np.inf).d0 for _ in range(50)]) > 30


def test_runs_that_agree_have_the_variance_of_rounding():
    """scipy's variance of a uniform error of one image's width."""
    n = np.array([10, 40])
    found = moderated_t(np.full((6, 2), 0.5), n, [0] * 3 + [1] * 3)
    np.testing.assert_allclose(found.se**2, uniform(scale=1 / n).var() * 2 / 3, rtol=1e-12)


def test_centred_does_not_see_what_moves_all_classes():
    generator = np.random.default_rng(2)
    x, n = generator.normal(0.6, 0.05, (8, 60)), generator.integers(100, 200, 60)
    arms = np.repeat([0, 1], 4)
    even = x - x.mean(1, keepdims=True)
    expected = moderated_t(even, n, arms)
    moved = x + generator.normal(0, 0.2, (8, 1))
    found = moderated_t(moved, n, arms, centred=True)
    np.testing.assert_allclose(found.t, expected.t, rtol=1e-9)
    assert abs(found.effect.mean()) < 1e-15
    assert abs(moderated_t(moved, n, arms).effect.mean()) > 0.01


def test_classes_without_images_are_left_out():
    accuracy, expected = reference("two_arms")
    n = np.append(expected["n"], 0)
    wide = np.hstack([accuracy, np.full((6, 1), np.nan)])
    found = moderated_t(wide, n, [0] * 3 + [1] * 3)
    np.testing.assert_allclose(found.p[:-1], expected["p"], rtol=1e-6)
    assert np.isnan([found.effect[-1], found.p[-1], found.u0[-1]]).all()


def test_one_run_an_arm_has_an_effect_and_no_error():
    found = moderated_t([[0.5, 0.2], [0.7, 0.1]], [10, 10], [0, 1])
    np.testing.assert_allclose(found.effect, [0.2, -0.1])
    assert np.isnan(found.se).all() and np.isnan(found.p).all() and found.df == 0


@pytest.mark.parametrize("v", [1e-7, 0.01, 1.0, 500.0, 1e5])
def test_prior_of_any_strength_solves_its_equation(v):
    """Log variances at +-a have variance a^2 C/(C-1): choose a for v, then ask scipy's trigamma."""
    classes, d = 100, 4
    a = np.sqrt((v + polygamma(1, d / 2)) * (classes - 1) / classes)
    found = moderate_variances(np.exp(np.tile([-a, a], classes // 2)), d)
    assert polygamma(1, found.d0 / 2) == pytest.approx(v, rel=1e-5)


@pytest.mark.parametrize(
    ("u", "d", "trend"), [([1.0], 4, None), ([1.0, 0.0], 4, None), ([1.0, 2.0], 0, None),
                          ([1.0, 2.0, 3.0], 4, [1, 2, 3])]
)  # fmt: skip
def test_refuses_what_no_prior_can_be_fitted_to(u, d, trend):
    with pytest.raises(ValueError, match="a prior needs"):
        moderate_variances(u, d, trend)


@pytest.mark.parametrize("weights", [[1, 1], [1, -1, 0], [0, 0]])
def test_refuses_weights_that_are_no_contrast(weights):
    with pytest.raises(ValueError, match="weights must be"):
        moderated_t(np.ones((4, 3)), np.ones(3), [0, 0, 1, 1], weights)


def test_more_than_two_arms_need_weights():
    with pytest.raises(ValueError, match="3 arms: give weights"):
        moderated_t(np.ones((3, 3)), np.ones(3), [0, 1, 2])
