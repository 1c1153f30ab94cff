"""Oracles: the binomial law of flips, enumeration of every relabeling, coverage of simulations."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import binom
from simulated_runs import Cell, null_runs, runs_of

from firstlight.functional import ScoredRuns, class_effects, null_band, widening_factor

DRAWS = 40_000


def test_one_run_an_arm_flips_the_images_that_differ():
    """7 of 12 images differ: (2 Binomial(7, 1/2) - 7)/12; a rate of 40,000 draws is within .01."""
    correct = np.array([[1] * 5 + [0] * 2 + [1] * 5, [0] * 5 + [1] * 2 + [1] * 5])
    band = null_band(ScoredRuns(correct, np.zeros(12, int), [0, 1]), draws=DRAWS)
    values = np.rint((band.smallest * 12 + 7) / 2)
    rates = np.bincount(values.astype(int), minlength=8) / DRAWS
    np.testing.assert_allclose(rates, binom(7, 0.5).pmf(np.arange(8)), atol=0.01)
    assert band.low[0] == pytest.approx((2 * binom(7, 0.5).ppf(0.025) - 7) / 12)
    assert np.isnan(band.phi) and band.widened == 1


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_level_is_that_of_the_binomial(level):
    """All of 400 images differ: quantiles of 2 Binomial(400, 1/2) - 400, to one flip."""
    correct = np.stack([np.arange(400) % 2, 1 - np.arange(400) % 2])
    band = null_band(ScoredRuns(correct, np.zeros(400, int), [0, 1]), draws=DRAWS, level=level)
    flips = [(one[0] * 400 + 400) / 2 for one in (band.low, band.median, band.high)]
    expected = binom(400, 0.5).ppf([(1 - level) / 2, 0.5, (1 + level) / 2])
    np.testing.assert_allclose(flips, expected, atol=1)


CASES = {
    "2 + 3": ([0, 0, 1, 1, 1], [-1.0, 1.0]),
    "slope": ([0, 1, 1, 2], [-0.7, -0.1, 0.8]),
    "order": ([1, 0, 1, 1], [0.5, -0.5]),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_have_the_law_of_all_relabelings(case):
    """Three images, each relabelled in every way: means, variances and tails by enumeration."""
    arms, weights = CASES[case]
    generator = np.random.default_rng(4)
    correct = (generator.random((len(arms), 3)) < 0.6).astype(int)
    correct[:2, 0] = [0, 1]  # at least one image that differs
    w, arms = np.array(weights), np.array(arms)
    per_run = (w / np.bincount(arms))[arms]
    each = [[per_run @ np.array(p) for p in permutations(column.tolist())] for column in correct.T]
    law = np.array([sum(parts) / 3 for parts in product(*[np.unique(e, return_counts=True)[0]
                                                          for e in each])])  # fmt: skip
    chance = np.array([np.prod(parts) for parts in product(
        *[np.unique(e, return_counts=True)[1] / len(e) for e in each])])  # fmt: skip
    runs = ScoredRuns(correct, [0, 0, 0], arms)
    found = null_band(runs, weights, draws=DRAWS, widen=False).smallest
    deviation = np.sqrt(chance @ law**2)
    assert abs(chance @ law) < 1e-12
    assert found.mean() == pytest.approx(0, abs=4 * deviation / np.sqrt(DRAWS))
    assert found.std() == pytest.approx(deviation, rel=0.015)
    for cut in np.quantile(law, [0.1, 0.3, 0.7, 0.9]) + 1e-9:
        assert (found <= cut).mean() == pytest.approx(chance @ (law <= cut), abs=0.012)


def test_beyond_is_by_rank_and_never_by_rounding():
    runs = null_runs(Cell(20, 10, 0.7, 0.2), 1, np.random.default_rng(0))
    runs = ScoredRuns(runs.correct, runs.targets, runs.arms, 21)
    band = null_band(runs)
    effect = np.append(band.high[::-1] + 1e-12, np.nan)
    assert not band.beyond(effect).any()
    effect[[0, 3, 4]] = 2.0, -2.0, -1.9
    np.testing.assert_array_equal(np.flatnonzero(band.beyond(effect) == -1)[:2], [3, 4])
    assert band.beyond(effect)[0] == 1 and band.beyond(effect)[-1] == 0


def test_ranks_are_those_of_many_classes():
    """Fresh null effects of 200 equal classes: each rank is inside the band 95 % of the time."""
    generator = np.random.default_rng(0)
    cell = Cell(200, 50, 0.76, 0.10)
    p = cell.chances(generator)
    band = null_band(runs_of(cell, [p, p], 3, generator), draws=2000, widen=False)
    effects = [
        np.sort(class_effects(runs_of(cell, [p, p], 3, generator)).effect) for _ in range(200)
    ]
    inside = np.array([band.beyond(one) == 0 for one in effects])
    assert 0.94 < inside.mean() <= 1  # discrete effects lie on the border often
    middle = slice(50, 150)
    np.testing.assert_allclose(np.mean(effects, axis=0)[middle], band.median[middle], atol=0.005)
    assert np.mean([e[0] for e in effects]) == pytest.approx(band.smallest.mean(), rel=0.04)
    assert np.mean([e[-1] for e in effects]) == pytest.approx(band.largest.mean(), rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [3, 5])
def test_covers_the_smallest_null_effect(replicas):
    """Seen .87 to .97 of 30 repeats; 80 % is 2 sd below .95 - .05 for discreteness."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(30):
        runs = null_runs(Cell(1000, 50, 0.76, 0.10), replicas, generator)
        band, worst = null_band(runs, draws=200), class_effects(runs).effect.min()
        covered += band.low[0] - 1e-9 <= worst <= band.high[0] + 1e-9
    assert covered >= 24


