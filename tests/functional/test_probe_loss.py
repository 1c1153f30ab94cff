import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from firstlight.functional import average_sharpness
from firstlight.functional.probe_loss import ProbeLoss, require_positive
from firstlight.functional.ranks import ALONE


class Tied(nn.Module):
    """A weight used by two modules, BatchNorm, an in-place activation, a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        hidden = self.act(self.norm(self.first(x)))
        return self.head(self.act(self.second(hidden))) * (1 + 0 * self.calls)


class Restless(nn.Module):
    """Draws at random in eval mode, and is scaled by how often it was called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x):
        self.calls += 1
        return self.head(F.dropout(x, 0.5, training=True)) * self.calls


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(150, 6, dtype=torch.float64), torch.randint(3, (150,))


def probe_of(model, x, y, **kwargs):
    settings = {"params": None, "batch_size": 256, "normalize_logits": False} | kwargs
    return ProbeLoss(model, x, y, **settings)


def state_of(model):
    tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    needed = [p.requires_grad for p in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return tensors, modes, needed, grads, torch.get_rng_state()


def assert_same(before, after):
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_losses_and_gradient_at_moved_weights_are_those_of_a_model_that_has_them(data):
    model = Tied().double()
    probe = probe_of(model, *data)
    assert len(probe.weights) == sum(p.numel() for p in model.parameters())
    move = 0.1 * torch.randn_like(probe.weights)
    oracle = copy.deepcopy(model).eval()
    with torch.no_grad():
        start = 0
        for p in oracle.parameters():
            p += move[start : start + p.numel()].view_as(p)
            start += p.numel()
    expected = F.cross_entropy(oracle(data[0]), data[1])
    expected.backward()
    with probe.measuring():
        loss, gradient = probe.loss_and_gradient(probe.batches[0], probe.weights + move)
        assert loss == pytest.approx(expected.item(), rel=1e-14)
        assert probe.loss(probe.batches[0], probe.weights + move) == pytest.approx(loss, rel=1e-14)
    flat = torch.cat([p.grad.reshape(-1) for p in oracle.parameters()])
    torch.testing.assert_close(gradient, flat, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [Tied, Restless])
def test_nothing_of_the_model_changes_and_the_same_question_has_one_answer(kind, data):
    model = kind().double()
    F.cross_entropy(model(data[0]), data[1]).backward()
    model.head.bias.requires_grad_(False)
    before = state_of(model)
    probe = probe_of(model, *data, batch_size=40)
    with probe.measuring():
        first, again = (
            [probe.loss(rows, probe.weights + 0.1) for rows in probe.batches] for _ in range(2)
        )
        probe.loss_and_gradient(probe.batches[1], probe.weights)
    assert first == again
    assert_same(before, state_of(model))


def test_a_tied_parameter_is_one_under_any_of_its_names(data):
    model = Tied().double()
    by_alias = probe_of(model, *data, params=["second.weight"])
    assert by_alias.names == ["first.weight"]
    assert by_alias.weights.shape == (36,)


def test_noise_of_a_parameter_does_not_depend_on_which_others_move(data):
    model = Tied().double()
    every, some = probe_of(model, *data), probe_of(model, *data, params=["head.bias", "norm.bias"])
    noise, part = every.split(every.normal(3, 1, 4)), some.split(some.normal(3, 1, 4))
    assert list(part) == ["norm.bias", "head.bias"]
    assert_same(part.values(), [noise[name] for name in part])
    assert not torch.equal(noise["first.bias"], noise["second.bias"])
    assert not torch.equal(every.normal(3, 1, 4), every.normal(3, 1, 5))
    assert not torch.equal(every.normal(3, 1, 4), every.normal(4, 1, 4))


def test_noise_is_standard_normal():
    model = nn.Linear(500, 400).double()
    probe = probe_of(model, torch.zeros(1, 500), torch.zeros(1, dtype=torch.long))
    noise = probe.normal(0)
    count = len(noise)  # 200,400: four standard errors of the first, second and fourth moment
    assert abs(noise.mean()) < 4 / math.sqrt(count)
    assert abs((noise**2).mean() - 1) < 4 * math.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / count)


def test_normalized_logits_of_two_classes_know_only_their_sign(data):
    # (z0, z1) becomes (±1, ∓1) / √2, whose loss is log(1 + exp(∓√2)).
    model = nn.Linear(6, 2).double()
    x, y = data[0], data[1] % 2
    probe = probe_of(model, x, y, normalize_logits=True)
    right = model(x).argmax(1) == y
    low, high = (math.log1p(math.exp(sign * math.sqrt(2))) for sign in (-1, 1))
    expected = torch.tensor([low if one else high for one in right], dtype=torch.float64)
    with probe.measuring():
        torch.testing.assert_close(
            probe.losses(probe.batches[0], probe.weights), expected, rtol=1e-12, atol=0
        )


