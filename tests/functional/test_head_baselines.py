"""Baselines against the convex problems whose minima they approach, and scikit-learn."""

import numpy as np
import pytest
import torch
from class_samples import gaussian_classes
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from torch.nn import functional as F

from firstlight.functional import (
    HeadFeatures,
    NearestClassMean,
    best_tau,
    class_balanced_retraining,
    class_weights,
    deep_feature_reweighting,
    fit_logistic_head,
    label_over_smoothing,
    learnable_weight_scaling,
    retrain_last_layer,
    tau_normalise,
)
from firstlight.functional.deep_feature_reweighting import fit_l1_logistic

N = (80, 30, 10)


def sample(n=N, d=4, seed=0):
    return gaussian_classes(n, d, seed)


def test_crt_approaches_the_weighted_head():
    x, y = sample()
    data = HeadFeatures(x, y, 3, standardize=False, center=False)
    weights = class_weights(N, "inverse_frequency")
    want = fit_logistic_head(data, weights, ridge=0.02, bias_ridge=0.02)
    options = {"batch_size": 4000, "weight_decay": 0.02, "lr": 0.5}
    # Many copies, so that a step sees the whole distribution.
    copies, labels = x.repeat(100, 1), y.repeat(100)
    head = class_balanced_retraining(copies, labels, 3, epochs=80, **options)
    torch.testing.assert_close(head.weight, want.weight, atol=0.015, rtol=0)
    torch.testing.assert_close(head.bias, want.bias, atol=0.015, rtol=0)
    assert head.iterations == 80 * 3 and not head.converged and head.provenance == "published"
    again = class_balanced_retraining(copies, labels, 3, epochs=80, **options)
    assert torch.equal(head.weight, again.weight)


def test_label_over_smoothing_approaches_its_minimum():
    x, y = sample()
    data = HeadFeatures(x, y, 3, standardize=False)
    plain = fit_logistic_head(data, class_weights(N, "none"))
    for smoothing in (0.98, 0.5):
        want = fit_logistic_head(
            data, class_weights(N, "none"), ridge=0.0, label_smoothing=smoothing
        )
        head = label_over_smoothing(
            plain, x, y, smoothing=smoothing, epochs=3000, lr=0.3, batch_size=200
        )
        found, expected = (h.logits(x).log_softmax(1) for h in (head, want))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_learnable_scales_are_the_minimum_scipy_finds():
    x, y = sample()
    plain = retrain_last_layer(x, y, "unweighted")
    z, weight = plain.logits(x), class_weights(N, "inverse_frequency").weights

    def loss(scale):
        scale = torch.tensor(scale, requires_grad=True)
        each = F.cross_entropy(z * scale, y, reduction="none")
        value = (weight[y] * each).mean() + 0.01 / 2 * (scale**2).sum()
        return float(value.detach()), torch.autograd.grad(value, scale)[0].numpy()

    want = minimize(loss, np.ones(3), jac=True).x
    head = learnable_weight_scaling(
        plain,
        x.repeat(100, 1),
        y.repeat(100),
        epochs=60,
        batch_size=4000,
        weight_decay=0.01,
        lr=0.5,
    )
    found = (head.weight / plain.weight).numpy()
    np.testing.assert_allclose(found, np.repeat(want[:, None], 4, axis=1), atol=0.03)
    torch.testing.assert_close(head.bias / plain.bias, torch.tensor(found[:, 0]))


def test_tau_normalisation():
    x, y = sample()
    head = retrain_last_layer(x, y, "unweighted")
    ones = tau_normalise(head, 1.0)
    torch.testing.assert_close(ones.weight.norm(dim=1), torch.ones(3).double())
    cosine = F.cosine_similarity(x[:, None], head.weight[None], dim=2)
    lengths = x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ones.logits(x), cosine * lengths)
    assert not ones.bias.any() and torch.equal(tau_normalise(head, 0.0).weight, head.weight)
    halves = tau_normalise(head, 0.5).weight.norm(dim=1) ** 2
    torch.testing.assert_close(halves, head.weight.norm(dim=1))
    zero = head.shifted(torch.zeros(3), "")
    zero.weight[1] = 0
    with pytest.raises(ValueError, match="weights of class 1 are all 0"):
        tau_normalise(zero)