def test_widened_by_the_root_of_phi():
    generator = np.random.default_rng(0)
    cell = Cell(300, 50, 0.7, 0.2)
    p = np.clip(cell.chances(generator), 0.15, 0.85)
    runs = runs_of(cell, [p, p], 3, generator, shock=0.05)
    wide, narrow = null_band(runs), null_band(runs, widen=False)
    factor = np.sqrt(widening_factor(runs))
    assert factor > 1.1
    np.testing.assert_allclose(wide.low, narrow.low * factor, rtol=1e-12)
    assert wide.widened == pytest.approx(factor) and narrow.widened == 1


def test_centred_band_has_no_mean():
    runs = null_runs(Cell(80, 20, 0.7, 0.1), 2, np.random.default_rng(0))
    plain, centred = null_band(runs), null_band(runs, centred=True)
    assert abs(centred.median.mean()) < abs(plain.high - plain.low).mean() / 10
    many = null_band(ScoredRuns(runs.correct, np.zeros(1600, int), runs.arms), centred=True)
    np.testing.assert_allclose([many.low, many.high], 0, atol=1e-15)


def test_chunks_and_seeds(monkeypatch):
    runs = null_runs(Cell(60, 20, 0.7, 0.1), 2, np.random.default_rng(0))
    whole = null_band(runs, draws=2000)
    monkeypatch.setitem(null_band.__globals__, "CHUNK", 3000)
    parts = null_band(runs, draws=2000)
    assert len(parts.smallest) == 2000
    np.testing.assert_allclose(whole.low, parts.low, atol=0.03)
    np.testing.assert_array_equal(parts.low, null_band(runs, draws=2000).low)
    assert (null_band(runs, seed=1).smallest != null_band(runs, seed=2).smallest).any()


@pytest.mark.parametrize("settings", [{"draws": 0}, {"level": 1.0}])
def test_refuses(settings):
    runs = null_runs(Cell(5, 5, 0.7, 0.1), 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="null_band needs"):
        null_band(runs, **settings)
