import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.utils.class_weight import compute_class_weight

from firstlight.functional import (
    RuleUndefinedError,
    class_weights,
    effective_dimension,
    two_class_errors,
)

COUNTS = [120, 45, 13, 6]


def test_inverse_frequency_is_scikit_learns_balanced():
    labels = np.repeat(np.arange(4), COUNTS)
    want = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    found = class_weights(COUNTS, "inverse_frequency")
    np.testing.assert_allclose(found.weights, want, rtol=1e-12)
    assert found.provenance == "published" and found.note == ""


@pytest.mark.parametrize("beta", [0.5, 0.99, 0.9999])
def test_the_effective_number_is_the_expected_covered_volume(beta):
    """Oracle: the recurrence of arXiv 1901.05555, E_n = 1 + beta E_{n-1}, counted out."""
    volumes = []
    for n in COUNTS:
        volume = 0.0
        for _ in range(n):
            volume = 1 + beta * volume
        volumes.append(volume)
    found = class_weights(COUNTS, "effective_number", beta=beta).per_class()
    want = 1 / np.array(volumes)
    np.testing.assert_allclose(found, want * 4 / want.sum(), rtol=1e-10)


def test_limits_of_the_effective_number():
    np.testing.assert_array_equal(class_weights(COUNTS, "effective_number", beta=0).weights, 1)
    near = class_weights(COUNTS, "effective_number", beta=1 - 1e-9)
    inverse = class_weights(COUNTS, "inverse_frequency")
    torch.testing.assert_close(near.weights, inverse.weights, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", ["none", "inverse_frequency", "square_root", "effective_number"])
def test_the_mean_weight_of_an_example_is_one(rule):
    found = class_weights(COUNTS, rule).weights.numpy()
    assert np.repeat(found, COUNTS).mean() == pytest.approx(1, rel=1e-12)


def test_square_root_lies_half_way_between_none_and_inverse():
    root, inverse = (class_weights(COUNTS, r).weights for r in ("square_root", "inverse_frequency"))
    assert root[3] / root[0] == pytest.approx(math.sqrt(20), rel=1e-12)
    assert inverse[3] / inverse[0] == pytest.approx(20, rel=1e-12)


def test_the_papers_ratio():
    """Values of the method's reference: (pi = delta = .2) -> 7; balanced -> 1; CelebA, n = 20."""

    def ratio(counts, df):
        weights = class_weights(counts, "equal_error", degrees_of_freedom=df).weights
        return float(weights[1] / weights[0])

    assert ratio([800, 200], 200) == pytest.approx(7, rel=1e-12)
    assert ratio([50, 50], 20) == pytest.approx(1, rel=1e-12)
    assert ratio([15.8, 4.2], 3) == pytest.approx(5.30, abs=0.005)
    assert ratio([120, 6], 0) == pytest.approx(20, rel=1e-12)


def test_provenance_follows_the_formula_used():
    def provenance(counts, **kwargs):
        return class_weights(counts, "equal_error", degrees_of_freedom=2, **kwargs).provenance

    assert provenance([80, 20]).startswith("published result, formula rebuilt")
    assert provenance([80, 20], freedom_from="variance").startswith("published result")
    assert provenance([80, 20], freedom_from="fit") == "this project's own derivation"
    assert provenance([80, 20, 9]) == "this project's own derivation"
    assert class_weights([80, 20]).provenance == "this project's own derivation"


def test_auto_follows_the_objective():
    assert class_weights(COUNTS).rule == "square_root"
    assert class_weights(COUNTS, objective="worst_class").rule == "inverse_frequency"


def test_an_undefined_rule_names_the_class_and_the_way_out():
    with pytest.raises(RuleUndefinedError, match=r"class 3 has at most 6 examples.*larger ridge"):
        class_weights(COUNTS, "equal_error", degrees_of_freedom=24)
    with pytest.warns(UserWarning, match="clipped at 10 / n_k"):
        clipped = class_weights(COUNTS, "equal_error", degrees_of_freedom=24, undefined="clip")
    assert "undefined" in clipped.note
    assert clipped.weights[3] / clipped.weights[0] == pytest.approx((120 - 6) / 0.6, rel=1e-12)
    with pytest.warns(UserWarning, match="the formula is steep there"):
        class_weights(COUNTS, "equal_error", degrees_of_freedom=22)


def test_custom_weights_are_scaled_only():
    found = class_weights(COUNTS, "custom", custom=[1, 2, 3, 4])
    torch.testing.assert_close(found.weights / found.weights[0], torch.arange(1.0, 5).double())
    assert found.provenance == "given"


@pytest.mark.parametrize(
    ("counts", "kwargs", "message"),
    [
        ([5, 0, 3, 0], {}, "classes 1, 3 have no examples"),
        ([5, 0], {"rule": "none"}, "class 1 has no examples: .* keeps one"),
        ([5], {}, "K >= 2 classes"),
        ([5, -1], {}, "not negative"),
        ([5, math.nan], {}, "finite"),
        ([5, 3], {"rule": "inverse"}, "rule must be one of auto, none"),
        ([5, 3], {"objective": "mean"}, "objective must be"),
        ([5, 3], {"rule": "effective_number", "beta": 1.0}, r"beta must lie in \[0, 1\)"),
        ([5, 3], {"rule": "equal_error"}, "needs degrees_of_freedom"),
        ([5, 3], {"rule": "equal_error", "degrees_of_freedom": -1}, "not -1"),
        ([5, 3], {"rule": "equal_error", "degrees_of_freedom": 1, "undefined": "?"}, "'clip'"),
        ([5, 3], {"rule": "equal_error", "degrees_of_freedom": 1, "freedom_from": "x"}, "variance"),
        ([5, 3], {"custom": [1, 2]}, "rule='custom'"),
        ([5, 3], {"rule": "custom"}, "rule='custom'"),
        ([5, 3], {"rule": "custom", "custom": [1, 2, 3]}, r"shape \(3,\)"),
        ([5, 3], {"rule": "custom", "custom": [1, 0]}, "class 1 has a custom weight"),
    ],
)
def test_bad_arguments_are_refused(counts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        class_weights(counts, **kwargs)


def test_effective_dimension_counts_components():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    covariance = torch.tensor(basis @ np.diag([60, 25, 10, 4, 0.8, 0.2]) @ basis.T)
    shares = {0.5: 1, 0.7: 2, 0.95 - 1e-9: 3, 0.95 + 1e-9: 4, 0.99 - 1e-9: 4, 0.995: 5, 1.0: 6}
    assert {share: effective_dimension(covariance, share) for share in shares} == shares
    assert effective_dimension(torch.diag(torch.tensor([1.0, 1.0, 0.0])), 1.0) == 2
    with pytest.raises(ValueError, match="do not vary"):
        effective_dimension(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="share must lie in"):
        effective_dimension(covariance, 1.5)


# ------------------------------------------------------------------ two-class theory


@pytest.mark.parametrize(
    ("prior", "delta", "s"), [(0.2, 0.2, 2.0), (0.1, 0.15, 1.0), (0.3, 0.5, 3)]
)
def test_the_general_form_contains_the_papers_two(prior, delta, s):
    m = 4 * prior * (1 - prior)
    found = two_class_errors(prior, delta, s, (2 * (1 - prior) - delta) / (2 * prior - delta))
    spread = delta / m
    argument = s**2 * math.sqrt(1 - spread) / math.sqrt(s**2 + spread)
    want = 0.5 * math.erfc(argument / math.sqrt(2))
    assert found.minority == pytest.approx(want, rel=1e-10)
    assert found.majority == pytest.approx(want, rel=1e-10)
    assert found.intercept == pytest.approx(0, abs=1e-10)
    plain = two_class_errors(prior, delta, s, 1.0)
    assert plain.alignment == pytest.approx(m * s / (1 + m * s**2), rel=1e-10)
    assert plain.intercept == pytest.approx((2 * prior - 1) / (1 + m * s**2), rel=1e-10)
    norm2 = (m**2 * s**2 + delta * m) / ((1 - delta) * (1 + m * s**2) ** 2)
    assert plain.norm**2 == pytest.approx(norm2, rel=1e-10)
    assert plain.minority_leverage == pytest.approx(delta, rel=1e-10)


def test_simulated_errors_and_leverages():
    """s = 2, delta = pi = .2, ratio 3: .0592, .0350, -.0585; leverages .3625 and .1594."""
    theory = two_class_errors(0.2, 0.2, 2.0, 3.0)
    assert theory.worst == theory.minority == pytest.approx(0.0592, abs=5e-5)
    assert theory.majority == pytest.approx(0.0350, abs=5e-5)
    assert theory.intercept == pytest.approx(-0.0585, abs=5e-5)
    assert theory.balanced == pytest.approx(0.0471, abs=5e-5)
    d, n, s = 200, 1000, 2.0
    found = []
    for draw in range(8):
        generator = np.random.default_rng(draw)
        y = np.where(np.arange(n) < 200, 1.0, -1.0)
        x = generator.standard_normal((n, d))
        x[:, 0] += s * y
        w = np.where(y > 0, 3.0, 1.0)
        fit = Ridge(alpha=1e-10).fit(x, y, sample_weight=w)
        b, theta = fit.intercept_, fit.coef_
        norm = np.linalg.norm(theta)
        errors = [
            0.5 * math.erfc((s * theta[0] + sign * b) / norm / math.sqrt(2)) for sign in (1, -1)
        ]
        a = np.c_[x, np.ones(n)]
        h = w * np.einsum("ij,jk,ik->i", a, np.linalg.inv((a.T * w) @ a), a)
        found.append([*errors, b, h[y > 0].mean(), h[y < 0].mean()])
    mean = np.mean(found, axis=0)
    want = [
        theory.minority,
        theory.majority,
        theory.intercept,
        theory.minority_leverage,
        theory.majority_leverage,
    ]
    assert (np.abs(mean - want) < [0.006, 0.006, 0.02, 0.003, 0.003]).all()


@pytest.mark.parametrize(
    "bad", [(0, 0.2, 1, 1), (0.2, 1, 1, 1), (0.2, 0.2, 0, 1), (0.2, 0.2, 1, 0)]
)
def test_theory_outside_its_ranges_is_refused(bad):
    with pytest.raises(ValueError, match="must lie in"):
        two_class_errors(*bad)
