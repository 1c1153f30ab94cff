import math

import numpy as np
import pytest
import timm
import torch
from landscapes import COUNT, FIRST, Landscape
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F

from firstlight.functional.hessian import edge_of_stability, hessian_top_eigenvalue


def quadratic(hessian):
    start = torch.zeros(len(hessian)).double()
    return Landscape(lambda w: 10 + w.sum() + w @ hessian @ w / 2, start)


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    return model, torch.randn(64, 12, dtype=torch.float64), torch.randint(8, (64,))


def dense(model, x, y, params=None):
    """Explicit Hessian over the model's own parameters, a row at a time."""
    chosen = [p for n, p in model.named_parameters() if params is None or n in params]
    loss = F.cross_entropy(model(x), y)
    gradient = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(loss, chosen, create_graph=True)]
    )
    rows = [torch.autograd.grad(g, chosen, retain_graph=True) for g in gradient]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def test_extreme_eigenvalues_are_those_of_the_explicit_hessian(net):
    model, x, y = net
    hessian = dense(model, x, y)
    assert len(hessian) == 344
    values, vectors = torch.linalg.eigh(hessian)
    found = hessian_top_eigenvalue(model, x, y, max_steps=60, tolerance=0, batch_size=20)
    assert found.value == pytest.approx(values[-1].item(), rel=1e-10)
    assert found.smallest == pytest.approx(values[0].item(), rel=1e-3)
    assert found.loss == pytest.approx(F.cross_entropy(model(x), y).item())
    vector = torch.cat([v.reshape(-1) for v in found.vector.values()])
    assert abs(vector @ vectors[:, -1]) == pytest.approx(1, rel=1e-6)
    assert list(found.vector) == [n for n, _ in model.named_parameters()]
    assert all(found.vector[n].shape == p.shape for n, p in model.named_parameters())
    assert found.n == 64


def test_float32_is_right_to_a_hundred_thousandth(net):
    model, x, y = net
    exact = torch.linalg.eigvalsh(dense(model, x, y))[-1].item()
    found = hessian_top_eigenvalue(model.float(), x.float(), y, max_steps=30, tolerance=0)
    assert found.value == pytest.approx(exact, rel=1e-5)


def test_it_stops_at_the_tolerance_and_tells_its_true_residual(net):
    model, x, y = net
    hessian = dense(model, x, y)
    exact = torch.linalg.eigvalsh(hessian)[-1].item()
    steps = []
    for tolerance in (0.1, 1e-2, 1e-3):
        found = hessian_top_eigenvalue(model, x, y, tolerance=tolerance)
        vector = torch.cat([v.reshape(-1) for v in found.vector.values()])
        residual = (hessian @ vector - found.value * vector).norm().item()
        assert found.residual == pytest.approx(residual, rel=1e-6)
        assert residual <= tolerance * found.value
        assert abs(found.value - exact) <= residual
        steps.append(found.steps)
    assert steps[0] < steps[1] < steps[2] < 30
    assert found.value == pytest.approx(exact, rel=1e-5)


def test_scipy_needs_more_products(net):
    model, x, y = net
    hessian = dense(model, x, y).numpy()
    count = 0

    def product(vector):
        nonlocal count
        count += 1
        return hessian @ vector

    operator = LinearOperator(hessian.shape, matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=len(hessian))
    (theirs,) = eigsh(operator, 1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)
    ours = hessian_top_eigenvalue(model, x, y)
    assert ours.value == pytest.approx(theirs, rel=1e-3)
    assert ours.steps <= count


def test_a_larger_negative_eigenvalue_does_not_hide_the_largest():
    hessian = torch.diag(torch.tensor([-9.0, 0.5, 1.0, 2.0])).double()
    found = hessian_top_eigenvalue(quadratic(hessian), COUNT, FIRST)
    # The Hessian of the loss is that of the height.
    assert found.value == pytest.approx(2, rel=1e-10)
    assert found.smallest == pytest.approx(-9, rel=1e-10)
    assert found.steps == 4


@pytest.mark.parametrize(
    ("diagonal", "steps"), [([3.0, 3, 3, 1, 1], 2), ([2.0] * 6, 1), ([-4.0], 1)]
)
def test_it_ends_where_there_is_nothing_more_to_find(diagonal, steps):
    hessian = torch.diag(torch.tensor(diagonal)).double()
    found = hessian_top_eigenvalue(quadratic(hessian), COUNT, FIRST, tolerance=0)
    assert found.value == pytest.approx(max(diagonal), abs=1e-10)
    assert found.residual == pytest.approx(0, abs=1e-10)
    assert found.steps == steps


def test_a_loss_without_second_derivatives_is_flat():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return torch.stack([self.w[:3].relu() * 0, x[0, :3]])

    found = hessian_top_eigenvalue(Flat(), torch.ones(2, 3), torch.tensor([0, 1]))
    assert (found.value, found.residual, found.steps) == (0, 0, 1)


