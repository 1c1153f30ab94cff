"""Weight noise: its moments, what it adds to solvable losses, and that it leaves no trace."""

import math

import pytest
import timm
import torch
from scipy import stats
from torch import nn
from weight_noise_width import WIDTHS, TwoLayers

from firstlight.functional import (
    NoiseRule,
    Perturbation,
    keyed_generator,
    noise_groups,
    perturb_weights,
    summarise_noise,
)

MODES = ("round_robin", "random", "all")


def drawn(shape, *keys, dtype=torch.float64):
    return torch.randn(shape, generator=keyed_generator(3, *keys), dtype=dtype)


class Weights(nn.Module):
    """Parameters and a loss of them."""

    def __init__(self, loss, **values):
        super().__init__()
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value))
        self.loss = lambda: loss(**dict(self.named_parameters()))


def noise_of(model, *arguments, **kwargs):
    """The noise itself, by name."""
    groups = noise_groups(model, kwargs.pop("group_by", "tensor"))
    with perturb_weights(groups, *arguments, **kwargs) as noise:
        return {n: p.detach() - noise.clean[n] for n, p in model.named_parameters()
                if n in noise.clean}  # fmt: skip


# ------------------------------------------------------------------ exact losses (oracle 1)

N = 24
X = drawn((N, 6), 0)
S = X.T @ X / N
Y1 = drawn((N,), 1)
Y3 = drawn((N, 3), 2)


def half_square(output, target):
    return (output - target).square().sum() / (2 * N)


def hadamard(sigma):
    """w = u² - v² (l1)."""
    model = Weights(
        lambda u, v: half_square(X @ (u**2 - v**2), Y1), u=drawn((6,), 3), v=drawn((6,), 4)
    )
    u, v = model.u.detach(), model.v.detach()
    penalty = 2 * sigma**2 * (S.diag() * (u**2 + v**2)).sum() + 2 * sigma**4 * S.trace()
    return model, NoiseRule("all", "tensor", "absolute"), sigma * math.sqrt(2), penalty


def grouped(sigma):
    """w_g = u_g v_g for groups of two (group l1)."""
    model = Weights(
        lambda u, v: half_square(X @ (u[:, None] * v).flatten(), Y1),
        u=drawn((3,), 5), v=drawn((3, 2), 6),
    )  # fmt: skip
    blocks = torch.stack([S[i : i + 2, i : i + 2] for i in (0, 2, 4)])
    traces = blocks.diagonal(dim1=1, dim2=2).sum(1)
    u, v = model.u.detach(), model.v.detach()
    quadratic = torch.einsum("gi,gij,gj->g", v, blocks, v)
    penalty = sigma**2 / 2 * (quadratic + u**2 * traces).sum() + sigma**4 / 2 * traces.sum()
    return model, NoiseRule("all", "tensor", "absolute"), sigma * math.sqrt(2), penalty


def factors(seed=7):
    return {"w1": drawn((5, 6), seed), "w2": drawn((3, 5), seed + 1)}


def q_of(w1, w2):
    return w2.square().sum() * S.trace() + 3 * (w1 @ S @ w1.T).trace()


def two_layers():
    return Weights(lambda w1, w2: half_square(X @ (w2 @ w1).T, Y3), **factors())


def one_layer(sigma, mode="random"):
    """W = W2 W1, one of the two a step (nuclear)."""
    model = two_layers()
    return model, NoiseRule(mode, "matrix", "absolute"), sigma, sigma**2 / 4 * q_of(**factors())


def one_layer_in_turn(sigma):
    return one_layer(sigma, "round_robin")


def both_layers(sigma):
    """The same, each with sigma: a term more, that grows with the width."""
    penalty = sigma**2 / 2 * q_of(**factors()) + sigma**4 / 2 * 3 * 5 * S.trace()
    return two_layers(), NoiseRule("all", "matrix", "absolute"), sigma * math.sqrt(2), penalty


