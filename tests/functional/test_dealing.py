"""Oracles: scipy's hypergeometric laws, central and Fisher's, and a maximised likelihood."""

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_hypergeom, nchypergeom_fisher

from firstlight.functional.dealing import common_odds, deal, dealt_on_average

DRAWS = 40_000
"""A rate has a standard error of .0025 at most."""


def drawn(hits, replicas, odds, draws=DRAWS):
    found = deal(np.array(hits), replicas, np.array(odds), np.random.default_rng(0), draws)
    return np.stack(list(found))


@pytest.mark.parametrize("odds", [1.0, 0.4, 5.0])
def test_two_arms_are_fishers(odds):
    """scipy.stats.nchypergeom_fisher: of 7 runs 3 of the first arm, K right."""
    found, means = drawn([1, 4, 6], [3, 4], [odds, 1.0]), dealt_on_average([3, 4], [odds, 1.0])
    for image, k in enumerate([1, 4, 6]):
        law = nchypergeom_fisher(7, 3, k, odds)
        rates = np.bincount(found[0, :, image], minlength=4) / DRAWS
        np.testing.assert_allclose(rates, law.pmf(np.arange(4)), atol=0.01)
        assert means[0, k] == pytest.approx(law.mean(), rel=1e-9)
    assert (found.sum(0) == [1, 4, 6]).all()


def test_alike_arms_are_hypergeometric():
    """scipy.stats.multivariate_hypergeom of 2 + 1 + 3 runs."""
    found = drawn([3], [2, 1, 3], [2.0, 2.0, 2.0])[:, :, 0]
    law = multivariate_hypergeom([2, 1, 3], 3)
    for y in product(range(3), range(2), range(4)):
        rate = (y == found.T).all(1).mean()
        assert rate == pytest.approx(law.pmf(y), abs=0.01)
    np.testing.assert_allclose(dealt_on_average([2, 1, 3], np.full(3, 2.0))[:, 3], law.mean())


def law_of(k, replicas, odds):
    """Every way to have k right, and its chance."""
    ways = [y for y in product(*(range(size + 1) for size in replicas)) if sum(y) == k]
    of_arms = [[comb(size, n) * value**n for n in range(size + 1)]
               for size, value in zip(replicas, odds, strict=True)]  # fmt: skip
    weights = np.array([np.prod([one[n] for one, n in zip(of_arms, y, strict=True)]) for y in ways])
    return np.array(ways), weights / weights.sum()


def test_three_arms_of_other_odds_by_enumeration():
    replicas, odds = [2, 1, 2], np.array([0.5, 1.0, 3.0])
    found = drawn([2], replicas, odds)[:, :, 0]
    ways, chances = law_of(2, replicas, odds)
    rates = [(y == found.T).all(1).mean() for y in ways]
    np.testing.assert_allclose(rates, chances, atol=0.01)
    np.testing.assert_allclose(dealt_on_average(replicas, odds)[:, 2], chances @ ways, rtol=1e-12)
    assert dealt_on_average(replicas, odds)[:, [0, 5]].T.tolist() == [[0, 0, 0], [2, 1, 2]]


def test_odds_maximise_the_conditional_likelihood():
    """scipy.optimize over the enumerated likelihood."""
    replicas, generator = [2, 3, 1], np.random.default_rng(1)
    chances = zip(replicas, (0.4, 0.6, 0.7), strict=True)
    answers = np.stack([generator.binomial(size, chance, 60) for size, chance in chances])
    hits = answers.sum(0)
    kept = (hits > 0) & (hits < 6)
    answers, hits = answers[:, kept], hits[kept]

    def surprise(logs):
        total = 0.0
        for y, k in zip(answers.T, hits, strict=True):
            ways, chances = law_of(k, replicas, np.exp([0.0, *logs]))
            total -= np.log(chances[(ways == y).all(1)][0])
        return total

    best = minimize(surprise, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7}).x
    found = np.log(common_odds(hits, answers.sum(1).astype(float), replicas))
    np.testing.assert_allclose(found[1:] - found[0], best, atol=1e-4)
    assert found.sum() == pytest.approx(0, abs=1e-12)


def test_an_arm_that_is_always_right_has_finite_odds():
    odds = common_odds(np.array([1, 1, 1, 1]), np.array([4.0, 0.0]), [1, 1])
    law = nchypergeom_fisher(2, 1, 1, odds[0] / odds[1])
    assert law.mean() == pytest.approx(3.5 / 4)
    assert common_odds(np.zeros(0, int), np.zeros(2), [1, 1]).tolist() == [1, 1]
