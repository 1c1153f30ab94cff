"""Logistic heads against scikit-learn, scipy and the identities of prior correction."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from firstlight.functional import HeadFeatures, class_weights, fit_logistic_head

N = (60, 25, 12)


def sample(n=N, d=6, seed=0, apart=0.7):
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(n)), n)
    x = generator.standard_normal((len(y), d)) + apart * generator.standard_normal((len(n), d))[y]
    x = x @ generator.standard_normal((d, d)) + 3
    order = generator.permutation(len(y))
    return x[order], y[order]


def features(x, y, **kwargs):
    return HeadFeatures(torch.tensor(x), torch.tensor(y), int(y.max()) + 1, **kwargs)


def given(values, n=N):
    return class_weights(list(n), "custom", custom=values)


def objective(x, y, head, weights, ridge, **extra):
    """The documented objective by torch's own cross-entropy, and its gradient by autograd."""
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    z = torch.tensor(x) @ weight.T + bias
    z = extra.get("scales", 1) * z + extra.get("offsets", 0)
    each = F.cross_entropy(
        z, torch.tensor(y), reduction="none", label_smoothing=extra.get("smoothing", 0)
    )
    loss = (each * weights.weights[y]).mean() + ridge / 2 * (weight**2).sum()
    loss = loss + extra.get("bias_ridge", 0) / 2 * (bias**2).sum()
    return float(loss.detach()), torch.autograd.grad(loss, [weight, bias])


@pytest.mark.parametrize("ridge", [0.3, 0.01])
@pytest.mark.parametrize("values", [[1, 1, 1], [1, 4, 0.5]])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_head_is_scikit_learns(ridge, values, standardize):
    x, y = sample()
    weights = given(values)
    head = fit_logistic_head(
        features(x, y, standardize=standardize), weights, ridge=ridge, tolerance=1e-10
    )
    scale = x.std(0) if standardize else np.ones(x.shape[1])
    z = (x - x.mean(0)) / scale
    other = LogisticRegression(C=1 / (len(y) * ridge), tol=1e-12, max_iter=10_000)
    other.fit(z, y, sample_weight=weights.weights.numpy()[y])
    weight = other.coef_ / scale
    bias = other.intercept_ - weight @ x.mean(0)
    np.testing.assert_allclose(head.weight, weight, atol=1e-6)
    np.testing.assert_allclose(head.bias - head.bias.mean(), bias - bias.mean(), atol=1e-5)
    assert head.converged and head.gradient_norm < 1e-10


def test_balanced_weights_are_scikit_learns():
    x, y = sample()
    head = fit_logistic_head(
        features(x, y, standardize=False), class_weights(N, "inverse_frequency"), ridge=0.05
    )
    other = LogisticRegression(
        C=1 / (len(y) * 0.05), tol=1e-12, max_iter=10_000, class_weight="balanced"
    ).fit(x, y)
    np.testing.assert_allclose(head.weight, other.coef_, atol=1e-6)


