"""Oracles: hand counts, NumPy on expanded examples, scipy's intervals, simulation."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix

from firstlight.functional import (
    confusion_pairs,
    expected_worst_accuracy,
    per_class_rates,
    shot_groups,
    summarise_classes,
    wilson_interval,
)


def counts_of(n, correct, predicted=None):
    columns = {"n": n, "correct": correct, "pred_count": predicted or n}
    return {name: torch.tensor(column) for name, column in columns.items()}


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 6, 500)
    return target, np.where(rng.random(500) < 0.6, target, rng.integers(0, 6, 500))


def test_rates_equal_scikit_learn(labels):
    target, pred = labels
    bins = {"n": target, "correct": target[target == pred], "pred_count": pred}
    rates = per_class_rates({k: torch.tensor(np.bincount(v, minlength=6)) for k, v in bins.items()})
    report = classification_report(target, pred, output_dict=True)
    for c in range(6):
        row = report[str(c)]
        assert rates["accuracy"][c] == pytest.approx(row["recall"])
        assert rates["precision"][c] == pytest.approx(row["precision"])
        assert rates["f1"][c] == pytest.approx(row["f1-score"])


def test_summary_by_hand():
    counts = counts_of([10, 10, 20, 0], [1, 5, 20, 0], [2, 10, 28, 0])
    summary = summarise_classes(counts, ("few", "medium", "many", "few"))
    assert summary["micro"] == pytest.approx(26 / 40)
    assert summary["macro"] == pytest.approx((0.1 + 0.5 + 1) / 3)
    assert (summary["min"], summary["worst_1pct"]) == pytest.approx((0.1, 0.1))
    assert (summary["worst_class"], summary["absent"]) == (0, 1)
    assert summary["std"] == pytest.approx(np.std([0.1, 0.5, 1]))
    # Positions .02 and .1 on the way from the lowest to the next of three values.
    assert summary["p1"] == pytest.approx(0.1 + 0.02 * 0.4)
    assert summary["p5"] == pytest.approx(0.1 + 0.1 * 0.4)
    assert (summary["few"], summary["medium"], summary["many"]) == pytest.approx((0.1, 0.5, 1))


def test_worst_percent_rounds_up():
    correct = list(range(250))
    summary = summarise_classes(counts_of([1000] * 250, correct))
    assert summary["worst_1pct"] == pytest.approx((0 + 1 + 2) / 3 / 1000)
    assert np.isnan(summary["many"])


def test_nothing_counted_is_refused():
    with pytest.raises(ValueError, match=r"no class has examples"):
        summarise_classes(counts_of([0, 0], [0, 0]))


def test_wilson_equals_scipy():
    low, high = wilson_interval(np.array([0.0, 3, 10, 0]), np.array([10.0, 10, 10, 0]))
    for k in range(3):
        # scipy takes the quantile of exactly 95 %; 1.96 differs from it by 2e-5.
        expected = binomtest([0, 3, 10][k], 10).proportion_ci(0.95, method="wilson")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert np.isnan(low[3])
    assert np.isnan(high[3])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((1000, 50, 0.76), 0.5513), ((10_000, 10, 0.60), 0.0350), ((100, 100, 0.78), 0.6717)],
)
def test_expected_worst_class(arguments, expected):
    assert expected_worst_accuracy(*arguments) == pytest.approx(expected, abs=5e-5)
    classes, n, accuracy = arguments
    draws = np.random.default_rng(1).binomial(n, accuracy, (200, classes)).min(1) / n
    assert draws.mean() == pytest.approx(expected, abs=0.01)


def test_confusions_equal_scikit_learn(labels):
    target, pred, count = confusion_pairs(*labels)
    expected = confusion_matrix(*labels)
    np.fill_diagonal(expected, 0)
    dense = np.zeros_like(expected)
    dense[target, pred] = count
    np.testing.assert_array_equal(dense, expected)
    assert (np.diff(count) <= 0).all()


def test_confusions_of_many_classes_do_not_overflow():
    target, pred, count = confusion_pairs(np.array([99_999, 99_999]), np.array([99_998, 99_998]))
    assert (target[0], pred[0], count[0]) == (99_999, 99_998, 2)


def test_shots_at_the_thresholds():
    assert shot_groups([101, 100, 20, 19]).groups == ("many", "medium", "medium", "few")


def test_shots_of_cifar10_lt_are_thirds_and_say_so():
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    groups, rule = shot_groups(counts)
    assert groups == ("many",) * 4 + ("medium",) * 3 + ("few",) * 3
    assert "thirds" in rule
    assert "no few class" in rule


def test_equal_counts_have_no_groups():
    groups, rule = shot_groups([500, 500])
    assert groups == (None, None)
    assert "every class has 500" in rule


def test_thresholds_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"0 < few <= many, got \(100, 20\)"):
        shot_groups([1, 2], (100, 20))
