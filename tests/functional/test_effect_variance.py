"""Oracle: the expectation over all outcomes of all runs and all choices of images, enumerated."""

from itertools import product

import numpy as np
import pytest
from simulated_runs import Cell, null_runs, runs_of

from firstlight.functional import ScoredRuns, class_effects, effect_variance, widening_factor

CHANCES = np.array([[0.2, 0.9], [0.7, 0.8], [0.5, 0.1]])
"""Of three kinds of image, the chance that a run of arm 0, or of arm 1, is right."""


def outcomes(chances, arms):
    """All (probability, correct (runs, images)) of independent runs on images of these chances."""
    each = chances[:, arms].T
    for bits in product((0, 1), repeat=each.size):
        correct = np.reshape(bits, each.shape)
        yield np.prod(np.where(correct, each, 1 - each)), correct


@pytest.mark.parametrize("weights", [None, [-2.0, 2.0]])
def test_unbiased_for_new_seeds_and_new_images(weights):
    """Two images drawn from three kinds, 2 + 2 runs: 9 x 256 outcomes."""
    arms, size = np.array([0, 0, 1, 1]), (weights or [-1, 1])[1]
    means, seeds, images, effects, weight = [], [], [], [], []
    for kinds in product(range(3), repeat=2):
        inside = []
        for probability, correct in outcomes(CHANCES[list(kinds)], arms):
            runs = ScoredRuns(correct, [0, 0], arms)
            found = effect_variance(runs, weights)
            x = size * (correct[2:].mean() - correct[:2].mean())
            inside.append([probability, x, found.seed[0], found.within[0]])
            effects.append(x)
            images.append(found.images[0])
            weight.append(probability / 9)
        p, x, seed, within = np.array(inside).T
        means.append(p @ x)
        truth = p @ x**2 - (p @ x) ** 2
        assert p @ seed == pytest.approx(truth, rel=1e-12)
        assert p @ within == pytest.approx(truth, rel=1e-12)
        seeds.append(truth)
    weight, effects = np.array(weight), np.array(effects)
    total = weight @ effects**2 - (weight @ effects) ** 2
    assert weight @ np.array(images) == pytest.approx(total, rel=1e-12)
    assert total > np.mean(seeds) * 1.05


def test_given_seed_variance_takes_the_place_of_its_own():
    runs = null_runs(Cell(60, 20, 0.7, 0.1), 3, np.random.default_rng(0))
    given = class_effects(runs).se ** 2
    own, other = effect_variance(runs), effect_variance(runs, seed_variance=given)
    np.testing.assert_allclose(other.images - own.images, given - own.seed, atol=1e-15)
    np.testing.assert_array_equal(other.within, own.within)


def test_widening_is_what_a_shock_adds():
    """Shocks of SD .03: (churn/2 + n .03^2) / (churn/2) of the variance, within 2 se (6 %)."""
    generator = np.random.default_rng(0)
    cell = Cell(1000, 50, 0.76, 0.10)
    p = np.clip(cell.chances(generator), 0.1, 0.9)  # where a shock stays a probability
    within = (p * (1 - p)).mean()
    assert widening_factor(runs_of(cell, [p, p], 3, generator)) == pytest.approx(1, abs=0.06)
    shocked = runs_of(cell, [p, p], 3, generator, shock=0.03)
    assert widening_factor(shocked) == pytest.approx(1 + 50 * 0.03**2 / within, rel=0.06)


def test_one_run_and_absent_classes_are_unknown():
    runs = ScoredRuns([[1, 0], [1, 1], [0, 1]], [0, 0], [0, 1, 1], 2)
    assert np.isnan(effect_variance(runs).seed).all()
    assert np.isnan(widening_factor(runs))
    several = ScoredRuns([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0], [0, 0, 1, 1], 2)
    assert np.isnan(effect_variance(several).images[1])
    assert widening_factor(several) == 1  # no run differs from its arm's other one