CASES = {
    "offsets": {"offsets": torch.tensor([0.0, -1.0, -2.0]).double()},
    "scales": {"scales": torch.tensor([1.0, 0.7, 0.4]).double()},
    "both": {
        "offsets": torch.tensor([0.5, -1.0, -2.0]).double(),
        "scales": torch.tensor([1.0, 0.7, 0.4]).double(),
    },
    "smoothing": {"label_smoothing": 0.3},
    "bias penalised": {"bias_ridge": 0.2, "offsets": torch.tensor([0.5, -1.0, -2.0]).double()},
    "no bias": {"intercept": False, "offsets": torch.tensor([0.5, -1.0, -2.0]).double()},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_variant_is_a_minimum_that_scipy_finds_too(case, seed):
    """Oracle: torch's cross-entropy differentiated by autograd, minimised by scipy's BFGS."""
    x, y = sample(seed=seed)
    weights, ridge, extra = given([1, 3, 2]), 0.1, dict(CASES[case])
    centred = case not in ("bias penalised", "no bias")
    head = fit_logistic_head(
        features(x, y, standardize=False, center=centred), weights, ridge=ridge, tolerance=1e-10,
        **extra,
    )  # fmt: skip
    extra["smoothing"] = extra.pop("label_smoothing", 0)
    value, gradient = objective(x, y, head, weights, ridge, **extra)
    assert float(gradient[0].abs().max()) < 1e-8
    if case == "no bias":
        assert not head.bias.any()
    else:
        assert float(gradient[1].abs().max()) < 1e-8

    def flat(v):
        trial = type("Head", (), {})()
        trial.weight = torch.tensor(v[:18].reshape(3, 6))
        trial.bias = torch.tensor(v[18:]) * (case != "no bias")
        loss, (dw, db) = objective(x, y, trial, weights, ridge, **extra)
        return loss, np.r_[dw.numpy().ravel(), db.numpy() * (case != "no bias")]

    other = minimize(flat, np.zeros(21), jac=True, method="BFGS", options={"gtol": 1e-7})
    assert value == pytest.approx(other.fun, abs=1e-9)
    np.testing.assert_allclose(head.weight, other.x[:18].reshape(3, 6), atol=1e-4)


def test_a_free_intercept_absorbs_offsets():
    """Identity 3 of the method's reference: the same classifier from either side."""
    x, y = sample()
    data, ones = features(x, y), given([1, 1, 1])
    offset = torch.tensor([0.3, -0.8, -2.0]).double()
    plain = fit_logistic_head(data, ones, ridge=0.01, tolerance=1e-10)
    moved = fit_logistic_head(data, ones, ridge=0.01, offsets=offset, tolerance=1e-10)
    torch.testing.assert_close(moved.weight, plain.weight, rtol=0, atol=1e-6)
    posterior = (moved.logits(torch.tensor(x)) + offset).softmax(1)
    torch.testing.assert_close(
        posterior, plain.logits(torch.tensor(x)).softmax(1), atol=1e-6, rtol=0
    )
    # and identity 4: the weighted mean posterior is the weighted frequency
    weights = given([1, 4, 0.5])
    head = fit_logistic_head(data, weights, ridge=0.01, tolerance=1e-10)
    w = weights.weights[y][:, None]
    mean = (w * head.logits(torch.tensor(x)).softmax(1)).mean(0)
    want = (w * F.one_hot(torch.tensor(y))).mean(0)
    torch.testing.assert_close(mean, want, atol=1e-9, rtol=0)


def test_float32_half_and_a_warm_start_lead_to_the_same_head():
    x, y = sample()
    ones = given([1, 1, 1])
    want = fit_logistic_head(features(x, y), ones, ridge=0.01)
    for kind, close in ((np.float32, 1e-3), (np.float16, 1e-2)):
        head = fit_logistic_head(features(x.astype(kind), y), ones, ridge=0.01)
        torch.testing.assert_close(head.weight, want.weight, atol=close, rtol=close)
        assert head.converged and head.gradient_norm < 2e-5
    warm = fit_logistic_head(features(x, y), ones, ridge=0.01, start=want)
    assert warm.iterations == 0 and warm.evaluations == 1
    torch.testing.assert_close(warm.weight, want.weight, atol=1e-12, rtol=1e-9)
    with pytest.raises(ValueError, match=r"start is a head of shape \(3, 6\)"):
        fit_logistic_head(features(x[:, :5], y), ones, start=want)


def test_ill_conditioned_features_cost_little_more():
    """As many iterations within a half, where plain L-BFGS takes several times as many."""
    generator = np.random.default_rng(0)
    x, y = sample(n=(300, 150, 60, 30), d=30)
    white = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(len(y))
    turn = np.linalg.qr(generator.standard_normal((30, 30)))[0]
    stretched = white * 10.0 ** np.linspace(0, -2, 30) @ turn
    ones = given([1] * 4, (300, 150, 60, 30))

    def iterations(z):
        return fit_logistic_head(
            features(z, y, standardize=False), ones, ridge=1e-5, tolerance=1e-6
        ).iterations

    assert iterations(stretched) < 1.5 * iterations(white) + 10


def test_separable_data_without_ridge_say_that_weights_do_nothing():
    x, y = sample(apart=30)
    with pytest.warns(UserWarning, match=r"class weights do nothing.*ridge > 0"):
        head = fit_logistic_head(features(x, y), given([1, 4, 9]), ridge=0.0, tolerance=1e-6)
    assert not head.converged and head.notes
    assert fit_logistic_head(features(x, y), given([1, 4, 9]), ridge=1e-4).converged


def test_a_certificate_that_was_not_reached():
    x, y = sample()
    with pytest.warns(UserWarning, match="not converged: the gradient is .* after 3 iterations"):
        head = fit_logistic_head(features(x, y), given([1, 1, 1]), max_iterations=3)
    assert not head.converged and head.gradient_norm > 1e-8
    assert head.iterations == 3


def test_the_certificate_is_autograds():
    x, y = sample()
    with pytest.warns(UserWarning, match="not converged"):
        head = fit_logistic_head(
            features(x, y, standardize=False, center=False), given([1, 5, 2]), max_iterations=4,
            ridge=0.05,
        )  # fmt: skip
    _, (dw, db) = objective(x, y, head, given([1, 5, 2]), 0.05)
    assert head.gradient_norm == pytest.approx(float(max(dw.abs().max(), db.abs().max())), rel=1e-6)


def test_constant_features_and_one_example_of_a_class():
    x, y = sample(n=(60, 25, 1))
    x[:, 2] = 7.0
    head = fit_logistic_head(features(x, y), given([1, 1, 1], (60, 25, 1)), ridge=0.01)
    assert head.converged and head.weight.isfinite().all()
    assert float(head.weight[:, 2].abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ridge": -1.0}, "ridge must be"),
        ({"bias_ridge": 0.1}, "center=False"),
        ({"intercept": False}, "center=False"),
        ({"label_smoothing": 1.0}, r"\[0, 1\)"),
        ({"offsets": torch.zeros(2)}, r"offsets must have shape \(3,\)"),
        ({"offsets": torch.tensor([0, 0, -np.inf])}, "offsets must be finite"),
        ({"scales": torch.tensor([1.0, 1, 0])}, "scales must be finite and above 0"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    x, y = sample()
    with pytest.raises(ValueError, match=message):
        fit_logistic_head(features(x, y), given([1, 1, 1]), **kwargs)


def test_bad_examples_are_refused():
    x, y = sample()
    with pytest.raises(ValueError, match="class 3 has no examples"):
        HeadFeatures(torch.tensor(x), torch.tensor(y), 4)
    with pytest.raises(ValueError, match="must lie in"):
        HeadFeatures(torch.tensor(x), torch.tensor(y), 2)
    x[5, 1] = np.nan
    with pytest.raises(ValueError, match="example 5, feature 1 is nan"):
        features(x, y)