EXACT = (hadamard, grouped, one_layer, one_layer_in_turn, both_layers)


def check_penalty(build, draws):
    model, rule, sigma, penalty = build(0.3)
    groups, clean, losses = noise_groups(model, rule.group_by), model.loss().item(), []
    with torch.no_grad():
        for step in range(draws):
            with perturb_weights(groups, sigma, step, rule, seed=11):
                losses.append(model.loss().item() - clean)
    found = torch.tensor(losses, dtype=torch.float64)
    assert abs(found.mean() - penalty) < 4 * found.std() / math.sqrt(draws)


@pytest.mark.parametrize("build", EXACT)
def test_the_penalty_is_that_of_the_closed_form(build):
    """Oracle: the expected loss, exact for these models, at a residual that is not zero."""
    check_penalty(build, 4_000)


@pytest.mark.slow
@pytest.mark.parametrize("build", EXACT)
def test_the_penalty_is_that_of_the_closed_form_to_half_a_percent(build):
    check_penalty(build, 40_000)


def test_the_best_factors_attain_the_nuclear_norm():
    """Of all W2 W1 = W those from the singular vectors of W S^½ have the least penalty."""
    w = drawn((3, 6), 20)
    values, vectors = torch.linalg.eigh(S)
    root = vectors @ values.sqrt().diag() @ vectors.T
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    ratio = (S.trace() / 3) ** 0.25
    w2, w1 = u @ s.sqrt().diag() / ratio, ratio * s.sqrt().diag() @ v @ torch.linalg.inv(root)
    torch.testing.assert_close(w2 @ w1, w)
    bound = 2 * torch.sqrt(3 * S.trace()) * s.sum()
    assert abs(q_of(w1, w2) - bound) < 1e-12 * bound
    mix = torch.eye(3, dtype=torch.float64) + 0.1 * drawn((3, 3), 21)
    assert q_of(mix @ w1, w2 @ torch.linalg.inv(mix)) > bound * (1 + 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_on_a_quadratic_every_mode_adds_sigma_squared_over_2m_of_the_trace(mode):
    """Oracle: E ½(w+ε)ᵀH(w+ε), at the minimum, so that nothing but the penalty is seen."""
    square = drawn((9, 9), 30)
    h = square @ square.T

    def loss(a, b, c):
        w = torch.cat([a.flatten(), b, c])
        return w @ h @ w / 2

    zero = torch.zeros(9, dtype=torch.float64)
    model = Weights(loss, a=zero[:4].reshape(2, 2), b=zero[:2].clone(), c=zero[:3].clone())
    groups, losses = noise_groups(model, "tensor"), []
    rule = NoiseRule(mode, "tensor", "absolute")
    with torch.no_grad():
        for step in range(6_000):
            with perturb_weights(groups, 0.2, step, rule):
                losses.append(model.loss().item())
    found = torch.tensor(losses, dtype=torch.float64)
    expected = 0.2**2 / (2 * 3) * h.trace()
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["all", "layer"])
def test_what_width_does_to_two_linear_layers(mode):
    """Oracle: the formulas of the loss; gradient noise grows as m for all, as √m for one layer."""
    gradients = {}
    for width in (*WIDTHS, 3_000):
        network = TwoLayers(width)
        mean, error, gradients[width] = network.measured(mode, 1_000)
        assert abs(mean - network.expected(mode)) < 4 * error
    slope = math.log10(gradients[10_000] / gradients[1_000])
    assert slope == pytest.approx({"all": 1, "layer": 0.5}[mode], abs=0.15)


# ------------------------------------------------------------------ moments (oracle 5)


def test_absolute_noise_is_normal_with_that_deviation():
    """Oracle: scipy's Kolmogorov-Smirnov test; 10⁶ numbers know the deviation to 0.07 %."""
    noise = noise_of(nn.Linear(1000, 1000), 0.03, 0, NoiseRule("all", "tensor", "absolute"))
    # M = 2
    values = noise["weight"].double().flatten() * math.sqrt(2) / 0.03
    assert float(values.std()) == pytest.approx(1, rel=3e-3)
    assert stats.kstest(values[:100_000].numpy(), "norm").pvalue > 0.01


