"""ProbeMonitor in a run: when it measures, beside others, on models that go wrong."""

import copy

import contract_checks as checks
import lightning.pytorch as L
import pytest
import torch
from contract_modules import MODULES, Manual, TupleBatch
from contract_table import CALLBACKS
from contract_table import loss_and_logits as measure
from lightning.pytorch.callbacks import ModelCheckpoint
from probe_runs import CASE, EVERYTHING, Plain, every_probe, folder_of, run

from firstlight.callbacks import FisherTraceMonitor, PerClassMonitor, ProbeMonitor, SharpnessMonitor

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
