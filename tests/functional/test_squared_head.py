"""Squared-loss heads against scikit-learn, refits and the method's reference simulations."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from firstlight.functional import (
    ClassWeights,
    LastLayerStatistics,
    RuleUndefinedError,
    class_weights,
    equal_leverage_weights,
    fit_squared_head,
    leave_one_out_midpoint,
)


def sample(n=(60, 25, 12), d=7, seed=0, scale=True):
    """Three Gaussian classes, features of very different scales and means far from 0."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(n)), n)
    x = generator.standard_normal((len(y), d)) + 2 * generator.standard_normal((len(n), d))[y]
    if scale:
        x = x * 10.0 ** np.linspace(-2, 2, d) + 50
    order = generator.permutation(len(y))
    return x[order], y[order]


def statistics(x, y, chunks=4, **kwargs):
    found = LastLayerStatistics(x.shape[1], int(y.max()) + 1, **kwargs)
    for part in np.array_split(np.arange(len(y)), chunks):
        found.update(torch.tensor(x[part]), torch.tensor(y[part]))
    return found


def given(values, y):
    n = np.bincount(y)
    weights = torch.tensor(values).double()
    return class_weights(n.tolist(), "custom", custom=weights)


def scikit_learn(x, y, w, ridge, standardize):
    """Ridge regression of one-hot targets with sample weights, on scaled features."""
    scale = x.std(0) if standardize else np.ones(x.shape[1])
    by_example = w[y]
    fit = Ridge(alpha=len(y) * ridge + 1e-300, solver="cholesky", tol=1e-14)
    fit.fit((x - x.mean(0)) / scale, np.eye(len(w))[y], sample_weight=by_example)
    weight = fit.coef_ / scale
    return weight, fit.intercept_ - weight @ x.mean(0)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.03, 2.0])
