"""ProbeMonitor beside the contract: what a measure may do, where probes come from, schedules."""

import copy
import random

import contract_checks as checks
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from contract_table import CALLBACKS, MODULES, Images, Manual, TupleBatch
from contract_table import loss_and_logits as measure
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from firstlight.callbacks import FisherTraceMonitor, PerClassMonitor, ProbeMonitor, SharpnessMonitor
from firstlight.callbacks.batches import BatchError
from firstlight.callbacks.schedule import LearningRateWatch
from firstlight.datamodules import DigitsDataModule
from firstlight.lightning_modules import ImageClassifier
from firstlight.runfolder import RunFolder

CASE = MODULES["tuple batch"]
EVERYTHING = (Images().images, torch.tensor(Images().targets))
PROBES = [name for name, callback in CALLBACKS.items() if callback.kind == "probe"]
every_probe = pytest.mark.parametrize("name", PROBES)


def folder_of(root):
    (description,) = root.rglob("run.json")
    return RunFolder.open(description.parent)


def rows(root, table="probe"):
    """The table without what time it took."""
    found = folder_of(root).read(table).drop_columns(["seconds"]).to_pylist()
    return [str(row) for row in found]


def run(root, *callbacks, case=CASE, **kwargs):
    return checks.fit(case, root, list(callbacks), **kwargs)


class Plain(TupleBatch):
    """Without a validation."""

    validation_step = L.LightningModule.validation_step


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
@pytest.mark.parametrize("module", ["tuple batch", "tuple batch, accumulated", "compiled"])
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


# When.