def conv():
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 32, 3, bias=True, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.1, 4, 32, dtype=torch.float64).reshape(-1, 1, 1, 1))
    return layer


def energies(scale, name, steps=8):
    """Mean over steps of ‖noise‖² by row, over sigma²."""
    layer = conv()
    rule = NoiseRule("random", "module", scale)
    seen = [noise_of(layer, 0.3, t, rule, group_by="module")[name] for t in range(steps)]
    return layer, torch.stack([e.reshape(len(e), -1).square().sum(1) for e in seen]).mean(0) / 0.09


def test_filter_noise_has_the_energy_of_its_row_times_the_fan_in():
    layer, found = energies("filter", "weight")
    expected = 64 * 9 * layer.weight.detach().flatten(1).square().sum(1)
    assert float((found / expected).mean()) == pytest.approx(1, abs=0.02)
    assert float((found / expected - 1).abs().max()) < 0.1  # each row its own: 8 x 576 numbers
    _, found = energies("filter", "bias", steps=400)
    expected = 32 * layer.bias.detach().square().sum()
    assert float(found.sum() / expected) == pytest.approx(1, abs=0.06)  # 4 errors of 12,800 numbers


def test_rms_noise_has_the_energy_of_its_tensor():
    layer, found = energies("rms", "weight")
    assert float(found.sum() / layer.weight.detach().square().sum()) == pytest.approx(1, abs=0.02)
    assert float(found.max() / found.min()) < 1.3  # alike in all rows


def test_norms_of_half_precision_do_not_overflow():
    weight = nn.Linear(300, 300, bias=False).half()
    nn.init.constant_(weight.weight, 300.0)
    noise = noise_of(weight, 0.1, 0, NoiseRule())["weight"].float()
    assert float(noise.std()) == pytest.approx(30, rel=0.02)
    assert not noise_of(nn.Linear(3, 3).requires_grad_(False), 1.0, 0, NoiseRule())


def test_what_is_zero_gets_no_relative_noise():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    for scale in ("rms", "filter"):
        assert not noise_of(layer, 1.0, 0, NoiseRule("all", "tensor", scale))["weight"].any()
    assert noise_of(layer, 1.0, 0, NoiseRule("all", "tensor", "absolute"))["weight"].all()


# ------------------------------------------------------------------ groups and who gets noise


@pytest.mark.parametrize(
    ("name", "tensors", "small"),
    [("resnet18", 62, 41), ("resnet50", 161, 107), ("vit_base_patch16_224", 152, 100)],
)
def test_groups_of_known_networks(name, tensors, small):
    """Counts published with the method's analysis of these networks."""
    with torch.device("meta"):
        model = timm.create_model(name)
    by_tensor, by_matrix = noise_groups(model, "tensor"), noise_groups(model, "matrix")
    assert (len(by_tensor), len(by_matrix)) == (tensors, tensors - small)
    assert [n for group in by_tensor.values() for n in group] == [
        n for n, _ in model.named_parameters()
    ]
    owners = [m for m in model.modules() if [*m.parameters(recurse=False)]]
    by_module = noise_groups(model, "module")
    assert len(by_module) == len(owners)
    assert sum(map(len, by_module.values())) == tensors


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.Linear(5, 3))


def test_one_group_in_turn():
    model = net()
    groups = noise_groups(model)
    seen = [perturb_weights(groups, 0.1, t).groups[0] for t in range(7)]
    assert seen == (["0.weight", "2.weight", "3.weight"] * 3)[:7]


