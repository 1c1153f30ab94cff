import copy
import inspect
import math

import pytest
import torch
from torch.nn import functional as F

from firstlight.functional import (
    BalancedSoftmaxLoss,
    CDTLoss,
    ClassBalancedLoss,
    CosineHead,
    CostSensitiveLoss,
    FocalLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    VectorScalingLoss,
)
from firstlight.lightning_modules.specs import from_spec, to_spec

COUNTS = [400, 60, 20, 5]
WITH_COUNTS = [
    LogitAdjustedLoss,
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CostSensitiveLoss,
    LDAMLoss,
    VectorScalingLoss,
    CDTLoss,
    LabelAwareSmoothingLoss,
]


def batch(n=12, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return z.requires_grad_(), torch.randint(4, (n,), generator=generator)


def agree(loss, z, y, want):
    """Value and gradient by the logits equal those of another computation."""
    found = loss(z, y)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-13)
    gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in (found, want)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tau", [1.0, 0.6])
def test_logit_adjustment_is_the_pairwise_form(tau):
    """Equation 10 of the paper: log[1 + sum_k (pi_k/pi_y)^tau e^(z_k - z_y)]."""
    z, y = batch()
    n = torch.tensor(COUNTS).double()
    ratio = (n / n[y][:, None]) ** tau
    others = (ratio * (z - z.gather(1, y[:, None])).exp()).masked_fill(F.one_hot(y, 4).bool(), 0)
    agree(LogitAdjustedLoss(tau, COUNTS), z, y, (1 + others.sum(1)).log().mean())


def test_balanced_softmax_is_the_weighted_softmax():
    """Its definition: p_y = n_y e^(z_y) / sum n_k e^(z_k)."""
    z, y = batch()
    e = torch.tensor(COUNTS) * z.exp()
    want = -(e.gather(1, y[:, None])[:, 0] / e.sum(1)).log().mean()
    agree(BalancedSoftmaxLoss(COUNTS), z, y, want)


def test_vector_scaling_contains_the_others():
    z, y = batch()
    agree(VectorScalingLoss(0, 0.7, COUNTS), z, y, LogitAdjustedLoss(0.7, COUNTS)(z, y))
    agree(VectorScalingLoss(0.4, 0, COUNTS), z, y, CDTLoss(0.4, COUNTS)(z, y))
    agree(VectorScalingLoss(0, 0, COUNTS), z, y, F.cross_entropy(z, y))
    moved = z * torch.tensor([1, 0.15, 0.05, 0.0125], dtype=torch.float64) ** 0.3
    moved = moved + 1.2 * (torch.tensor(COUNTS).double() / 485).log()
    agree(VectorScalingLoss(0.3, 1.2, COUNTS), z, y, F.cross_entropy(moved, y))


@pytest.mark.parametrize("normalise", ["weights", "count"])
def test_class_balanced_weights(normalise):
    """Against torch's weighted cross-entropy with weights by the recurrence of the paper."""
    z, y = batch()
    volumes = torch.ones(4, dtype=torch.float64)
    for k, n in enumerate(COUNTS):
        for _ in range(n - 1):
            volumes[k] = 1 + 0.99 * volumes[k]
    weight = 1 / volumes
    weight = weight * 4 / weight.sum()
    if normalise == "weights":
        want = F.cross_entropy(z, y, weight)
    else:
        want = F.cross_entropy(z, y, weight, reduction="none").mean()
    agree(ClassBalancedLoss(0.99, normalise=normalise, class_counts=COUNTS), z, y, want)
    agree(ClassBalancedLoss(0, class_counts=COUNTS), z, y, F.cross_entropy(z, y))


def test_cost_sensitive_weights():
    z, y = batch()
    for exponent in (1, 0.5):
        weight = (5 / torch.tensor(COUNTS).double()) ** exponent
        loss = CostSensitiveLoss(exponent, class_counts=COUNTS)
        agree(loss, z, y, F.cross_entropy(z, y, weight))