def test_a_parameter_outside_the_loss_has_no_curvature(net):
    model, x, y = net
    plain = hessian_top_eigenvalue(model, x, y, tolerance=1e-8, max_steps=60)
    model.spare = nn.Parameter(torch.ones(3).double())
    model.forward = lambda x: model[2](model[1](model[0](x)))
    both = hessian_top_eigenvalue(model, x, y, tolerance=1e-8, max_steps=60)
    assert both.value == pytest.approx(plain.value, rel=1e-9)
    alone = hessian_top_eigenvalue(model, x, y, params=["spare"])
    assert (alone.value, alone.steps) == (0, 1)


def test_params_restrict_the_hessian(net):
    model, x, y = net
    exact = torch.linalg.eigvalsh(dense(model, x, y, ["0.weight"]))[-1].item()
    found = hessian_top_eigenvalue(model, x, y, params=["0.weight"], tolerance=1e-6, max_steps=60)
    assert found.value == pytest.approx(exact, rel=1e-9)
    for name, p in model.named_parameters():
        p.requires_grad_(name == "0.weight")
    frozen = hessian_top_eigenvalue(model, x, y, tolerance=1e-6, max_steps=60)
    assert frozen.value == found.value


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_eigenvector_by_differences_of_gradients(name):
    # Attention needs a kernel that can be differentiated twice, BatchNorm eval mode.
    torch.manual_seed(0)
    # Weights of zero put activations on the kink of ReLU, where differences see a jump.
    settings = {"img_size": 32} if "vit" in name else {"zero_init_last": False}
    model = timm.create_model(name, num_classes=5, **settings).double().train()
    x, y = torch.randn(6, 3, 32, 32).double(), torch.randint(5, (6,))
    found = hessian_top_eigenvalue(model, x, y, max_steps=4)
    assert model.training
    model.eval()
    slopes = []
    step = 1e-8
    for sign in (1, -2):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p += sign * step * found.vector[n]
        loss = F.cross_entropy(model(x), y)
        slopes.append(torch.autograd.grad(loss, model.parameters()))
    curvature = [(a - b) / (2 * step) for a, b in zip(*slopes, strict=True)]
    inner = sum(float((c * v).sum()) for c, v in zip(curvature, found.vector.values(), strict=True))
    assert inner == pytest.approx(found.value, rel=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"tolerance": -1}, "tolerance must be"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"params": ["nothing"]}, "has no parameter 'nothing'"),
    ],
)
def test_refusals(kwargs, message, net):
    with pytest.raises(ValueError, match=message):
        hessian_top_eigenvalue(*net, **kwargs)


SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5},
    {"dampening": 0.5},
    {"momentum": 0.5, "weight_decay": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sgd_diverges_on_a_quadratic_just_above_the_edge_and_not_below(settings):
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    probe = torch.optim.SGD([w], lr=0.1, **settings)
    per_unit = edge_of_stability(1, probe) - edge_of_stability(0, probe)
    edge = (1 - edge_of_stability(0, probe)) / per_unit
    for curvature, grows in ((0.99 * edge, False), (1.01 * edge, True)):
        optimizer = torch.optim.SGD([w], lr=0.1, **settings)
        with torch.no_grad():
            w.fill_(1)
        for _ in range(3000):
            w.grad = curvature * w.detach()
            optimizer.step()
        assert (w.abs().item() > 1e3) == grows
        assert grows or w.abs().item() < 1e-3


def groups(*settings):
    return [{"params": [nn.Parameter(torch.ones(2))], **one} for one in settings]


def test_ratios_of_groups():
    sgd = torch.optim.SGD
    assert edge_of_stability(10, sgd(groups({}, {}), lr=0.1)) == pytest.approx(0.5)
    # The larger decay counts.
    mixed = sgd(groups({"weight_decay": 2}, {"weight_decay": 0}), lr=0.1)
    assert edge_of_stability(10, mixed) == pytest.approx(0.6)
    unlike = sgd(groups({"lr": 0.1}, {"lr": 0.2}), lr=0.1)
    assert edge_of_stability(10, unlike) is None
    unlike.param_groups[1]["params"][0].requires_grad_(False)
    assert edge_of_stability(10, unlike) == pytest.approx(0.5)
    unlike.param_groups[0]["params"][0].requires_grad_(False)
    assert edge_of_stability(10, unlike) is None


@pytest.mark.parametrize("settings", [{"maximize": True}, {"momentum": 1.0}])
def test_no_threshold(settings):
    assert edge_of_stability(10, torch.optim.SGD(groups({}), lr=0.1, **settings)) is None


def test_no_threshold_but_for_sgd():
    assert edge_of_stability(10, torch.optim.AdamW(groups({}))) is None