def test_random_choice_is_uniform_and_shared_by_ranks():
    """Oracle: scipy's chi-square test."""
    groups, rule = noise_groups(net(), "tensor"), NoiseRule("random", "tensor")
    seen = []
    for step in range(1600):
        with perturb_weights(groups, 0.1, step, rule) as noise:
            seen.append(noise.groups[0])
    counts = [seen.count(name) for name in groups]
    assert stats.chisquare(counts).pvalue > 0.01
    chosen = []
    for rank in (0, 1, None):
        with perturb_weights(groups, 0.1, 5, rule, rank=rank) as noise:
            chosen.append(noise.groups)
    assert len(set(chosen)) == 1


def test_tied_weights_get_noise_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert noise_groups(model) == {"0.weight": {"0.weight": model[0].weight}}


def test_a_root_that_owns_parameters_is_a_group():
    model = nn.Linear(2, 2)
    assert list(noise_groups(model, "module")) == ["(root)"]


def test_frozen_weights_get_none_and_do_not_count():
    model = net()
    groups = noise_groups(model)
    model[2].requires_grad_(False)
    seen = [perturb_weights(groups, 0.1, t).groups[0] for t in range(4)]
    assert seen == ["0.weight", "3.weight"] * 2
    model[2].requires_grad_(True)
    rule = NoiseRule("all", scale="absolute")
    three = noise_of(model, 0.1, 0, rule, group_by="matrix")
    model[2].requires_grad_(False)
    two = noise_of(model, 0.1, 0, rule, group_by="matrix")
    assert set(two) == {"0.weight", "3.weight"}
    for name, noise in two.items():  # the same draw, by the root of M
        torch.testing.assert_close(noise * math.sqrt(2), three[name] * math.sqrt(3))
    model.requires_grad_(False)
    assert perturb_weights(groups, 0.1, 0).groups == ()


def test_noise_depends_on_seed_step_and_rank_and_on_nothing_else():
    model = net()
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def flat(step, **kwargs):
        rule = NoiseRule("all", "tensor", "absolute")
        noise = noise_of(model, 1.0, step, rule, **kwargs).values()
        return torch.cat([e.flatten() for e in noise])

    first = flat(0)
    assert torch.equal(first, flat(0))
    others = [flat(1), flat(0, seed=1), flat(0, rank=0), flat(0, rank=1)]
    for a in others:
        assert abs(float(torch.corrcoef(torch.stack([first, a]))[0, 1])) < 0.4  # 78 numbers
    assert len({float(a[0]) for a in [first, *others]}) == 5
    assert torch.equal(before, torch.get_rng_state())


def test_noise_does_not_depend_on_the_memory_format():
    layer = nn.Conv2d(8, 8, 3)
    a = noise_of(layer, 0.1, 0, NoiseRule(scale="absolute"), group_by="matrix")["weight"]
    layer.to(memory_format=torch.channels_last)
    b = noise_of(layer, 0.1, 0, NoiseRule(scale="absolute"), group_by="matrix")["weight"]
    assert torch.equal(a, b)


# ------------------------------------------------------------------ restoring


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_two_thousand_cycles_leave_no_trace(dtype):
    """Adding and subtracting would drift: by 10 % of a weight in bfloat16."""
    model = nn.Linear(16, 16).to(dtype)
    groups, before = noise_groups(model, "tensor"), [p.clone() for p in model.parameters()]
    moved = 0
    for step in range(2_000):
        with perturb_weights(groups, 0.3, step, NoiseRule(group_by="tensor")):
            moved += not torch.equal(model.weight, before[0])
    assert moved == 1_000
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_storage_and_gradients_stay():
    model = nn.Linear(3, 3)
    storage = model.weight.data_ptr()
    with perturb_weights(noise_groups(model), 0.1, 0):
        model(torch.ones(1, 3)).sum().backward()
    assert model.weight.data_ptr() == storage and model.weight.grad is not None


def test_an_error_inside_restores_and_comes_out():
    model = net()
    before = model[0].weight.clone()
    with pytest.raises(KeyError), perturb_weights(noise_groups(model), 0.1, 0):
        raise KeyError
    assert torch.equal(model[0].weight, before)


