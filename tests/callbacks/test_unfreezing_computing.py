"""Gradients arrive in a block from its thaw on, under mixed precision and in compiled modules."""

import contract_checks as checks
import pytest
import torch
from contract_modules import CLASSES, ModuleCase, TupleBatch
from torch import nn

from firstlight.callbacks import GradualUnfreezing


class Deep(TupleBatch):
    """As many blocks as wanted, all linear."""

    def __init__(self, depth=3):
        super().__init__()
        layers = [layer for _ in range(depth) for layer in (nn.Linear(48, 48), nn.ReLU())]
        self.net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(48, CLASSES))


class InPlace(Deep):
    """Compiled without a wrapper, by whoever built it."""

    def __init__(self, depth=3, backend="aot_eager"):
        super().__init__(depth)
        self.net.compile(backend=backend)


class Gradients(checks.L.Callback):
    """Which parameters have a gradient at each update; the types of the logits beside."""

    def __init__(self):
        self.there, self.types = [], set()

    def on_train_start(self, trainer, pl_module):
        pl_module.net.register_forward_hook(lambda *seen: self.types.add(seen[-1].dtype))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        found = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        self.there.append({name for name, gradient in found.items() if bool(gradient.any())})
        assert self.there[-1] == set(found)


def fit(build, root, depth=3, compiled=False, **kwargs):
    watch, callback = Gradients(), GradualUnfreezing(interval=2)
    case = ModuleCase(build, compiled=compiled, blocks=depth)
    _, module = checks.fit(case, root, [callback, watch], epochs=kwargs.pop("epochs", 3), **kwargs)
    assert list(callback._opened.values()) == [2 * j + 1 for j in range(depth)]
    return watch, module


def assert_gradients_follow_the_thaws(watch, depth=3):
    """The j-th block from above opens before the update number 2 j + 1."""
    layers = [2 * i + 1 for i in reversed(range(depth))]
    for step, there in enumerate(watch.there):
        opened = [layer for j, layer in enumerate(layers) if step >= 2 * j + 1]
        wanted = [f"net.{layer}." for layer in (*opened, 2 * depth + 1)]
        assert there == {name + part for name in wanted for part in ("weight", "bias")}, step


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16)],
)
def test_gradients_follow_the_thaws_in_reduced_precision(precision, kind, tmp_path):
    watch, _ = fit(Deep, tmp_path, precision=precision)
    assert watch.types == {kind}
    assert_gradients_follow_the_thaws(watch)


@pytest.mark.parametrize(
    ("build", "compiled"), [(Deep, True), (InPlace, False)], ids=["wrapped", "in place"]
)
def test_gradients_follow_the_thaws_in_compiled_modules(build, compiled, tmp_path):
    """And the weights end where those of the same module end that is not compiled."""
    watch, module = fit(build, tmp_path / "compiled", compiled=compiled)
    assert_gradients_follow_the_thaws(watch)
    _, plain = fit(Deep, tmp_path / "plain")
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_follow_the_thaws_under_the_default_compiler(tmp_path):
    watch, _ = fit(lambda: InPlace(backend="inductor"), tmp_path)
    assert_gradients_follow_the_thaws(watch)


def test_more_thaws_than_dynamo_recompiles_for_stay_compiled(tmp_path):
    """Past its limit it runs what was compiled as it was written, slowly and without a word."""
    limit, ran = 8, []  # torch's own; importing timm.optim.kron makes it a million
    thaws = limit + 3

    def counting(graph, _):
        def run(*inputs):
            ran[-1] += torch.is_grad_enabled()
            return graph(*inputs)

        return run

    class Counts(checks.L.Callback):
        def on_train_batch_start(self, *_):
            ran.append(0)

    def build():
        module = Deep(thaws)
        module.net.compile(backend=counting)
        return module

    watch, callback = Gradients(), GradualUnfreezing(interval=2)
    with torch._dynamo.config.patch(recompile_limit=limit):
        checks.fit(
            ModuleCase(build), tmp_path, [callback, watch, Counts()], epochs=5, limit_val_batches=0
        )
    assert len(callback._opened) == thaws
    assert_gradients_follow_the_thaws(watch, thaws)
    assert ran == [1] * 25