@pytest.mark.parametrize("values", [[1, 1, 1], [1, 5, 0.3]])
def test_the_head_is_scikit_learns_ridge(standardize, ridge, values):
    x, y = sample(scale=standardize)
    weights = given(values, y)
    head = fit_squared_head(statistics(x, y), weights, ridge=ridge, standardize=standardize)
    weight, bias = scikit_learn(x, y, weights.weights.numpy(), ridge, standardize)
    np.testing.assert_allclose(head.weight, weight, rtol=1e-9, atol=1e-10 * np.abs(weight).max())
    np.testing.assert_allclose(head.bias, bias, rtol=1e-8, atol=1e-9 * np.abs(bias).max())
    assert head.converged and head.gradient_norm < 1e-12
    np.testing.assert_allclose(
        head.logits(torch.tensor(x)), x @ weight.T + bias, rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_degrees_of_freedom_are_the_hat_matrix(ridge):
    """Oracle: the hat matrix of the whole fit, formed by fitting to each unit vector."""
    x, y = sample(n=(14, 9, 5), d=4)
    weights = given([1, 2, 4], y)
    w, n = weights.weights.numpy()[y], len(y)
    z = (x - x.mean(0)) / x.std(0)
    hat = np.empty((n, n))
    for i in range(n):
        fit = Ridge(alpha=n * ridge + 1e-300, solver="cholesky")
        hat[:, i] = fit.fit(z, np.eye(n)[i], sample_weight=w).predict(z)
    head = fit_squared_head(statistics(x, y), weights, ridge=ridge)
    want = [np.diag(hat)[y == k].sum() for k in range(3)]
    np.testing.assert_allclose(head.degrees_of_freedom, want, rtol=1e-9)
    if ridge == 0:
        assert float(head.degrees_of_freedom.sum()) == pytest.approx(4 + 1, rel=1e-8)


def test_the_midpoint_is_that_of_refits():
    """Oracle: every example left out in turn and the head refitted; pairwise margins symmetric."""
    x, y = sample(n=(16, 9, 6), d=5)
    weights, ridge, n = given([1, 3, 2], y), 0.07, 31
    w, scale = weights.weights.numpy(), x.std(0)
    z, targets = (x - x.mean(0)) / scale, np.eye(3)[y]
    scores = np.empty((n, 3))
    for i in range(n):
        kept = np.arange(n) != i
        fit = Ridge(alpha=n * ridge, solver="cholesky")
        fit.fit(z[kept], targets[kept], sample_weight=w[y][kept])
        scores[i] = fit.predict(z[i : i + 1])[0]
    means = np.stack([scores[y == k].mean(0) for k in range(3)])
    stats = statistics(x, y)
    head = fit_squared_head(stats, weights, ridge=ridge)
    halves = [(torch.tensor(x[s]), torch.tensor(y[s])) for s in (slice(0, 12), slice(12, None))]
    moved = leave_one_out_midpoint(head, stats, halves)
    torch.testing.assert_close(moved.weight, head.weight)
    means = means + (moved.bias - head.bias).numpy()
    # Over the two classes of a pair, the own score's lead averages to the same on both sides, up
    # to what three classes leave: least squares over all pairs.
    leads = np.diag(means)[:, None] - means
    uneven = leads - leads.T
    np.testing.assert_allclose(uneven.sum(1), 0, atol=1e-10)
    assert "leave-one-out midpoint" in moved.rule and moved.evaluations == 2


def test_two_classes_meet_half_way():
    """For two classes the mean leave-one-out margins become equal, by refits."""
    x, y = sample(n=(20, 6), d=3)
    stats, n = statistics(x, y), 26
    weights = given([1, 1], y)
    head = leave_one_out_midpoint(
        fit_squared_head(stats, weights), stats, [(torch.tensor(x), torch.tensor(y))]
    )
    plain = fit_squared_head(stats, weights)
    shift = (head.bias - plain.bias).numpy()
    margins = []
    for i in range(n):
        kept = np.arange(n) != i
        refit = fit_squared_head(statistics(x[kept], y[kept]), given([1, 1], y[kept]))
        left_out = refit.logits(torch.tensor(x[i : i + 1])).numpy()[0] + shift
        margins.append(left_out[y[i]] - left_out[1 - y[i]])
    margins = np.array(margins)
    assert margins[y == 0].mean() == pytest.approx(margins[y == 1].mean(), rel=1e-8)


def test_chunks_merging_and_shifts_do_not_matter():
    x, y = sample()
    want = fit_squared_head(statistics(x, y, 1), given([1, 2, 3], y), ridge=0.1)
    one, other = statistics(x[:40], y[:40]), statistics(x[40:] , y[40:])  # fmt: skip
    one.merge(LastLayerStatistics(7, 3))
    one.merge(other)
    empty = LastLayerStatistics(7, 3)
    empty.merge(one)
    for found in (statistics(x, y, 30), one, empty):
        head = fit_squared_head(found, given([1, 2, 3], y), ridge=0.1)
        torch.testing.assert_close(head.weight, want.weight, rtol=1e-9, atol=0)
        torch.testing.assert_close(head.bias, want.bias, rtol=1e-8, atol=1e-9)


def test_moments_of_weightings_stand_for_those_of_classes():
    x, y = sample()
    rows = torch.tensor([[1.0, 1, 1], [1, 2, 4]])
    stats = statistics(x, y, weightings=rows)
    for values in ([1, 1, 1], [1, 2, 4], [2, 3, 5]):
        weights = given(values, y)
        found = fit_squared_head(stats, weights, ridge=0.1)
        want = fit_squared_head(statistics(x, y), weights, ridge=0.1)
        torch.testing.assert_close(found.weight, want.weight, rtol=1e-8, atol=0)
        assert found.degrees_of_freedom is None
    with pytest.raises(ValueError, match="no combination of the weightings"):
        fit_squared_head(stats, given([1, 2, 9], y))
    with pytest.raises(ValueError, match="moments of every class"):
        equal_leverage_weights(stats)


def test_equal_leverages_are_equal_and_near_the_formula():
    x, y = sample(n=(200, 90, 40), d=20, scale=False)
    stats = statistics(x, y)
    weights = equal_leverage_weights(stats, ridge=0.02)
    freedom = fit_squared_head(stats, weights, ridge=0.02).degrees_of_freedom
    assert float(freedom.max() - freedom.min()) < 1e-7 * float(freedom.mean())
    assert weights.degrees_of_freedom == pytest.approx(float(freedom.sum()), rel=1e-10)
    formula = class_weights(
        np.bincount(y).tolist(),
        "equal_error",
        degrees_of_freedom=weights.degrees_of_freedom,
        freedom_from="fit",
    )
    torch.testing.assert_close(weights.weights, formula.weights, rtol=0.05, atol=0)
    assert weights.provenance == "this project's own derivation"


def test_equal_leverages_that_do_not_exist_are_refused():
    x, y = sample(n=(60, 25, 2), d=40, scale=False)
    with pytest.raises(RuleUndefinedError, match="Raise the ridge"):
        equal_leverage_weights(statistics(x, y))


def gaussians(counts, d, generator):
    """The reference simulation: means 3 unit(e_k - 1/K) in the first K dimensions, N(0, I)."""
    k = len(counts)
    means = np.eye(k) - 1 / k
    means = np.pad(3 * means / np.linalg.norm(means, axis=1, keepdims=True), ((0, 0), (0, d - k)))
    y = np.repeat(np.arange(k), counts)
    return means[y] + generator.standard_normal((len(y), d)), y


@pytest.mark.slow
def test_reference_simulation_of_five_classes():
    """Worst and mean error of the method's reference, within .015 (8 draws, n = 1500 ... 45)."""
    counts = [1500, 600, 240, 100, 45]
    want = {
        "none": (0.946, 0.299),
        "inverse_frequency": (0.075, 0.053),
        "equal": (0.059, 0.058),
        "inverse_frequency, midpoint": (0.054, 0.052),
        "square_root, midpoint": (0.053, 0.044),
    }
    errors = {name: [] for name in want}
    for rep in range(8):
        generator = np.random.default_rng(50 + rep)
        x, y = gaussians(counts, 100, generator)
        test_x, test_y = gaussians([2000] * 5, 100, generator)
        stats = statistics(x, y)
        for name in want:
            rule = name.partition(",")[0]
            equal = rule == "equal"
            weights = equal_leverage_weights(stats) if equal else class_weights(counts, rule)
            head = fit_squared_head(stats, weights)
            if "midpoint" in name:
                batch = [(torch.tensor(x), torch.tensor(y))]
                head = leave_one_out_midpoint(head, stats, batch)
            wrong = head.logits(torch.tensor(test_x)).argmax(1).numpy() != test_y
            errors[name].append([wrong[test_y == k].mean() for k in range(5)])
    found = {}
    for name, values in errors.items():
        by_class = np.mean(values, axis=0)
        found[name] = (by_class.max(), by_class.mean())
    for name, numbers in want.items():
        np.testing.assert_allclose(found[name], numbers, atol=0.015, err_msg=f"{name}: {found}")


def test_reference_simulation_of_two_classes():
    """Worst and mean error, d = 100, n = 500, s = 2: midpoint .048, .044; ratio .058, .050."""
    found = {"inverse_frequency": [], "none": []}
    for rep in range(40):
        generator = np.random.default_rng(rep)
        y = np.repeat([0, 1], [400, 100])
        x = generator.standard_normal((500, 100))
        x[:, 0] += 2.0 * (2 * y - 1)
        stats = statistics(x, y, 1)
        for rule, errors in found.items():
            head = fit_squared_head(stats, class_weights([400, 100], rule))
            if rule == "none":
                head = leave_one_out_midpoint(head, stats, [(torch.tensor(x), torch.tensor(y))])
            theta = (head.weight[1] - head.weight[0]).numpy()
            b = float(head.bias[1] - head.bias[0])
            size = np.linalg.norm(theta) * math.sqrt(2)
            errors.append([math.erfc((2 * theta[0] + sign * b) / size) / 2 for sign in (1, -1)])
    worst = {rule: np.max(errors, axis=1).mean() for rule, errors in found.items()}
    mean = {rule: np.mean(errors) for rule, errors in found.items()}
    assert worst["none"] == pytest.approx(0.048, abs=0.006)
    assert mean["none"] == pytest.approx(0.044, abs=0.006)
    assert worst["inverse_frequency"] == pytest.approx(0.058, abs=0.006)
    assert mean["inverse_frequency"] == pytest.approx(0.050, abs=0.006)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: x.__setitem__((9, 2), math.nan), "example 9, feature 2 is nan"),
        (lambda x, y: x.__setitem__((9, 2), math.inf), "example 9, feature 2 is inf"),
        (lambda x, y: y.__setitem__(11, 3), r"\[0, 3\), but example 11 has 3"),
        (lambda x, y: y.__setitem__(11, -1), "example 11 has -1"),
    ],
)
def test_bad_examples_are_named_and_nothing_is_added(change, message):
    x, y = sample()
    change(x, y)
    stats = LastLayerStatistics(7, 3)
    stats.update(torch.tensor(x[:4]), torch.tensor(y[:4]))
    with pytest.raises(ValueError, match=message):
        stats.update(torch.tensor(x[4:]), torch.tensor(y[4:]))
    assert float(stats.counts.sum()) == 4