def test_an_error_while_drawing_restores():
    model = net()
    before = [p.clone() for p in model.parameters()]
    groups = noise_groups(model)
    groups["broken"] = {"meta": nn.Parameter(torch.empty(2, 2, device="meta"))}
    with pytest.raises((RuntimeError, NotImplementedError)):
        perturb_weights(groups, 0.1, 0, NoiseRule("all"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_restoring_before_the_backward_pass_is_an_error():
    model = net()
    with perturb_weights(noise_groups(model), 0.1, 2):
        loss = model(torch.ones(2, 4)).square().sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_update_under_the_noise_is_an_error(kind, foreach):
    model = net()
    before = model[0].weight.clone()
    optimizer = kind(model.parameters(), 0.1, foreach=foreach)
    with (
        pytest.raises(RuntimeError, match=r"0\.weight changed while noise lay on it"),
        perturb_weights(noise_groups(model), 0.1, 0),
    ):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_another_storage_under_the_noise_is_an_error():
    model = net()
    noise = perturb_weights(noise_groups(model), 0.1, 0)
    model[0].weight.data = model[0].weight.data.clone()
    with pytest.raises(RuntimeError, match="changed while noise lay on it"):
        noise.restore()


def test_restoring_twice_does_nothing():
    model = net()
    noise = perturb_weights(noise_groups(model), 0.1, 0)
    noise.restore()
    with torch.no_grad():
        model[0].weight.add_(1)
    after = model[0].weight.clone()
    noise.restore()
    Perturbation().restore()
    assert torch.equal(model[0].weight, after)


# ------------------------------------------------------------------ summary and refusals


def test_the_summary_sets_noise_beside_weights():
    model = net()
    model[1].requires_grad_(False)
    found = summarise_noise(noise_groups(model, "tensor"), 0.3, NoiseRule(group_by="tensor"))
    assert (found.groups, found.small, found.tensors, found.zero) == (6, 3, 6, 0)
    assert found.lowest == pytest.approx(0.3) and found.highest == pytest.approx(0.3)
    nn.init.constant_(model[0].weight, 0.5)
    nn.init.constant_(model[3].weight, 2.0)
    nn.init.zeros_(model[2].weight)
    rule = NoiseRule("all", scale="absolute")
    found = summarise_noise(noise_groups(model), 0.3, rule)
    assert (found.groups, found.small, found.zero) == (3, 0, 1)
    assert found.highest == pytest.approx(0.3 / math.sqrt(3) / 0.5)
    assert found.lowest == pytest.approx(0.3 / math.sqrt(3) / 2)
    found = summarise_noise(noise_groups(model), 0.1, NoiseRule(scale="filter"))
    assert found.highest == pytest.approx(0.1 * math.sqrt(5))  # the root of the fan-in
    with pytest.raises(ValueError, match="requires a gradient"):
        summarise_noise(noise_groups(model.requires_grad_(False)), 0.1, NoiseRule())


def test_bad_input_is_refused():
    groups = noise_groups(net())
    for sigma in (-1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma must be finite and 0 or more"):
            perturb_weights(groups, sigma, 0)
    with pytest.raises(ValueError, match=r"LayerNorm has no tensor of two or more dim.*'tensor'"):
        noise_groups(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="ReLU has no parameter to perturb"):
        noise_groups(nn.ReLU(), "tensor")
    with pytest.raises(ValueError, match="group_by must be one of matrix, tensor, module"):
        noise_groups(net(), "block")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_weights_come_back():
    model = net().cuda()
    before = [p.clone() for p in model.parameters()]
    for step in range(6):
        with perturb_weights(noise_groups(model), 0.1, step):
            assert not torch.equal(model[(0, 2, 3)[step % 3]].weight, before[(0, 4, 6)[step % 3]])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