def test_one_hot_targets_are_class_indices(data):
    x, y = data
    model = nn.Linear(6, 3).double()
    hard, soft = probe_of(model, x, y), probe_of(model, x, F.one_hot(y, 3).float())
    with hard.measuring():
        a, b = (p.loss_and_gradient(p.batches[0], p.weights) for p in (hard, soft))
    assert a[0] == pytest.approx(b[0], rel=1e-14)
    torch.testing.assert_close(a[1], b[1], rtol=1e-12, atol=1e-15)


def test_a_probe_made_in_inference_mode_can_be_differentiated(data):
    model = nn.Linear(6, 3).double()
    with torch.inference_mode():
        probe = probe_of(model, data[0].clone(), data[1].clone())
        with probe.measuring():
            _, gradient = probe.loss_and_gradient(probe.batches[0], probe.weights)
    assert gradient.abs().max() > 0


def test_nested_inputs_are_cut_together(data):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, batch):
            return self.head(batch["a"] + batch["more"][0])

    x, y = data
    model = Sum().double()
    nested = probe_of(model, {"a": x / 2, "more": [x / 2]}, y, batch_size=70)
    plain = probe_of(nn.Sequential(model.head), x, y, batch_size=70)
    with nested.measuring():
        for rows in nested.batches:
            assert nested.loss(rows, nested.weights) == pytest.approx(
                plain.loss(rows, plain.weights), rel=1e-14
            )


def test_parameters_without_a_part_in_the_loss_have_no_slope(data):
    model = nn.Sequential(nn.Linear(6, 3)).double()
    model.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model.forward = lambda x: model[0](x)
    probe = probe_of(model, *data, params=["spare"])
    with probe.measuring():
        _, gradient = probe.loss_and_gradient(probe.batches[0], probe.weights)
    assert gradient.tolist() == [0, 0]


def test_shares_weigh_examples_equally(data):
    probe = probe_of(nn.Linear(6, 3).double(), *data, batch_size=64)
    with probe.measuring():
        parts = probe.over_batches(ALONE, lambda number, rows: probe.loss(rows, probe.weights))
        whole = probe.loss(slice(0, 150), probe.weights)
    assert sum(a * b for a, b in zip(parts, probe.shares, strict=True)) == pytest.approx(whole)


def half():
    return nn.Linear(6, 3).to(torch.bfloat16)


def mixed():
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3).double())


def frozen():
    return nn.Linear(6, 3).requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "count", "targets", "message"),
    [
        (nn.Linear(6, 3), 0, torch.zeros(0, dtype=torch.long), "probe set is empty"),
        (nn.Linear(6, 3), 4, torch.zeros(5, dtype=torch.long), "5 targets for 4 examples"),
        (nn.Linear(6, 3), 4, torch.tensor(1), "targets must be class indices"),
        (nn.Linear(6, 3), 4, torch.zeros(4), "targets must be class indices"),
        (nn.Linear(6, 3), 4, torch.zeros(4, dtype=torch.bool), "targets must be class indices"),
        (nn.Linear(6, 3), 4, torch.full((4, 3), 0.5), "soft targets must be probabilities"),
        (nn.Linear(6, 3), 4, torch.tensor([0, 1, 2, 3]), "expected 0 to 2"),
        (nn.Linear(6, 3), 4, torch.tensor([0, 1, 2, -100]), "expected 0 to 2"),
        (nn.Linear(6, 3), 4, torch.full((4, 2), 0.5), "targets of 2 classes for 3 logits"),
        (frozen(), 4, torch.zeros(4, dtype=torch.long), "every parameter of the model is frozen"),
        (half(), 4, torch.zeros(4, dtype=torch.long), "float()"),
        (mixed(), 4, torch.zeros(4, dtype=torch.long), "one type on one device"),
    ],
)
def test_refusals(model, count, targets, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        probe = probe_of(model, torch.zeros(count, 6), targets)
        probe.loss(probe.batches[0], probe.weights)


def test_logits_that_are_not_finite_are_refused():
    probe = probe_of(nn.Linear(6, 3), torch.full((4, 6), math.nan), torch.zeros(4).long())
    with pytest.raises(ValueError, match="4 of 4 examples are not finite"):
        probe.loss(probe.batches[0], probe.weights)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_only_positive_finite_numbers_pass(value):
    with pytest.raises(ValueError, match="rho must be positive and finite"):
        require_positive(rho=value)


class Cached(nn.Module):
    """Keeps what it made of a parameter from one call to the next in eval mode."""

    def __init__(self, keeps):
        super().__init__()
        self.linear, self.bias = nn.Linear(6, 3), nn.Parameter(torch.ones(3))
        self.keeps, self.cache = keeps, {}

    def forward(self, x):
        if not self.keeps or "bias" not in self.cache:
            self.cache["bias"] = self.bias.exp()
        return self.linear(x) + self.cache["bias"] * x[:, :1]


def test_what_a_model_keeps_between_calls_does_not_hide_that_weights_moved(data):
    """Oracle: the same network that keeps nothing."""
    x, y = data
    free, keeping = Cached(False).double(), Cached(True).double()
    keeping.load_state_dict(free.state_dict())
    found = [average_sharpness(net, x, y, rho=0.3).value for net in (free, keeping)]
    assert found[0] == found[1] != 0
