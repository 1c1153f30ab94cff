"""SharpnessMonitor beside the contract: that it hands the right things over, and its cost."""

import contract_checks as checks
import pytest
import torch
from contract_modules import MODULES, Images, TupleBatch
from contract_table import PROBE
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F

from firstlight.callbacks import SharpnessMonitor
from firstlight.callbacks.probe_report import training_share

INPUTS, TARGETS = Images().images, torch.tensor(Images().targets)
SGD = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05, momentum=0.9)


def small():
    """A module with few enough trained weights for a dense Hessian."""
    torch.manual_seed(5)
    module = TupleBatch().double().eval()
    module.net[:5].requires_grad_(False)
    return module


def dense_hessian(module):
    """Oracle: all second derivatives of the mean loss by the trained weights, in float64."""
    weights = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    shapes = [p.shape for p in weights.values()]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        named = {n: p.view(s) for n, p, s in zip(weights, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(module, named, (INPUTS.double(),)), TARGETS)

    flat = torch.cat([p.flatten() for p in weights.values()])
    return hessian(loss, flat), torch.autograd.functional.jacobian(loss, flat)


def by_kind(monitor, module, optimizer=None):
    return {m.kind: m for m in monitor.measured(module, INPUTS, TARGETS, optimizer=optimizer)}


def test_all_measures_against_a_dense_hessian():
    module = small()
    matrix, gradient = dense_hessian(module)
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    rho = 1e-4
    found = by_kind(
        SharpnessMonitor(
            ("average", "worst_case", "lambda_max", "edge_of_stability"), rho=rho, draws=400
        ),
        module, SGD,
    )  # fmt: skip
    assert list(found) == ["average", "worst_case", "lambda_max", "edge_of_stability"]
    assert found["lambda_max"].value == pytest.approx(top, rel=1e-3)
    # Heavy ball is stable up to (2 + 2 momentum) / lr.
    assert found["edge_of_stability"].value == pytest.approx(top * 0.05 / 3.8, rel=1e-3)
    assert found["worst_case"].value == pytest.approx(rho * float(gradient.norm()), rel=1e-2)
    average = found["average"]
    want = rho**2 / 2 * float(matrix.trace())
    assert abs(average.value - want) < 4 * average.se
    assert average.se < 0.1 * want
    assert all(one.n == 37 for one in found.values())


def test_arguments_are_handed_on():
    """Each changes the number it is meant for, and no other."""
    module = small()
    both = ("average", "worst_case")

    def found(**arguments):
        one = by_kind(SharpnessMonitor(both, **{"seed": 1, **arguments}), module)
        return one["average"].value, one["worst_case"].value

    plain = found()
    for change, moves in {
        "rho": (0.02, (True, True)), "noise": ("uniform", (True, False)),
        "adaptive": (True, (True, True)), "draws": (4, (True, False)),
        "norm": ("linf", (False, True)), "steps": (2, (False, True)),
        "normalize_logits": (True, (True, True)), "seed": (2, (True, False)),
        "probe_batch_size": (10, (True, True)),
    }.items():  # fmt: skip
        value, wanted = moves
        assert tuple(a != b for a, b in zip(found(**{change: value}), plain, strict=True)) == (
            wanted
        ), change


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam([torch.zeros(1)])])
def test_edge_of_stability_without_sgd_is_left_out_and_said(optimizer):
    monitor = SharpnessMonitor(("edge_of_stability", "lambda_max"))
    found = monitor.measured(small(), INPUTS, TARGETS, optimizer=optimizer)
    assert [one.kind for one in found] == ["lambda_max"]
    assert "edge_of_stability is left out" in monitor.notes(found)[0]


def test_edge_of_stability_in_a_run(tmp_path):
    monitor = SharpnessMonitor(("edge_of_stability",), **PROBE)
    trainer, _ = checks.fit(MODULES["tuple batch"], tmp_path, [monitor])
    assert trainer.callback_metrics["sharpness/edge_of_stability"] > 0
    several = SharpnessMonitor(("edge_of_stability", "average"), **PROBE)
    trainer, _ = checks.fit(MODULES["manual optimisation"], tmp_path, [several])
    assert "sharpness/edge_of_stability" not in trainer.callback_metrics


def test_default_share_of_training():
    """Below 10 % of 10,000 steps of 128."""
    monitor = SharpnessMonitor()
    share = training_share(monitor.passes(1000), 256, monitor.schedule, 10_000, 128)
    by_hand = 70 * 256 * 18 / (10_000 * 128 * 3)  # 16 losses and, for the error, a gradient
    assert share == pytest.approx(by_hand)
    assert share < 0.10


@pytest.mark.parametrize("kind", ["average", "worst_case", "lambda_max"])
def test_stated_passes_bound_those_made(kind):
    """Forward and backward passes are counted as they happen, but not within Lanczos' products."""
    module, forwards, backwards = small(), [], []

    def count(_module, _inputs, output):
        forwards.append(1)
        if output.requires_grad:
            output.register_hook(lambda gradient: backwards.append(1))

    module.net.register_forward_hook(count)
    monitor = SharpnessMonitor((kind,), probe_batch_size=37)
    monitor.measured(module, INPUTS, TARGETS)
    made = len(forwards) - 1  # one finds out what the module returns
    if kind == "lambda_max":
        assert made <= monitor.forwards
    else:
        assert made == monitor.forwards
        assert made + 2 * len(backwards) == monitor.passes(3)


def test_presets_are_the_papers():
    one, two = (SharpnessMonitor(preset=p) for p in ("2403.15210", "2302.07011"))
    assert (one.probe_size, one.probe_batch_size, one.rho, one.draws) == (2048, 256, 0.01, 15)
    assert one.schedule.pieces == ((0, 10),)
    assert (two.probe_size, two.probe_batch_size, two.rho, two.draws) == (1024, 128, 0.1, 20)
    with pytest.raises(ValueError, match=r"means rho=0\.01, but rho=0\.05"):
        SharpnessMonitor(preset="2403.15210", rho=0.05)