def test_what_cannot_be_solved_is_refused():
    x, y = sample()
    stats = LastLayerStatistics(7, 4)
    stats.update(torch.tensor(x), torch.tensor(y))
    ones = ClassWeights(torch.ones(4).double(), "none", "published")
    with pytest.raises(ValueError, match="class 3 has no examples to retrain on"):
        fit_squared_head(stats, ones)
    weights = given([1, 1, 1], y)
    with pytest.raises(ValueError, match=r"97 examples leave some of the 14 .*ridge > 0"):
        fit_squared_head(statistics(np.c_[x, x], y), weights)
    fit_squared_head(statistics(np.c_[x, x], y), weights, ridge=1e-3)
    with pytest.raises(ValueError, match="ridge must be"):
        fit_squared_head(statistics(x, y), weights, ridge=-1)
    with pytest.raises(ValueError, match=r"30\.5 GiB: pass the weightings"):
        LastLayerStatistics(2048, 1000 - 24)
    with pytest.raises(ValueError, match=r"shapes \(97, 7\) and \(5,\)"):
        stats.update(torch.tensor(x), torch.tensor(y[:5]))
    with pytest.raises(ValueError, match="expected 7 features, got 6"):
        stats.update(torch.tensor(x[:, :6]), torch.tensor(y))
    with pytest.raises(ValueError, match="integer targets"):
        stats.update(torch.tensor(x), torch.tensor(y).double())


def test_the_midpoint_needs_the_fits_own_examples():
    x, y = sample(n=(20, 10, 3))
    stats = statistics(x, y)
    head = fit_squared_head(stats, given([1, 1, 1], y), ridge=0.1)
    with pytest.raises(ValueError, match="the batches hold 30 examples, the statistics 33"):
        leave_one_out_midpoint(head, stats, [(torch.tensor(x[:30]), torch.tensor(y[:30]))])
    with pytest.warns(UserWarning, match="class 2 has fewer than 5 examples"):
        moved = leave_one_out_midpoint(head, stats, [(torch.tensor(x), torch.tensor(y))])
    assert moved.notes


def test_a_single_example_of_a_class_is_survived():
    x, y = sample(n=(20, 10, 1))
    stats = statistics(x, y)
    head = fit_squared_head(stats, class_weights([20, 10, 1], "inverse_frequency"), ridge=0.1)
    with pytest.warns(UserWarning, match="fewer than 5"):
        moved = leave_one_out_midpoint(head, stats, [(torch.tensor(x), torch.tensor(y))])
    assert moved.bias.isfinite().all()
