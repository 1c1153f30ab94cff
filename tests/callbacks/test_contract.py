"""The contract of every callback (see the table), and proof that each check can fail."""

import contextlib
import subprocess
import sys

import contract_checks as checks
import pytest
import torch
from contract_modules import MODULES, REFUSED
from contract_table import CALLBACKS
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from firstlight.callbacks.batches import BatchError
from firstlight.runfolder import RunFolder

every_callback = pytest.mark.parametrize("name", CALLBACKS)
every_module = pytest.mark.parametrize("module", MODULES)


@every_callback
@every_module
def test_changes_nothing(name, module, tmp_path):
    build, neutral = CALLBACKS[name].build, CALLBACKS[name].neutral
    checks.check_unchanged(MODULES[module], tmp_path, lambda: build(**neutral))


@pytest.mark.parametrize(
    "broken",
    [
        checks.DrawsARandomNumber,
        checks.LeavesBatchNormInEval,
        checks.ForgetsItsHooks,
        checks.DrawsInAMeasurement,
        checks.LeavesWarmStatistics,
        checks.AddsToAGradient,
    ],
)
def test_the_check_of_changes_can_fail(broken, tmp_path):
    with pytest.raises(AssertionError):
        checks.check_unchanged(MODULES["tuple batch"], tmp_path, broken)


@every_callback
def test_bad_arguments_are_refused_in_the_constructor(name):
    for arguments, message in CALLBACKS[name].refused:
        with pytest.raises(ValueError, match=message):
            CALLBACKS[name].build(**arguments)


@every_callback
def test_other_tasks_are_refused_by_name(name, tmp_path):
    if CALLBACKS[name].any_task:
        checks.fit(REFUSED, tmp_path, [CALLBACKS[name].build()])
        return
    with pytest.raises(BatchError, match=rf"{name} is for classification.*adapter"):
        checks.fit(REFUSED, tmp_path, [CALLBACKS[name].build()])


@every_callback
@every_module
def test_records_reach_metrics_loggers_and_run_folder(name, module, tmp_path):
    case, callback = MODULES[module], CALLBACKS[name].build()
    logger = CSVLogger(tmp_path)
    trainer, _ = checks.fit(case, tmp_path, [callback], logger=logger)
    for key in CALLBACKS[name].keys:
        assert key in trainer.callback_metrics
        assert key in logger.experiment.metrics_keys
    (description,) = tmp_path.rglob("run.json")
    folder = RunFolder.open(description.parent)
    assert folder.run["status"] == "finished"
    stride = 2 if module == "manual optimisation" else 1  # two optimisers, both counted
    updates = -(-5 // case.accumulate) * stride
    steps = sorted(set(folder.read(CALLBACKS[name].table)["step"].to_pylist()))
    every = list(range(0, 2 * updates + 1, stride))
    assert steps == CALLBACKS[name].steps([updates, 2 * updates], every, case.blocks)


@every_callback
def test_two_instances_and_safe_checkpoints(name, tmp_path):
    build, other = CALLBACKS[name].build, CALLBACKS[name].other
    saving = ModelCheckpoint(tmp_path, save_last=True)
    together = [build(), saving] if other is None else [build(), build(**other), saving]
    checks.fit(MODULES["tuple batch"], tmp_path, together, enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    kept = [key for key in saved["callbacks"] if key.startswith(name)]
    assert len(kept) == len(together) - 1
    if other is None:
        with pytest.raises(RuntimeError, match=f"more than one stateful callback of type `{name}`"):
            checks.fit(MODULES["tuple batch"], tmp_path, [build(), build()])


@pytest.mark.parametrize("name", [n for n, case in CALLBACKS.items() if case.kind != "trainer"])
def test_resuming_in_a_foreign_run_adds_no_difference(name, tmp_path):
    """A plain loader resumes as it can; with the callback it must resume to the same weights."""
    ends = []
    for label, make in {"without": list, "with": lambda: [CALLBACKS[name].build()]}.items():
        root = tmp_path / label
        saving = ModelCheckpoint(root, save_last=True)
        checks.fit(
            MODULES["tuple batch"], root, [*make(), saving], epochs=1, enable_checkpointing=True
        )
        checks.seed_all(7)
        module = MODULES["tuple batch"].build()
        trainer = MODULES["tuple batch"].trainer(
            max_epochs=3, accelerator="cpu", default_root_dir=root, logger=False,
            callbacks=[*make(), ModelCheckpoint(root)], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        case = MODULES["tuple batch"]
        trainer.fit(module, case.loader(shuffle=True), case.loader(), ckpt_path=root / "last.ckpt")
        ends.append(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(e.values() for e in ends), strict=True))
    folders = list((tmp_path / "with").glob("firstlight*"))
    assert len(folders) == 1, "the resumed run goes on in the folder of the first"
    steps = RunFolder.open(folders[0]).read(CALLBACKS[name].table)["step"].to_pylist()
    assert sorted(set(steps)) == CALLBACKS[name].steps([5, 10, 15], list(range(16)), 1)
    assert len(steps) == len(set(steps)) * steps.count(steps[-1]), "nothing is written twice"


@every_callback
@pytest.mark.parametrize("stop", [5, 10])
def test_resumed_at_an_epochs_end_equals_uninterrupted(name, stop, tmp_path):
    """Of a module whose randomness is keyed, on a loader without any."""
    case, build = MODULES["ImageClassifier"], CALLBACKS[name].build
    ends = {}
    for label, stops in {"whole": (None,), "resumed": (stop, None)}.items():
        root = tmp_path / label
        for at in stops:
            checks.seed_all(7)
            module, last = case.build(), root / "last.ckpt"
            saving = ModelCheckpoint(root, save_last=True, every_n_train_steps=1)
            trainer = case.trainer(
                max_epochs=3, accelerator="cpu", default_root_dir=root, logger=False,
                callbacks=[build(), saving, checks.StopsAt(at)], enable_progress_bar=False,
                enable_model_summary=False,
            )  # fmt: skip
            with contextlib.suppress(checks.Stopped):
                trainer.fit(
                    module, case.loader(), case.loader(),
                    ckpt_path=last if last.exists() else None,
                )  # fmt: skip
        folder = RunFolder.open(root / "firstlight")
        rows = folder.read(CALLBACKS[name].table).to_pylist()
        ends[label] = module.state_dict(), [{**row, "seconds": None} for row in rows]
    whole, resumed = ends["whole"], ends["resumed"]
    assert all(torch.equal(whole[0][key], resumed[0][key]) for key in whole[0])
    assert str(whole[1]) == str(resumed[1]) and whole[1]


@every_callback
def test_fast_dev_run_writes_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checks.fit(MODULES["tuple batch"], tmp_path, [CALLBACKS[name].build()], fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


@every_callback
def test_what_is_measured_is_said_at_the_start(name, tmp_path, capsys):
    checks.fit(MODULES["tuple batch"], tmp_path, [CALLBACKS[name].build()])
    printed = capsys.readouterr().out
    assert name in printed.splitlines()[0]
    assert "pass" in printed.splitlines()[0]


def test_importing_callbacks_is_light():
    """Nothing heavy beside what Lightning itself loads (torchmetrics imports matplotlib)."""
    code = (
        "import sys, lightning.pytorch; before = set(sys.modules)\n"
        "import firstlight.callbacks; print(*set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "firstlight.callbacks" in run.stdout
    assert not {"timm", "sklearn", "matplotlib", "jsonargparse"} & set(run.stdout.split())
