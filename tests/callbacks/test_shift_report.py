"""Several test sets side by side: tables, scalars and print, against the predictions themselves."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import PerClassMonitor
from firstlight.functional.shifts import ALEXNET_ERRORS
from firstlight.runfolder import RunFolder

NAMES = ["ant", "bee", "cat", "dog"]


class Told(TensorDataset):
    """Inputs are the logits; sections as a `Shift` has them."""

    def __init__(self, logits, targets, sections=(), baseline=None):
        super().__init__(logits, targets)
        self.targets, self.classes = targets.tolist(), NAMES
        self.sections = list(sections)
        if sections:
            self.section_numbers = np.repeat(
                np.arange(len(sections)), len(targets) // len(sections)
            )
        self.baseline_errors = baseline


class Passes(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Identity()

    def forward(self, x):
        return self.layer(x)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch[0])


def told(seed, n=120, classes=4, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, 4, generator=generator)
    logits[range(n), targets] += 1.0
    return Told(logits, targets, **kwargs)


def accuracy(data, rows=slice(None)):
    logits, targets = (t[rows] for t in data.tensors)
    right = logits.argmax(1) == targets
    by_class = [float(right[targets == c].double().mean()) for c in range(4)]
    return float(right.double().mean()), np.array(by_class)


def run(tmp_path, sets, limit=None, **kwargs):
    logger = CSVLogger(tmp_path)
    trainer = Trainer(
        accelerator="cpu", logger=logger, callbacks=[PerClassMonitor(**kwargs)],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        limit_test_batches=limit,
    )  # fmt: skip
    trainer.test(
        Passes(), {k: DataLoader(d, batch_size=32) for k, d in sets.items()}, verbose=False
    )
    (file,) = tmp_path.rglob("run.json")
    return trainer, logger, RunFolder.open(file.parent)


@pytest.fixture
def sets():
    snow = ["snow/1", "snow/5", "fog/1", "fog/5"]
    return {"own": told(0), "c": told(1, sections=snow), "few": told(2, classes=2)}


def test_tables_are_those_of_the_predictions(sets, tmp_path):
    _, _, folder = run(tmp_path, sets)
    rows = folder.read("shifts").to_pylist()
    assert [(r["set"], r["section"]) for r in rows] == [
        ("test", ""), ("test/c", ""), *(("test/c", s) for s in sets["c"].sections),
        ("test/few", ""),
    ]  # fmt: skip
    own = accuracy(sets["own"])[1]
    for row in rows:
        data = sets[row["set"].split("/")[-1].replace("test", "own")]
        part = slice(None)
        if row["section"]:
            at = 30 * sets["c"].sections.index(row["section"])
            part = slice(at, at + 30)
        top1, by_class = accuracy(data, part)
        assert row["top1"] == pytest.approx(top1)
        assert row["macro"] == pytest.approx(np.nanmean(by_class))
        assert row["worst"] == pytest.approx(np.nanmin(by_class))
        assert row["worst_class"] == np.nanargmin(by_class)
        assert row["change"] == pytest.approx(np.nanmean(by_class - own))
    classes = folder.read("shift_classes")
    by_section = {}
    for row in classes.to_pylist():
        key = row["set"], bool(row["section"]), row["class"]
        n, correct = by_section.get(key, (0, 0))
        by_section[key] = n + row["n"], correct + row["correct"]
    for c in range(4):  # sections add up to the whole
        assert by_section["test/c", True, c] == by_section["test/c", False, c]
    assert len(classes) == 4 * len(rows)


def test_limited_batches_report_the_sections_that_they_reach(sets, tmp_path):
    _, _, folder = run(tmp_path, sets, limit=2)
    rows = [r for r in folder.read("shifts").to_pylist() if r["set"] == "test/c"]
    assert [(r["section"], r["n"]) for r in rows] == [
        ("", 64), ("snow/1", 30), ("snow/5", 30), ("fog/1", 4),
    ]  # fmt: skip


def test_scalars_are_few_and_reach_the_logger(sets, tmp_path):
    trainer, logger, _ = run(tmp_path, sets)
    keys = {k for k in trainer.callback_metrics if "/shift/" in k}
    assert keys == {"test/c/shift/change", "test/c/shift/worst_section", "test/few/shift/change"}
    assert keys <= set(logger.experiment.metrics_keys)
    lowest = min(accuracy(sets["c"], slice(at, at + 30))[0] for at in (0, 30, 60, 90))
    assert trainer.callback_metrics["test/c/shift/worst_section"] == pytest.approx(lowest)


def test_what_is_printed(sets, tmp_path, capsys):
    run(tmp_path, sets)
    text = capsys.readouterr().out
    assert text.count("worst classes") == 1  # of the own set
    assert "test and further sets, side by side" in text
    side = text[text.index("side by side") :]
    change = 100 * np.nanmean(accuracy(sets["c"])[1] - accuracy(sets["own"])[1])
    assert f"{change:+.1f}" in side
    losses = accuracy(sets["few"])[1] - accuracy(sets["own"])[1]
    worst = int(np.nanargmin(losses))
    if losses[worst] < 0:
        assert f"{NAMES[worst]} {100 * losses[worst]:+.1f}" in side
    snow = [accuracy(sets["c"], slice(at, at + 30))[0] * 100 for at in (0, 30)]
    (line,) = [line for line in side.splitlines() if line.startswith(" snow ")]
    assert [float(x) for x in line.split()[1:]] == pytest.approx([*snow, np.mean(snow)], abs=0.051)


def test_mce_where_there_is_a_baseline(tmp_path, capsys):
    sections = [f"{name}/{level}" for name in ALEXNET_ERRORS for level in range(1, 6)]
    c = told(3, n=75 * 8, sections=sections, baseline=ALEXNET_ERRORS)
    trainer, _, _ = run(tmp_path, {"own": told(0), "c": c})
    errors = [1 - accuracy(c, slice(40 * i, 40 * i + 40))[0] for i in range(15)]
    mce = np.mean(np.array(errors) / list(ALEXNET_ERRORS.values()))
    assert trainer.callback_metrics["test/c/shift/mce"] == pytest.approx(mce)
    assert f"mCE {100 * mce:.1f} %" in capsys.readouterr().out


def test_one_set_has_no_table_and_a_second_monitor_its_own_keys(sets, tmp_path):
    _, _, folder = run(tmp_path / "one", {"own": sets["own"]})
    assert len(folder.read("shifts")) == 0
    trainer, _, folder = run(tmp_path / "named", sets, name="again")
    assert "test/c/again/shift/change" in trainer.callback_metrics
    assert {r["set"] for r in folder.read("shifts").to_pylist()} == {
        "test/again", "test/c/again", "test/few/again",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path):
    """Of 359 images two ranks get 360: one is a repeat."""
    script, found = tmp_path / "main.py", []
    script.write_text("from firstlight.cli import main\n\nmain()\n")
    for devices in (1, 2):
        root = tmp_path / str(devices)
        parts = (
            f"--config=firstlight:{n}" for n in ("experiment/digits_lt", "test_sets/corrupted")
        )
        command = [
            sys.executable, str(script), "test", *parts,
            "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
            f"--trainer.devices={devices}", f"--trainer.default_root_dir={root}",
            *(["--trainer.strategy=ddp"] if devices == 2 else []),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.count("corrupted: accuracy % by section and severity") == 1
        (file,) = root.rglob("run.json")
        folder = RunFolder.open(file.parent)
        found.append([folder.read(t).to_pylist() for t in ("shifts", "shift_classes")])
    assert len(found[0][0]) == 2 + 30
    assert found[0] == found[1]