def test_the_best_tau_is_that_of_all_tried():
    x, y = sample(seed=3)
    head = retrain_last_layer(x, y, "unweighted")
    grid = [0.0, 0.5, 1.0, 2.0]
    means = []
    for tau in grid:
        right = tau_normalise(head, tau).logits(x).argmax(1) == y
        means.append(np.mean([float(right[y == k].double().mean()) for k in range(3)]))
    assert best_tau(head, x, y, grid) == grid[int(np.argmax(means))]
    assert best_tau(head, x, y, [1.0, 1.0 + 1e-12]) == 1.0


def test_nearest_class_mean_is_scikit_learns():
    x, y = sample()
    found = NearestClassMean.fit(x, y, 3)
    centre = x.numpy().mean(0)
    z = normalize(x.numpy() - centre)
    other = NearestCentroid().fit(z, y.numpy())
    np.testing.assert_allclose(found.means, other.centroids_, rtol=1e-12)
    test = sample(seed=5)[0]
    away = normalize(test.numpy() - centre)[:, None] - other.centroids_
    np.testing.assert_allclose(found.logits(test), -(away**2).sum(2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strength", [0.3, 0.03])
def test_the_sparse_head_is_scikit_learns(strength):
    x, y = sample((30, 30, 30))
    weight, bias, steps = fit_l1_logistic(x, y, 3, strength, tolerance=1e-9)
    other = LogisticRegression(C=strength, l1_ratio=1, solver="saga", tol=1e-10, max_iter=100_000)
    other.fit(x, y)

    def value(w, b):
        z = x.numpy() @ w.T + b
        return np.abs(w).sum() + strength * float(
            F.cross_entropy(torch.tensor(z), y, reduction="sum")
        )

    assert value(weight.numpy(), bias.numpy()) == pytest.approx(
        value(other.coef_, other.intercept_), rel=1e-7
    )
    np.testing.assert_allclose(weight, other.coef_, atol=1e-3)
    assert steps < 20_000 and int((weight == 0).sum()) == int((other.coef_ == 0).sum())


def test_deep_feature_reweighting_ignores_a_spurious_feature():
    """Group-balanced subsets carry no correlation between class and the spurious feature."""
    generator = np.random.default_rng(0)
    y = np.repeat([0, 0, 1, 1], [400, 40, 20, 300])
    place = np.repeat([0, 1, 0, 1], [400, 40, 20, 300])
    x = generator.standard_normal((760, 2)) * [1.0, 0.3] * [5, 2] + np.c_[5 * y, 2 * place] + 9
    x, y = torch.tensor(x), torch.tensor(y)
    groups = torch.tensor(place) + 2 * y
    plain = retrain_last_layer(x, y, "unweighted")
    head = deep_feature_reweighting(x, y, 2, groups=groups)

    def reliance(h):
        gap = (h.weight[1] - h.weight[0]) * x.std(0)
        return float(gap[1].abs() / gap[0].abs())

    def worst(h):
        right = h.logits(x).argmax(1) == y
        return min(float(right[groups == k].double().mean()) for k in range(4))

    assert reliance(head) < 0.3 < 1 < reliance(plain)
    assert worst(head) > worst(plain) + 0.2
    assert head.rule.startswith("DFR, C=") and "20 examples of each group" in head.notes[0]
    by_class = deep_feature_reweighting(x, y, 2, subsets=3)
    assert "320 examples of each group" in by_class.notes[0]


def test_bad_examples_are_refused():
    x, y = sample((10, 5, 1))
    with pytest.raises(ValueError, match="group 2 has a single example"):
        deep_feature_reweighting(x, y, 3)
    with pytest.raises(ValueError, match="groups must be"):
        deep_feature_reweighting(x, y, 3, groups=y[:4])
    for call in (
        lambda: deep_feature_reweighting(x, y, 4),
        lambda: class_balanced_retraining(x, y, 4),
        lambda: NearestClassMean.fit(x, y, 4),
    ):
        with pytest.raises(ValueError, match="class 3 has no examples"):
            call()
    head = retrain_last_layer(x, y, "unweighted")
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\)"):
        label_over_smoothing(head, x, y, smoothing=1.0)
