"""Oracles: scikit-learn's confusion matrices, scipy's Welch interval, coverage of simulations."""

import numpy as np
import pytest
from scipy.stats import ttest_ind
from sklearn.metrics import confusion_matrix

from firstlight.functional import confusion_shifts

CLASSES, ARMS = 5, np.array([0, 1, 0, 1, 0])


def shares_of_runs(pred, targets, shifts):
    """P(pred | target) of every run, (runs, pairs), by sklearn.metrics.confusion_matrix."""
    n = np.bincount(targets, minlength=CLASSES)
    each = np.stack([confusion_matrix(targets, row, labels=range(CLASSES)) for row in pred])
    return each[:, shifts.target, shifts.pred] / n[shifts.target], n[shifts.target]


def test_shares_are_those_of_confusion_matrices(predicted):
    pred, targets = predicted
    shifts = confusion_shifts(pred, targets, ARMS)
    shares, _ = shares_of_runs(pred, targets, shifts)
    np.testing.assert_allclose(shifts.before, shares[ARMS == 0].mean(0), atol=1e-12)
    np.testing.assert_allclose(shifts.after, shares[ARMS == 1].mean(0), atol=1e-12)
    assert (np.diff(np.abs(shifts.after - shifts.before)) <= 1e-15).all()
    wrong = pred != targets
    there = {(t, p) for t, p in zip(np.broadcast_to(targets, pred.shape)[wrong], pred[wrong],
                                    strict=True)}  # fmt: skip
    assert there == set(zip(shifts.target, shifts.pred, strict=True))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_intervals_are_welchs(predicted, level):
    """scipy.stats.ttest_ind without equal variances, where both arms vary by more than rounding."""
    pred, targets = predicted
    shifts = confusion_shifts(pred, targets, ARMS, level=level)
    shares, n = shares_of_runs(pred, targets, shifts)
    first, second = shares[ARMS == 0], shares[ARMS == 1]
    enough = np.minimum(first.var(0, ddof=1), second.var(0, ddof=1)) > 1 / (12 * n**2)
    assert enough.sum() > 5
    test = ttest_ind(second[:, enough], first[:, enough], equal_var=False)
    interval = test.confidence_interval(level)
    np.testing.assert_allclose(shifts.low[enough], interval.low, rtol=1e-9)
    np.testing.assert_allclose(shifts.high[enough], interval.high, rtol=1e-9)
    change = shifts.after - shifts.before
    np.testing.assert_allclose(shifts.se[enough], change[enough] / test.statistic, rtol=1e-9)


def test_runs_that_agree_keep_the_variance_of_rounding():
    """2 of 10 images in both runs of an arm, 5 in both of the other: two floors of 1/1200, halved.

    Welch's degrees of freedom are then 2, whose .975 quantile is 4.3027 (of tables).
    """
    targets = np.zeros(10, int)
    rows = [np.arange(10) < count for count in (2, 2, 5, 5)]
    shifts = confusion_shifts(np.array(rows, int), targets, [0, 0, 1, 1])
    se = np.sqrt(1 / 1200)
    assert shifts.se == pytest.approx([se])
    assert [shifts.low[0], shifts.high[0]] == pytest.approx([0.3 - 4.3027 * se, 0.3 + 4.3027 * se],
                                                            rel=1e-4)  # fmt: skip


def coverage(replicas, means, repeats=40, pairs=300, n=50, tilt=0.0):
    """Share of pairs that moved whose interval holds the true shift, and its error over repeats.

    Every class has its own wrong class. Images differ in their chance of it (Beta), which stays
    when seeds change; ``tilt`` moves all images of a pair in a run together.
    """
    generator = np.random.default_rng(0)
    targets, arms = np.repeat(2 * np.arange(pairs), n), np.repeat([0, 1], replicas)
    mu = [mean / n for mean in means]
    chances = np.stack([generator.beta(1.5 * m, 1.5 * (1 - m), len(targets)) for m in mu])
    true = np.diff(chances.reshape(2, pairs, n).mean(2), axis=0)[0]
    each = []
    for _ in range(repeats):
        moved = np.exp(tilt * generator.standard_normal((len(arms), pairs)) - tilt**2 / 2)
        chance = chances[arms] * moved[:, targets // 2]
        pred = np.where(generator.random(chance.shape) < chance, targets + 1, targets)
        found = confusion_shifts(pred, targets, arms)
        kept = found.before != found.after
        truth = true[found.target // 2]
        each.append(((found.low <= truth) & (truth <= found.high))[kept].mean())
    return np.mean(each), np.std(each, ddof=1) / np.sqrt(repeats)


@pytest.mark.parametrize(
    ("replicas", "means", "low", "high"),
    [
        ([2, 2], (3, 10), 0.965, 0.99),
        ([3, 3], (0.2, 5), 0.94, 0.975),
        ([3, 5], (3, 10), 0.945, 0.975),
        ([5, 5], (8, 8), 0.945, 0.965),
        ([5, 5], (0.2, 0.2), 0.97, 0.99),
    ],
)
def test_intervals_cover_at_their_level(replicas, means, low, high):
    """Each rate has a standard error of .002 or less: by pairs seen from .2 to 10 times a run."""
    rate, error = coverage(replicas, means)
    assert error < 0.0025
    assert low < rate < high


def test_intervals_cover_where_seeds_move_a_pair_as_a_whole():
    rate, error = coverage([5, 5], (3, 6), tilt=0.2)
    assert error < 0.003
    assert 0.94 < rate < 0.97


def test_no_interval_without_a_second_run(predicted):
    pred, targets = predicted
    shifts = confusion_shifts(pred[:3], targets, [0, 1, 0])
    assert len(shifts.se) > 5
    assert np.isnan([shifts.se, shifts.low, shifts.high]).all()
    assert np.isfinite([shifts.before, shifts.after]).all()


def test_nothing_wrong_is_no_pair():
    shifts = confusion_shifts([[0, 1], [0, 1]], [0, 1], [0, 1])
    assert not len(shifts.target) and not len(shifts.se)


def test_refuses(predicted):
    pred, targets = predicted
    with pytest.raises(ValueError, match="arms 0 or 1"):
        confusion_shifts(pred[:, 1:], targets, ARMS)
    with pytest.raises(ValueError, match="level must be"):
        confusion_shifts(pred, targets, ARMS, level=95)