class ManyBatches(L.Callback):
    """Notes the step before each batch."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, *_):
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_once_a_step_under_accumulation(accumulate, tmp_path):
    seen = []
    monitor = ProbeMonitor(
        lambda *_: seen.append(1) or {"n": 1}, every_n_train_steps=1, probe_batch_size=None
    )
    run(tmp_path, monitor, accumulate_grad_batches=accumulate)
    last = 2 * -(-5 // accumulate)
    assert folder_of(tmp_path).read("probe")["step"].to_pylist() == list(range(last + 1))
    assert len(seen) == last + 1


def test_manual_optimisation_misses_no_piece_of_the_schedule(tmp_path):
    """Two optimisers: global_step is 0, 2, 4, ...; what is scheduled at 5 is measured at 6."""
    monitor = ProbeMonitor(measure, every_n_train_steps=5)
    run(tmp_path, monitor, case=MODULES["manual optimisation"])
    steps = sorted(set(folder_of(tmp_path).read("probe")["step"].to_pylist()))
    assert steps == [0, 6, 10, 16, 20]


def test_measured_before_the_update_and_after_the_last(tmp_path):
    """Values are those of the weights at that step, by a copy made when the step began."""

    class Copies(L.Callback):
        def __init__(self):
            self.modules = {}

        def on_train_batch_start(self, trainer, pl_module, *_):
            self.modules[trainer.global_step] = copy.deepcopy(pl_module)

    copies, monitor = Copies(), ProbeMonitor(measure, every_n_train_steps=3)
    _, module = run(tmp_path, copies, monitor, max_steps=9, epochs=5)
    copies.modules[9] = module
    table = folder_of(tmp_path).read("probe").to_pylist()
    found = {row["step"]: row["value"] for row in table if row["kind"] == "loss"}
    probe = monitor.probe_set
    again = ProbeMonitor(measure)
    want = {s: again.measured(copies.modules[s], probe.inputs, probe.targets)[0].value
            for s in (0, 3, 6, 9)}  # fmt: skip
    assert found == want
    assert len(set(found.values())) == 4


@every_probe
def test_checkpoints_replay_what_the_run_recorded(name, tmp_path):
    """Bitwise: weights and statistics of the checkpoint, measured without a trainer."""
    callback = CALLBACKS[name].build(every_n_train_steps=1)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    run(tmp_path, callback, saving, enable_checkpointing=True)
    probe, table = callback.probe_set, CALLBACKS[name].table
    for step in (4, 8):
        module = TupleBatch()
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        module.load_state_dict(saved["state_dict"])
        found = CALLBACKS[name].build().measured(module, probe.inputs, probe.targets)
        recorded = [r for r in folder_of(tmp_path).read(table).to_pylist() if r["step"] == step]
        assert [(r["kind"], r["block"], r["value"]) for r in recorded] == [
            (one.kind, one.block, one.value) for one in found
        ]
        assert str([(r["se"], r["n"]) for r in recorded]) == str([(m.se, m.n) for m in found])


def test_a_resumed_run_neither_repeats_nor_skips(tmp_path):
    seen = []

    def counts(model, inputs, targets):
        seen.append(1)
        return {"n": 1}

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    make = lambda: ProbeMonitor(counts, every_n_train_steps=2, probe_batch_size=None)  # noqa: E731
    run(tmp_path, make(), saving, enable_checkpointing=True, max_steps=5)
    assert len(seen) == 3
    checks.seed_all(7)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False,
        callbacks=[make(), saving], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(), CASE.loader(), ckpt_path=tmp_path / "step=5.ckpt")
    assert folder_of(tmp_path).read("probe")["step"].to_pylist() == [0, 2, 4, 6, 8, 10]
    assert len(seen) == 6


class SavesAt4(L.Callback):
    """Saves a checkpoint after step 4."""

    def __init__(self, file):
        self.file = file

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.file)


def test_a_resumed_run_misses_nothing_where_the_count_jumps(tmp_path):
    """global_step is 0, 2, 4, ...; step 3 is due at 4, where the checkpoint was saved."""

    class PlainManual(Manual):
        validation_step = L.LightningModule.validation_step

    make = lambda: ProbeMonitor(measure, every_n_train_steps=3)  # noqa: E731
    case, file = MODULES["manual optimisation"], tmp_path / "4.ckpt"
    run(tmp_path, make(), SavesAt4(file), case=case, max_steps=4, limit_train_batches=2)
    (part,) = tmp_path.rglob("000000004-*.parquet")
    part.unlink()  # as if the run had been killed before it measured
    trainer = L.Trainer(
        max_epochs=5, limit_train_batches=2, accelerator="cpu", default_root_dir=tmp_path,
        logger=False, callbacks=[make()], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(PlainManual(), CASE.loader(), ckpt_path=file)
    steps = sorted(set(folder_of(tmp_path).read("probe")["step"].to_pylist()))
    assert steps == [0, 4, 6, 10, 12, 16, 18]


def test_another_probe_after_resuming_is_said_and_noted(tmp_path, capsys):
    saving = ModelCheckpoint(tmp_path, save_last=True)
    run(tmp_path, ProbeMonitor(measure, seed=1), saving, enable_checkpointing=True, epochs=1)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False,
        callbacks=[ProbeMonitor(measure, seed=1, probe_size=9), saving],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(), CASE.loader(), ckpt_path=tmp_path / "last.ckpt")
    assert "cannot be compared" in capsys.readouterr().out
    assert folder_of(tmp_path).read("events")["kind"].to_pylist() == ["probe"]


def test_nothing_is_measured_in_an_evaluation(tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[ProbeMonitor(measure)],
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.validate(TupleBatch(), CASE.loader(), verbose=False)
    assert list(tmp_path.iterdir()) == []
    assert not [key for key in trainer.callback_metrics if key.startswith("probe")]


# Beside others.


@pytest.mark.parametrize("order", [1, -1])
def test_per_class_counts_are_those_without_a_probe(order, tmp_path):
    """The probe's batches are as long as the training's, so that length cannot tell them apart."""
    make = lambda: PerClassMonitor(("train", "val"))  # noqa: E731
    run(tmp_path / "without", make())
    probe = ProbeMonitor(measure, every_n_train_steps=1, probe_size=16, probe_batch_size=8)
    run(tmp_path / "with", *[make(), probe][::order])
    a, b = (
        folder_of(tmp_path / part).read("per_class").to_pylist() for part in ("without", "with")
    )
    assert str(a) == str(b)


def test_two_measures_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="both named 'fisher_trace'"):
        run(tmp_path, ProbeMonitor(measure, name="fisher_trace"), FisherTraceMonitor())


def test_a_module_split_between_processes_is_refused(tmp_path):
    from lightning.pytorch.strategies import FSDPStrategy

    class Trainer:
        strategy = FSDPStrategy()
        callbacks = ()

    with pytest.raises(ValueError, match=r"FSDPStrategy splits it.*firstlight measure"):
        ProbeMonitor(measure).setup(Trainer(), TupleBatch(), "fit")


# Bad models.


class Diverges(Plain):
    """All weights are NaN from step 3 on."""

    def on_train_batch_start(self, *_):
        if self.trainer.global_step == 3:
            with torch.no_grad():
                self.net[-1].weight.fill_(float("nan"))


@every_probe
def test_a_diverged_model_is_recorded_as_nan_and_said_once(name, tmp_path, capsys):
    callback = CALLBACKS[name].build(every_n_train_steps=1)
    checks.seed_all(7)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, logger=False,
        callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Diverges(), CASE.loader())
    table = folder_of(tmp_path).read(CALLBACKS[name].table).to_pylist()
    assert {r["step"] for r in table} == set(range(11))
    assert all((r["value"] != r["value"]) == (r["step"] > 3) for r in table)
    assert capsys.readouterr().out.count("no finite number") == 1


@every_probe
def test_nan_weights_from_the_start_do_not_stop_the_run(name, tmp_path, capsys):
    class Broken(TupleBatch):
        def __init__(self):
            super().__init__()
            torch.nn.init.constant_(self.net[-1].weight, float("nan"))

    run(tmp_path, CALLBACKS[name].build(), case=checks.ModuleCase(Broken))
    assert capsys.readouterr().out.count("no finite number") == 1


class Frozen(TupleBatch):
    """Nothing is trained but a parameter that the network does not use."""

    def __init__(self):
        super().__init__()
        self.net.requires_grad_(False)


def test_a_frozen_network(tmp_path):
    assert FisherTraceMonitor().measured(Frozen(), *EVERYTHING)[0].value == 0
    with pytest.raises(ValueError, match="no parameter to move"):
        SharpnessMonitor().measured(Frozen(), *EVERYTHING)


# Probe sets.


class OnlyNumbers(L.LightningDataModule):
    """Knows a fixed probe."""

    def train_dataloader(self):
        return CASE.loader(shuffle=True)

    def probe_dataloader(self):
        return DataLoader(Images(), 10)


def fit_data(root, monitor, data, module=None):
    checks.seed_all(7)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=root, logger=False, callbacks=[monitor],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module or Plain(), data)
    return monitor


def test_the_data_modules_probe_is_taken(tmp_path, capsys):
    monitor = fit_data(tmp_path, ProbeMonitor(measure, probe_size=15), OnlyNumbers())
    assert torch.equal(monitor.probe_set.inputs, Images().images[:15])
    assert torch.equal(monitor.probe_set.targets, EVERYTHING[1][:15])
    printed = capsys.readouterr().out
    assert "15 examples of OnlyNumbers.probe_dataloader()" in printed
    assert "augmented" not in printed


@pytest.mark.parametrize(
    "given",
    [EVERYTHING, DataLoader(Images(), 7), DataLoader(Images("image"), 7)],
    ids=["tensors", "loader", "dicts"],
)
def test_an_argument_comes_first(given, tmp_path, capsys):
    monitor = ProbeMonitor(measure, probe=given, probe_size=20)
    fit_data(tmp_path, monitor, OnlyNumbers())
    assert torch.equal(monitor.probe_set.inputs, Images().images[:20])
    assert "the argument probe" in capsys.readouterr().out


def test_a_data_set_is_drawn_from_by_seed(tmp_path):
    def drawn(seed):
        monitor = ProbeMonitor(measure, probe=Images(), probe_size=20, seed=seed)
        return fit_data(tmp_path / str(seed), monitor, OnlyNumbers()).probe_set.inputs

    a, b, c = drawn(1), drawn(1), drawn(2)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    rows = {tuple(row.flatten().tolist()) for row in a}
    assert len(rows) == 20, "without replacement"


class Noisy(Images):
    """Augmented by all three generators."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        shift = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return image + shift.float(), target


