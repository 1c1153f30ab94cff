import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, norm
from torch.nn import functional as F

from firstlight.functional import (
    ClassWeights,
    EffectivePrior,
    HeadFeatures,
    correct_logits,
    effective_prior,
    fit_logistic_head,
    prior_distance,
    prior_offset,
)

UNWEIGHTED = ClassWeights(torch.ones(4).double(), "none", "published")


def logits(n=50, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)


def sample(n=(80, 40, 15, 6), d=5, seed=0):
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(n)), n)
    x = generator.standard_normal((len(y), d)) + generator.standard_normal((len(n), d))[y]
    return torch.tensor(x), torch.tensor(y)


@pytest.mark.parametrize("weighted", [False, True])
def test_prior_less_frequencies_is_the_gradient_by_the_bias(weighted):
    """Identities 1 and 4 of the method's reference, by autograd, at random parameters."""
    z, offsets = logits(), torch.tensor([0.0, -0.5, -1, -2]).double()
    y = torch.arange(50) % 3
    v = torch.linspace(0.5, 2, 50).double() if weighted else torch.ones(50).double()
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss = (v * F.cross_entropy(z + offsets + bias, y, reduction="none")).sum() / v.sum()
    (gradient,) = torch.autograd.grad(loss, bias)
    q = effective_prior(z, offsets=offsets, sample_weights=v if weighted else None)
    frequencies = (v[:, None] * F.one_hot(y, 4)).sum(0) / v.sum()
    torch.testing.assert_close(q - frequencies, gradient, atol=1e-12, rtol=0)


def test_batches_and_order_do_not_matter():
    z, v = logits(), torch.rand(50).double()
    want = effective_prior(z, sample_weights=v)
    prior = EffectivePrior(4)
    for part in torch.randperm(50).split(7):
        prior.update(z[part], v[part])
    torch.testing.assert_close(prior.compute(), want, rtol=1e-10, atol=0)
    half = EffectivePrior(4)
    half.update(z.half(), v)
    torch.testing.assert_close(half.compute(), want, rtol=1e-2, atol=0)


def test_a_stationary_fit_with_a_free_bias_has_the_frequencies_for_prior():
    """Identity 2; and identity 5 of label smoothing."""
    x, y = sample()
    pi = torch.bincount(y) / len(y)
    for smoothing in (0.0, 0.2):
        head = fit_logistic_head(
            HeadFeatures(x, y, 4), UNWEIGHTED, tolerance=1e-9, label_smoothing=smoothing
        )
        q = effective_prior(head.logits(x))
        want = (1 - smoothing) * pi.double() + smoothing / 4
        torch.testing.assert_close(q, want, atol=1e-7, rtol=0)
        same = "identical to logit adjustment here"
        assert (prior_distance(q, torch.bincount(y)).sentence == same) == (smoothing == 0)


def test_decay_of_the_bias_leaves_another_prior():
    """q = pi - decay * b, exactly."""
    x, y = sample()
    head = fit_logistic_head(
        HeadFeatures(x, y, 4, standardize=False, center=False), UNWEIGHTED, bias_ridge=0.05,
        tolerance=1e-10,
    )  # fmt: skip
    q = effective_prior(head.logits(x))
    want = torch.bincount(y).double() / len(y) - 0.05 * head.bias
    torch.testing.assert_close(q, want, atol=1e-8, rtol=0)


def test_the_correction_is_bayes_rule():
    z, p = logits(), torch.tensor([0.6, 0.3, 0.08, 0.02]).double()
    u = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    offsets = torch.tensor([0.2, -1.0, 0, 1]).double()
    found = correct_logits(z, p, offsets=offsets, target_prior=u).softmax(1)
    posterior = (z + offsets).exp() / (z + offsets).exp().sum(1, keepdim=True)
    want = posterior * u / p
    torch.testing.assert_close(found, want / want.sum(1, keepdim=True), rtol=1e-12, atol=0)
    unchanged = correct_logits(z, p, target_prior=p).softmax(1)
    torch.testing.assert_close(unchanged, z.softmax(1), rtol=1e-12, atol=0)
    raw = correct_logits(z, p, offsets=p.log()).softmax(1)
    torch.testing.assert_close(raw, z.softmax(1), rtol=1e-12, atol=0)
    adjusted = correct_logits(z, p, tau=0.5).softmax(1)
    want = z.exp() / p.sqrt()
    torch.testing.assert_close(adjusted, want / want.sum(1, keepdim=True), rtol=1e-12, atol=0)


def test_the_offset_folds_into_a_bias():
    x, y = sample()
    head = fit_logistic_head(HeadFeatures(x, y, 4), UNWEIGHTED)
    p = effective_prior(head.logits(x))
    folded = head.shifted(prior_offset(p), "corrected")
    torch.testing.assert_close(folded.logits(x), correct_logits(head.logits(x), p))
    assert float(prior_offset(p).mean()) == pytest.approx(0, abs=1e-12)