@pytest.mark.parametrize("gamma", [1.0, 2.0, 0.5])
def test_focal_loss_integrates_its_definition(gamma):
    """Oracle: example by example in plain Python."""
    z, y = batch()
    values = []
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        values.append(-((1 - p) ** gamma) * math.log(p))
    assert float(FocalLoss(gamma)(z, y).detach()) == pytest.approx(
        sum(values) / len(values), rel=1e-12
    )
    weights = ClassBalancedLoss(0.99, class_counts=COUNTS).prepared.weight
    balanced = ClassBalancedLoss(0.99, gamma, class_counts=COUNTS, normalise="count")
    want = sum(v * float(weights[k]) for v, k in zip(values, y.tolist(), strict=True)) / len(values)
    assert float(balanced(z, y).detach()) == pytest.approx(want, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: FocalLoss(gamma)(z, y), z)


def test_focal_loss_without_focus_and_at_certainty():
    z, y = batch()
    agree(FocalLoss(0.0), z, y, F.cross_entropy(z, y))
    sure = (200.0 * F.one_hot(y, 4).double()).requires_grad_()
    loss = FocalLoss(0.5)(sure, y)
    loss.backward()
    assert float(loss.detach()) == 0 and sure.grad.isfinite().all()


def test_ldam_margins():
    """Equal counts: .5 for all; 16 times the rarest: half of it; no margin: scaled cosines."""
    assert LDAMLoss(class_counts=[7, 7]).prepared.margin.tolist() == [15.0, 15.0]
    assert LDAMLoss(class_counts=[16, 1]).prepared.margin.tolist() == [7.5, 15.0]
    c, y = batch(scale=0.2)
    agree(LDAMLoss(0.0, 12.0, class_counts=COUNTS), c, y, F.cross_entropy(12 * c, y))
    lowered = c - F.one_hot(y, 4) * 0.5 * (5 / torch.tensor(COUNTS).double()) ** 0.25
    agree(LDAMLoss(class_counts=COUNTS), c, y, F.cross_entropy(30 * lowered, y))
    with pytest.raises(ValueError, match=r"a logit is 5 in size: put a CosineHead"):
        LDAMLoss(class_counts=COUNTS)(torch.full((2, 4), 5.0), y[:2])


def test_a_cosine_head_puts_out_cosines():
    head, x = CosineHead(6, 4).double(), torch.randn(5, 6, dtype=torch.float64)
    want = torch.stack([F.cosine_similarity(x, w[None], dim=1) for w in head.weight], 1)
    torch.testing.assert_close(head(x), want)


def test_weights_are_deferred_to_the_papers_epoch():
    c, y = batch(scale=0.2)
    loss = LDAMLoss(deferred=0.8, class_counts=COUNTS)
    plain, weighted = (
        LDAMLoss(class_counts=COUNTS)(c, y),
        LDAMLoss(deferred=0.0, class_counts=COUNTS)(c, y),
    )
    with pytest.raises(RuntimeError, match=r"set_progress\(epoch / max_epochs\)"):
        loss(c, y)
    for epoch, want in ((0, plain), (159, plain), (160, weighted), (199, weighted)):
        loss.set_progress(epoch / 200)
        assert torch.equal(loss(c, y), want), epoch
    assert not torch.equal(plain, weighted)
    with pytest.raises(ValueError, match=r"share of training in \[0, 1\]"):
        loss.set_progress(160)


@pytest.mark.parametrize("kind", [ClassBalancedLoss, CostSensitiveLoss])
def test_weights_end_where_they_shall(kind):
    z, y = batch()
    weighted, plain = kind(class_counts=COUNTS)(z, y), torch.nn.functional.cross_entropy(z, y)
    loss = kind(until=0.4, class_counts=COUNTS)
    for epoch, want in ((0, weighted), (3, weighted), (4, plain), (10, plain)):
        loss.set_progress(epoch / 10)
        torch.testing.assert_close(loss(z, y), want)
    assert not torch.isclose(plain, weighted)


@pytest.mark.parametrize("shape", ["concave", "linear", "convex"])
def test_label_aware_smoothing(shape):
    """At the ends head and tail; half way sin 45 = .707, 1/2, 1 - cos 45 = .293 of the rise."""
    loss = LabelAwareSmoothingLoss(0.3, 0.1, shape, [30, 20, 10])
    middle = {"concave": math.sqrt(0.5), "linear": 0.5, "convex": 1 - math.sqrt(0.5)}[shape]
    want = [0.3, 0.1 + 0.2 * middle, 0.1]
    torch.testing.assert_close(loss.prepared.smoothing, torch.tensor(want).double())
    z, y = batch()
    loss = LabelAwareSmoothingLoss(0.3, 0.1, shape, COUNTS)
    each = torch.stack(
        [
            F.cross_entropy(row[None], label[None], label_smoothing=float(smoothing))
            for row, label, smoothing in zip(z, y, loss.prepared.smoothing[y], strict=True)
        ]
    )
    agree(loss, z, y, each.mean())
    equal = LabelAwareSmoothingLoss(0.3, 0.1, shape, [9, 9, 9, 9])
    agree(equal, z, y, F.cross_entropy(z, y, label_smoothing=0.3))