def test_training_data_are_drawn_once_with_a_warning(tmp_path, capsys):
    """Whatever the state of the generators; the same again after a resume."""
    probes = []
    for state in (1, 2):
        checks.seed_all(state)
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=tmp_path / str(state), logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            callbacks=[monitor := ProbeMonitor(measure, probe_size=20, seed=4)],
        )  # fmt: skip
        trainer.fit(Plain(), DataLoader(Noisy(), 8, shuffle=True))
        probes.append(monitor.probe_set)
    assert probes[0].fingerprint == probes[1].fingerprint
    assert torch.equal(probes[0].inputs, probes[1].inputs)
    assert capsys.readouterr().out.count("if they are augmented") == 2


def test_fewer_examples_than_asked_is_said(tmp_path, capsys):
    monitor = fit_data(tmp_path, ProbeMonitor(measure, probe_size=100), OnlyNumbers())
    assert monitor.probe_set.size == 37
    assert "asked for 100 probe examples, got 37" in capsys.readouterr().out


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Images())


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ((Images().images[:0], EVERYTHING[1][:0]), "probe set is empty"),
        (DataLoader(Images(), 8, sampler=[]), "probe set is empty"),
        ((Images().images, EVERYTHING[1][:5]), "37 inputs, but 5 targets"),
        (iter([]), "probe must be a loader"),
        ("train", "probe must be a loader"),
        (3, "probe must be a loader"),
        ([(torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long)),
          (torch.rand(4, 3, 5, 5), torch.zeros(4, dtype=torch.long))], "do not fit together"),
    ],
)  # fmt: skip
def test_bad_probes_are_refused(probe, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit_data(tmp_path, ProbeMonitor(measure, probe=probe), OnlyNumbers())


def test_a_stream_of_training_data_asks_for_a_probe(tmp_path):
    with pytest.raises(ValueError, match=r"found no probe set.*Pass probe="):
        fit_data(tmp_path, ProbeMonitor(measure), DataLoader(Stream(), 8))
    given = ProbeMonitor(measure, probe=Stream(), probe_size=10)
    assert fit_data(tmp_path, given, DataLoader(Stream(), 8)).probe_set.size == 10


def test_soft_targets_are_kept(tmp_path):
    soft = torch.full((12, 3), 0.1)
    soft[:, 1] = 0.8
    monitor = CALLBACKS["SharpnessMonitor"].build(probe=(EVERYTHING[0][:12], soft))
    fit_data(tmp_path, monitor, OnlyNumbers())
    assert torch.equal(monitor._targets, soft)


def test_ours_needs_nothing(tmp_path, capsys):
    data = DigitsDataModule(batch_size=64, img_size=8, seed=1)
    fit_data(tmp_path, FisherTraceMonitor(probe_size=20), data, ImageClassifier("resnet20_cifar"))
    printed = capsys.readouterr().out
    assert "20 examples of DigitsDataModule.probe_dataloader()" in printed
    blocks = folder_of(tmp_path).read("fisher_trace")["block"].to_pylist()
    assert list(dict.fromkeys(blocks)) == ["", "stem", "layer1", "layer2", "layer3", "head"]


# BatchNorm.


def test_untouched_statistics_are_said_and_warm_ones_are_the_probes(tmp_path, capsys):
    """Oracle: BatchNorm's own statistics after a step in train mode with momentum 1."""
    run(tmp_path, ProbeMonitor(measure, every_n_train_steps=5))
    assert "batch_norm='warm' measures without that" in capsys.readouterr().out
    run(tmp_path, ProbeMonitor(measure, every_n_train_steps=5, batch_norm="warm"))
    assert "batch_norm='warm'" not in capsys.readouterr().out
    module = TupleBatch().double()
    module.net[3].p = 0.0
    warm = ProbeMonitor(measure, batch_norm="warm", probe_batch_size=None)
    found = warm.measured(module, *EVERYTHING)[0].value
    module.train()
    norm = module.net[1]
    norm.momentum = 1.0
    with torch.no_grad():
        module(EVERYTHING[0].double())
    module.eval()
    with torch.no_grad():
        want = F.cross_entropy(module(EVERYTHING[0].double()), EVERYTHING[1]).item()
    assert found == pytest.approx(want, rel=1e-12)


def test_warm_statistics_hide_the_course_of_the_running_ones(tmp_path):
    """At a learning rate of 0 nothing is learned: "running" moves, "warm" stands still."""

    class Still(TupleBatch):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    found = {}
    for mode in ("running", "warm"):
        monitor = FisherTraceMonitor(
            every_n_train_steps=1, batch_norm=mode, probe=EVERYTHING, probe_size=37,
            probe_batch_size=9,
        )  # fmt: skip
        run(tmp_path / mode, monitor, case=checks.ModuleCase(Still))
        table = folder_of(tmp_path / mode).read("fisher_trace").to_pylist()
        found[mode] = [row["value"] for row in table if row["block"] == ""]
    assert len(set(found["warm"])) == 1
    assert max(found["running"]) > 1.05 * min(found["running"])


# Learning rates.


def test_jumps_of_the_learning_rate_become_events(tmp_path):
    class Steps(TupleBatch):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [
                {"scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 7], 0.1),
                 "interval": "step"}
            ]  # fmt: skip

    pair = ProbeMonitor(measure), ProbeMonitor(measure, name="other")
    run(tmp_path, *pair, case=checks.ModuleCase(Steps))
    events = folder_of(tmp_path).read("events").to_pylist()
    assert [(e["step"], e["kind"], e["block"]) for e in events] == [(4, "lr", ""), (7, "lr", "")]
    assert events[0]["reason"] == "learning rate 0.1 -> 0.01"


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200, eta_min=1e-6)


def linear(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 200)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=201)


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 20) / 20)


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.4)


def restarts(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50, eta_min=1e-4)


def warm_up_and_steps(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step + 1, 20) / 20 * 0.5 ** (step // 70)
    )


@pytest.mark.parametrize(
    ("schedule", "jumps"),
    [
        (cosine, []), (linear, []), (one_cycle, []), (warm_up, []), (exponential, []),
        (restarts, [50, 100, 150]), (warm_up_and_steps, [70, 140]),
    ],
)  # fmt: skip
def test_jumps_are_told_from_smooth_schedules(schedule, jumps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, watch, found = schedule(optimizer), LearningRateWatch(), []
    for step in range(200):
        if watch.look([optimizer]):
            found.append(step)
        optimizer.step()
        scheduler.step()
        if step == 60:  # as a resumed run
            watch, state = LearningRateWatch(), watch.state()
            watch.restore(state)
    assert found == jumps