def test_one_dimension_by_the_normal_distribution():
    """x | y ~ N(+-1, 1), prior .05: q = .0497 in the sample, the threshold returns to 0."""
    generator = np.random.default_rng(0)
    y = np.where(generator.random(200_000) < 0.05, 1, -1)
    x = y + generator.standard_normal(200_000)
    z = torch.tensor(np.stack([np.zeros_like(x), 2 * x + math.log(0.05 / 0.95)], 1))
    q = effective_prior(z)
    assert float(q[1]) == pytest.approx(0.05, abs=1e-3)
    shift = prior_offset(q)
    threshold = -(math.log(0.05 / 0.95) + float(shift[1] - shift[0])) / 2
    assert threshold == pytest.approx(0, abs=0.02)
    errors = norm.cdf(threshold - 1), norm.sf(threshold + 1)
    assert np.mean(errors) == pytest.approx(norm.cdf(-1), abs=1e-3)


def test_distances():
    q, counts = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([70, 20, 10])
    found = prior_distance(q, counts)
    assert found.total_variation == pytest.approx(0.2, rel=1e-6)
    assert found.spearman == pytest.approx(1)
    assert found.entropy == pytest.approx(entropy([0.5, 0.3, 0.2]), rel=1e-6)
    assert found.largest_ratio == pytest.approx(2.5, rel=1e-6)
    assert found.raised == 0
    assert "total variation 0.200, most in class 0 (effective prior 0.5000" in found.sentence
    assert prior_distance(torch.tensor([0.2, 0.3, 0.5]), counts).spearman == pytest.approx(-1)
    near = torch.tensor([0.7008, 0.1992, 0.1]).double()
    assert prior_distance(near, counts).sentence == "identical to logit adjustment here"
    far = torch.tensor([0.7012, 0.1988, 0.1]).double()
    assert "differs" in prior_distance(far, counts).sentence
    assert math.isnan(prior_distance(torch.ones(3), counts).spearman)


def test_a_class_never_predicted_is_raised_and_counted():
    z = torch.tensor([[0.0, 0, -60]]).double().expand(9, 3)
    q = effective_prior(z)
    assert float(q[2]) == pytest.approx(1e-8, rel=1e-6)
    assert prior_distance(q, torch.tensor([5, 3, 1])).raised == 1


@pytest.mark.slow
def test_reference_simulation_of_ten_classes():
    """The method's reference, % within 1: raw 71.6, LA 82.1; all decay 1e-2: 71.6, 84.5, 86.0."""
    n, k, d = [600, 360, 216, 129, 78, 46, 28, 17, 10, 6], 10, 60
    means = np.eye(k) - 1 / k
    means = np.pad(3 * means / np.linalg.norm(means, axis=1, keepdims=True), ((0, 0), (0, d - k)))

    def draw(generator, counts):
        y = np.repeat(np.arange(k), counts)
        return torch.tensor(means[y] + generator.standard_normal((len(y), d))), torch.tensor(y)

    ones = ClassWeights(torch.ones(k).double(), "none", "published")
    generator, rows = np.random.default_rng(3), []
    for _ in range(4):
        (x, y), (test_x, test_y) = draw(generator, n), draw(generator, [1000] * k)
        draw(generator, n)  # the hold-out
        pi, row = torch.tensor(n).double(), []
        free = fit_logistic_head(HeadFeatures(x, y, k, standardize=False), ones, ridge=1e-3)
        data = HeadFeatures(x, y, k, standardize=False, center=False)
        decayed = fit_logistic_head(data, ones, ridge=1e-2, bias_ridge=1e-2)
        for head in (free, decayed):
            z = head.logits(test_x)
            q = effective_prior(head.logits(x))
            for corrected in (z, correct_logits(z, pi), correct_logits(z, q)):
                row.append(100 * float((corrected.argmax(1) == test_y).double().mean()))
        rows.append(row)
    np.testing.assert_allclose(np.mean(rows, axis=0), [71.6, 82.1, 82.1, 71.6, 84.5, 86.0], atol=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_prior(torch.zeros(3)), r"expected logits \(N, 3\)"),
        (lambda: effective_prior(torch.zeros(0, 3)), "no examples were shown"),
        (
            lambda: effective_prior(torch.tensor([[0, 1.0], [0, math.nan]])),
            "example 1 of the batch",
        ),
        (lambda: effective_prior(torch.zeros(2, 3), offsets=torch.zeros(2)), "offsets must have"),
        (
            lambda: effective_prior(torch.zeros(2, 3), sample_weights=torch.ones(3)),
            "sample_weights",
        ),
        (lambda: prior_offset(torch.tensor([0.5, 0.0])), "prior must be finite and above 0"),
        (lambda: prior_offset(torch.ones(2), target_prior=torch.ones(3)), "target_prior must have"),
        (lambda: prior_offset(torch.ones(2), tau=math.inf), "tau must be finite"),
        (lambda: correct_logits(torch.zeros(2, 3), torch.ones(2)), "do not end in 2 classes"),
        (lambda: prior_distance(torch.ones(2), torch.tensor([3, 0])), "class 1 has no examples"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