@pytest.mark.parametrize("kind", [k for k in WITH_COUNTS if k is not LDAMLoss])
def test_mixed_labels_are_mixtures(kind):
    z, y = batch()
    loss = kind(class_counts=COUNTS)
    torch.testing.assert_close(loss(z, F.one_hot(y, 4).double()), loss(z, y), rtol=1e-12, atol=0)
    if kind not in (ClassBalancedLoss, CostSensitiveLoss, LabelAwareSmoothingLoss):
        half = 0.5 * F.one_hot(y, 4).double() + 0.5 * F.one_hot(3 - y, 4).double()
        want = 0.5 * loss(z, y) + 0.5 * loss(z, 3 - y)
        torch.testing.assert_close(loss(z, half), want, rtol=1e-12, atol=0)


def test_a_margin_has_no_mixed_labels():
    c, y = batch(scale=0.2)
    with pytest.raises(ValueError, match="turn MixUp and CutMix off"):
        LDAMLoss(class_counts=COUNTS)(c, F.one_hot(y, 4).double())


@pytest.mark.parametrize("kind", WITH_COUNTS)
def test_counts_may_come_later_and_plain_values_rebuild_the_loss(kind):
    z, y = batch(scale=0.2)
    given, late = kind(class_counts=COUNTS), kind()
    with pytest.raises(RuntimeError, match="does not know its class counts yet"):
        late(z, y)
    late.set_class_counts(torch.tensor(COUNTS))
    assert late.class_counts == COUNTS
    spec = to_spec(late, "loss", torch.nn.Module)
    rebuilt = from_spec(spec, what="loss", expected=torch.nn.Module)
    for loss in (late, rebuilt, copy.deepcopy(given)):
        assert torch.equal(loss(z, y), given(z, y))
    assert spec["class_path"] == f"firstlight.functional.{kind.__name__}"
    assert not given.state_dict() and not list(given.parameters())
    # what a constructor takes, it keeps under that name
    assert all(hasattr(late, name) for name in inspect.signature(kind).parameters)


@pytest.mark.parametrize("kind", WITH_COUNTS)
def test_half_precision_is_computed_in_single(kind):
    z, y = batch(scale=0.2)
    loss = kind(class_counts=COUNTS)
    low = loss(z.detach().bfloat16(), y)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), loss(z, y).detach(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitAdjustedLoss(class_counts=[3, 0, 2]), "class 1 has no examples"),
        (lambda: LogitAdjustedLoss(tau=-1), "tau must be finite, 0 or above"),
        (lambda: VectorScalingLoss(gamma=math.nan), "gamma must be finite"),
        (lambda: ClassBalancedLoss(beta=1.0), "beta must lie in"),
        (lambda: ClassBalancedLoss(gamma=-1), "focal exponent must be"),
        (lambda: ClassBalancedLoss(deferred=160), "deferred is a share"),
        (lambda: ClassBalancedLoss(deferred=0.8, until=0.8), r"until is .* above deferred=0.8"),
        (lambda: CostSensitiveLoss(until=1.1), "until is a share"),
        (lambda: ClassBalancedLoss(normalise="sum"), "normalise must be"),
        (lambda: CostSensitiveLoss(exponent=math.inf), "exponent must be finite"),
        (lambda: LabelAwareSmoothingLoss(head=1.0), r"must lie in \[0, 1\)"),
        (lambda: LabelAwareSmoothingLoss(shape="flat"), "shape must be"),
        (lambda: FocalLoss(gamma=-0.5), "gamma must be finite"),
        (lambda: LogitAdjustedLoss(class_counts=COUNTS)(torch.zeros(2, 3), torch.zeros(2).long()),
         r"counts of 4 classes, the logits are \(2, 3\)"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
