"""ProbeMonitor beside the contract: what a measure may do, and the model that it sees."""

import copy
import random

import contract_checks as checks
import numpy as np
import pytest
import torch
from contract_modules import MODULES, TupleBatch
from contract_table import CALLBACKS
from contract_table import loss_and_logits as measure
from lightning.pytorch.callbacks import EMAWeightAveraging
from probe_runs import EVERYTHING, PROBES, every_probe, folder_of, rows, run
from torch.nn import functional as F

from firstlight.callbacks import ProbeMonitor, SharpnessMonitor
from firstlight.callbacks.batches import BatchError

# What a measure may do.


class Rude:
    """Does everything that would change a training run, and measures nothing."""

    def __call__(self, model, inputs, targets):
        random.random()
        np.random.rand(3)  # noqa: NPY002  # what must be undone
        torch.rand(3)
        model.train()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad)
                parameter.requires_grad_(False)
            for buffer in model.buffers():
                buffer.zero_()
        norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        norm.running_mean = torch.ones(4)
        return {"n": len(targets)}


@pytest.mark.parametrize("batch_norm", ["running", "warm"])
@pytest.mark.parametrize("module", ["tuple batch", "no forward, accumulated", "compiled"])
def test_a_rude_measure_changes_nothing(module, batch_norm, tmp_path):
    def make():
        return ProbeMonitor(Rude(), every_n_train_steps=1, probe_size=10, batch_norm=batch_norm)

    checks.check_unchanged(MODULES[module], tmp_path, make)


class Fails(Rude):
    def __call__(self, model, inputs, targets):
        super().__call__(model, inputs, targets)
        raise KeyError("no such thing")


def test_a_failing_measure_is_named_and_changes_nothing():
    module = TupleBatch()
    before = checks.snapshot(module)
    with pytest.raises(RuntimeError, match=r"ProbeMonitor could not measure at step 7.*no such"):
        ProbeMonitor(Fails()).measured(module, *EVERYTHING, step=7)
    assert checks._equal(before, checks.snapshot(module))


def test_a_bad_setup_stops_the_run_at_its_first_step(tmp_path):
    def bad(model, inputs, targets):
        raise ValueError("there is no layer4")

    with pytest.raises(ValueError, match=r"could not measure at step 0: there is no layer4"):
        run(tmp_path, ProbeMonitor(bad, every_n_train_steps=5))
    assert folder_of(tmp_path).run["status"] == "failed"


@pytest.mark.parametrize(
    "returned", [None, 1.0, {}, {"a": "b"}, {"a": {"b": None}}, {"a": torch.ones(2)}, {1: 2.0}]
)
def test_what_is_no_dict_of_numbers_is_refused(returned):
    with pytest.raises(RuntimeError, match="measure must return a dict"):
        ProbeMonitor(lambda *_: returned).measured(TupleBatch(), *EVERYTHING)


def test_batches_must_give_the_same_names():
    def fickle(model, inputs, targets):
        return {"full" if len(targets) == 32 else "rest": 1.0}

    with pytest.raises(ValueError, match=r"'full'.*'rest'"):
        ProbeMonitor(fickle).measured(TupleBatch(), *EVERYTHING)


def test_batches_are_averaged_by_their_examples():
    """Oracle: the mean over all examples at once, in float64."""
    module = TupleBatch().double()
    module.eval()
    want = F.cross_entropy(module(EVERYTHING[0].double()), EVERYTHING[1]).item()
    for size in (1, 5, 32, None):
        found = ProbeMonitor(measure, probe_batch_size=size).measured(module, *EVERYTHING)
        assert found[0].value == pytest.approx(want, rel=1e-12)
        assert found[0].n == 37


def test_random_numbers_are_keyed_by_seed_and_batch():
    def draws(model, inputs, targets):
        return {"t": torch.rand(()), "n": np.random.rand(), "p": random.random()}  # noqa: NPY002

    def found(seed, size=10):
        monitor = ProbeMonitor(draws, seed=seed, probe_batch_size=size)
        return monitor.measured(TupleBatch(), *EVERYTHING)

    first = found(1)
    checks.seed_all(99)
    assert found(1) == first
    assert all(a.value != b.value for a, b in zip(found(2), first, strict=True))
    assert all(a.value != b.value for a, b in zip(found(1, 37), first, strict=True))


# The model that a measure sees.


def test_the_model_bears_the_modules_own_names():
    names, kinds = [], []

    def look(model, inputs, targets):
        names.extend(name for name, _ in model.named_parameters())
        kinds.append((model.training, torch.is_grad_enabled(), type(model(inputs))))
        return {"n": 1}

    module = TupleBatch()
    ProbeMonitor(look, probe_batch_size=None).measured(module, *EVERYTHING)
    assert names == [name for name, _ in module.named_parameters()]
    assert kinds == [(False, True, torch.Tensor)]


