import itertools
import math

import numpy as np
import pytest
import torch
from landscapes import COUNT, FIRST, Landscape
from torch import nn
from torch.nn import functional as F

from firstlight.functional.worst_case import _checkpoints, worst_case_sharpness


def quadratic(slope, hessian, start):
    return Landscape(
        lambda w: 20 + slope @ (w - start) + (w - start) @ hessian @ (w - start) / 2, start
    )


def maximum_in_a_ball(slope, hessian, radius):
    """Of g·e + ½ e·H e over ‖e‖ <= radius: e = (λI - H)⁻¹ g of length radius, λ by bisection."""
    values, vectors = torch.linalg.eigh(hessian)
    turned = vectors.T @ slope
    low, high = max(values[-1].item(), 0), values[-1].item() + slope.norm().item() / radius + 1
    for _ in range(200):
        middle = (low + high) / 2
        longer = (turned / (middle - values)).norm() > radius
        low, high = (middle, high) if longer else (low, middle)
    e = vectors @ (turned / (high - values))
    return (slope @ e + e @ hessian @ e / 2).item()


@pytest.fixture
def net():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    return model, torch.randn(60, 8, dtype=torch.float64), torch.randint(4, (60,))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_maximum_of_a_linear_loss_is_radius_times_dual_norm(norm, adaptive):
    slope = torch.tensor([3.0, -2.0, 5.0, 0.0], dtype=torch.float64)
    start = torch.tensor([1.0, 0.0, -2.0, 1.0], dtype=torch.float64)
    model = Landscape(lambda w: 20 + slope @ w, start)
    found = worst_case_sharpness(model, COUNT, FIRST, rho=0.1, norm=norm, adaptive=adaptive)
    scaled = slope * start if adaptive else slope
    expected = 0.1 * scaled.norm(p=2 if norm == "l2" else 1).item()
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.loss == pytest.approx(20 + 3 - 10)
    assert math.isnan(found.se)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_maximum_of_a_quadratic_is_reached_and_never_exceeded(seed, adaptive):
    torch.manual_seed(seed)
    a = torch.randn(40, 40, dtype=torch.float64)
    hessian, slope = (a + a.T) / 2, torch.randn(40, dtype=torch.float64)
    start = torch.randn(40, dtype=torch.float64)
    start[:3] = 0
    c = start.abs() if adaptive else torch.ones(40, dtype=torch.float64)
    rho = 0.5
    exact = maximum_in_a_ball(c * slope, c[:, None] * hessian * c, rho)
    model = quadratic(slope, hessian, start)
    few, many = (
        worst_case_sharpness(model, COUNT, FIRST, rho=rho, adaptive=adaptive, steps=n).value
        for n in (20, 100)
    )
    assert many == pytest.approx(exact, rel=1e-4)
    assert 0.85 * exact < few <= exact + 1e-9
    assert many <= exact + 1e-9


def test_a_convex_quadratic_in_a_cube_is_highest_at_a_corner():
    # All slopes and curvatures positive: the corner (1, ..., 1); else no corner is exceeded.
    torch.manual_seed(0)
    size, rho = 8, 0.3
    a = torch.rand(size, size, dtype=torch.float64)
    for slope in (torch.rand(size, dtype=torch.float64), torch.randn(size, dtype=torch.float64)):
        corners = rho * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=size))).double()
        heights = corners @ slope + ((corners @ a @ a.T) * corners).sum(1) / 2
        model = quadratic(slope, a @ a.T, torch.zeros(size).double())
        found = worst_case_sharpness(model, COUNT, FIRST, rho=rho, norm="linf").value
        assert found <= heights.max() + 1e-9
        if (slope > 0).all():
            assert found == pytest.approx(heights.max().item(), rel=1e-9)


def auto_pgd(slope, hessian, rho, steps, reviews, linf):
    """Highest rise as arXiv 2003.01690, algorithm 1, finds it, with the slope taken afresh."""

    def height(e):
        return slope @ e + e @ hessian @ e / 2

    def inside(e):
        return np.clip(e, -rho, rho) if linf else e * min(1, rho / max(np.linalg.norm(e), 1e-300))

    def climb(e):
        g = slope + hessian @ e
        return inside(e + eta * (np.sign(g) if linf else g / np.linalg.norm(g)))

    eta, points = 2 * rho, [np.zeros_like(slope)]
    points.append(climb(points[0]))
    heights = [0.0, height(points[1])]
    best = max(zip(heights, (0, 1), points, strict=True), key=lambda one: one[0])
    since, start_of_review, seen_then, cut_then = 0, 0, 0.0, True
    for k in range(1, steps + 1):
        if k > 1:
            now, past = points[-1], points[-2]
            points.append(inside(now + 0.75 * (climb(now) - now) + 0.25 * (now - past)))
            heights.append(height(points[-1]))
        since += heights[-1] > heights[-2]
        best = max(best, (heights[-1], k, points[-1]), key=lambda one: one[0])
        if k in reviews:
            cut_then = since < 0.75 * (k - start_of_review) or (
                not cut_then and best[0] == seen_then
            )
            if cut_then:
                eta /= 2
                points += [best[2], best[2]]
                heights.append(best[0])
            since, start_of_review, seen_then = 0, k, best[0]
    return best[0]


# In the last three a step that was halved at one review stands still at the next and is kept.
CLIMBS = [*itertools.product(("l2", "linf"), (5, 40), range(8)),
          ("l2", 2, 675), ("l2", 3, 1366), ("linf", 5, 695)]  # fmt: skip


@pytest.mark.parametrize(("norm", "size", "seed"), CLIMBS)
def test_the_climb_is_the_published_one(norm, size, seed):
    # Curvature so strong that steps are cut and the climb starts again from its best point.
    random = np.random.default_rng(seed)
    a = random.normal(size=(size, size))
    hessian, slope, rho = (a + a.T) / 2, random.normal(size=size), 1.0
    expected = auto_pgd(slope, hessian, rho, 20, {5, 9, 12, 14, 16, 18, 19, 20}, norm == "linf")
    model = quadratic(
        torch.from_numpy(slope), torch.from_numpy(hessian), torch.zeros(size).double()
    )
    found = worst_case_sharpness(model, COUNT, FIRST, rho=rho, norm=norm, steps=20)
    assert found.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_rise_is_at_least_that_of_the_steepest_move(norm, adaptive, net):
    model, x, y = net
    loss = F.cross_entropy(model(x), y)
    weights = [p.detach().clone() for p in model.parameters()]
    scales = [p.abs() if adaptive else torch.ones_like(p) for p in weights]
    slopes = [
        c * g for c, g in zip(scales, torch.autograd.grad(loss, model.parameters()), strict=True)
    ]
    length = math.sqrt(sum(float((s**2).sum()) for s in slopes))
    for rho in (1e-3, 0.1, 1.0):
        found = worst_case_sharpness(model, x, y, rho=rho, norm=norm, adaptive=adaptive)
        one = worst_case_sharpness(model, x, y, rho=rho, norm=norm, adaptive=adaptive, steps=1)
        with torch.no_grad():
            for p, w, c, s in zip(model.parameters(), weights, scales, slopes, strict=True):
                p.copy_(w + rho * c * (s / length if norm == "l2" else s.sign()))
            steepest = (F.cross_entropy(model(x), y) - loss).item()
            for p, w in zip(model.parameters(), weights, strict=True):
                p.copy_(w)
        assert one.value == pytest.approx(max(steepest, 0), rel=1e-9)
        assert found.value >= max(steepest - 1e-12, 0)
        assert found.draws == 15


def test_each_batch_has_its_own_maximum_and_the_error_is_over_them(net):
    model, x, y = net
    whole = worst_case_sharpness(model, x, y, rho=0.1, batch_size=20)
    parts = torch.tensor(
        [
            worst_case_sharpness(model, x[i : i + 20], y[i : i + 20], rho=0.1).value
            for i in (0, 20, 40)
        ]
    ).double()
    assert whole.value == pytest.approx(parts.mean().item(), rel=1e-6)
    assert whole.se == pytest.approx((parts.std() / math.sqrt(3)).item(), rel=1e-5)
    assert whole.value > worst_case_sharpness(model, x, y, rho=0.1).value


def test_a_summit_has_no_way_up():
    model = quadratic(torch.zeros(3).double(), -torch.eye(3).double(), torch.ones(3).double())
    found = worst_case_sharpness(model, COUNT, FIRST, rho=0.1)
    assert (found.value, found.draws) == (0, 0)


def test_slopes_too_small_to_square_are_climbed():
    slope = torch.full((3,), 1e-30)
    model = nn.Linear(1, 2, bias=False)
    model.forward = lambda x: (
        torch.stack([torch.zeros(()), (slope * model.weight[0]).sum()]).expand(len(x), 2)
        + 0 * model.weight.sum()
    )
    found = worst_case_sharpness(model, torch.zeros(2, 1), torch.zeros(2).long(), rho=0.1)
    assert found.draws == 15


def test_checkpoints_of_the_paper():
    assert _checkpoints(15) == {4, 7, 9, 11, 12, 14, 15}
    assert _checkpoints(20) == {5, 9, 12, 14, 16, 18, 19, 20}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rho": 0}, "rho must be positive"),
        ({"rho": math.nan}, "rho must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"norm": "l1"}, "norm must be"),
        ({"rho": 1e308}, "with the weights moved by rho=1e.308"),
    ],
)
def test_refusals(kwargs, message, net):
    with pytest.raises(ValueError, match=message):
        worst_case_sharpness(*net, **kwargs)