def test_a_copy_of_the_model_is_a_model_of_its_own():
    """What deepcopy(model) computes must not go through the original's weights."""

    def moved(model, inputs, targets):
        other = copy.deepcopy(model)
        before = model(inputs)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        return {"own": (model(inputs) - before).abs().max(), "copy": other(inputs).abs().max()}

    own, other = ProbeMonitor(moved).measured(TupleBatch(), *EVERYTHING)
    assert (own.value, other.value) == (0, 0)


@pytest.mark.parametrize("kind", ["object output", "tuple output", "functional", "two children"])
def test_outputs_by_convention_are_logits(kind):
    """The same network, behind every kind of forward."""
    torch.manual_seed(3)
    plain = TupleBatch()
    other = MODULES[kind].build()
    weights = zip(other.parameters(), plain.parameters(), strict=True)
    with torch.no_grad():
        for parameter, value in weights:
            parameter.copy_(value)
    monitors = [CALLBACKS[name].build() for name in PROBES]
    for monitor in monitors:
        a, b = (monitor.measured(m, *EVERYTHING) for m in (plain, other))
        if kind != "two children":  # whose parameters have names, and so noise, of their own
            assert a == b


class Probabilities(TupleBatch):
    def forward(self, x):
        return self.net(x).softmax(1)


def test_probabilities_are_taken_for_what_they_are(tmp_path, capsys):
    torch.manual_seed(3)
    plain, other = TupleBatch().double(), Probabilities().double()
    other.load_state_dict(plain.state_dict())
    monitor = CALLBACKS["FisherTraceMonitor"].build()
    a, b = (monitor.measured(m, *EVERYTHING)[0].value for m in (plain, other))
    assert a == pytest.approx(b, rel=1e-9)


def test_one_output_is_no_classifier():
    class One(TupleBatch):
        def forward(self, x):
            return self.net(x)[:, :1]

    with pytest.raises(BatchError, match="ProbeMonitor is for classification"):
        ProbeMonitor(measure).measured(One(), *EVERYTHING)


def test_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"SharpnessMonitor could not measure at step 0: targets"):
        SharpnessMonitor().measured(TupleBatch(), EVERYTHING[0], EVERYTHING[1] + 1)


# Precision and wrappers.


@every_probe
def test_half_precision_is_measured_in_float32(name):
    module = TupleBatch().to(torch.bfloat16)
    full = copy.deepcopy(module).float()
    monitor = CALLBACKS[name].build()
    before = checks.snapshot(module)
    assert monitor.measured(module, *EVERYTHING) == monitor.measured(full, *EVERYTHING)
    assert checks._equal(before, checks.snapshot(module))


@every_probe
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_mixed_precision_measures_the_weights_in_full(name, precision, tmp_path):
    callback = CALLBACKS[name].build(every_n_train_steps=1)
    trainer, module = run(tmp_path, callback, precision=precision)
    probe, replayed = callback.probe_set, CALLBACKS[name].build()
    full = module.double() if precision == "64-true" else module.float()
    with torch.autocast("cpu", enabled=False):
        found = replayed.measured(full, probe.inputs, probe.targets)
    want = replayed.scalars(found)
    assert {k: float(trainer.callback_metrics[k]) for k in want} == {
        k: float(torch.tensor(v)) for k, v in want.items()
    }


def test_a_compiled_module_is_measured_uncompiled(tmp_path):
    callbacks = {name: CALLBACKS[name].build for name in PROBES}
    run(tmp_path / "plain", *(make() for make in callbacks.values()))
    run(tmp_path / "compiled", *(make() for make in callbacks.values()), case=MODULES["compiled"])
    for name in PROBES:
        table = CALLBACKS[name].table
        assert rows(tmp_path / "plain", table) == rows(tmp_path / "compiled", table)


class CompiledInside(TupleBatch):
    def __init__(self):
        super().__init__()
        self.net.compile(backend="eager")


def test_a_compiled_part_is_measured_uncompiled():
    torch.manual_seed(3)
    inside, plain = CompiledInside(), TupleBatch()
    plain.load_state_dict(inside.state_dict())
    for name in PROBES:
        monitor = CALLBACKS[name].build()
        assert monitor.measured(inside, *EVERYTHING) == monitor.measured(plain, *EVERYTHING)


@every_probe
def test_training_weights_are_measured_beside_averages(name, tmp_path):
    """Also the last ones, whichever callback comes first."""
    build = CALLBACKS[name].build
    run(tmp_path / "alone", build(every_n_train_steps=1))
    for order in (1, -1):
        root = tmp_path / f"order{order}"
        pair = [EMAWeightAveraging(decay=0.5), build(every_n_train_steps=1)][::order]
        run(root, *pair)
        table = CALLBACKS[name].table
        assert rows(root, table) == rows(tmp_path / "alone", table)
