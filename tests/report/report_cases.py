"""Runs, a study and names for the tests of reports, and what a reader reads of a page."""

import html
import json
import re
import shutil

import lightning.pytorch as L
import numpy as np
from simulated_runs import Cell, runs_of, with_effects, write_runs

from firstlight.callbacks import (
    FisherTraceMonitor,
    GradualUnfreezing,
    PerClassMonitor,
    PriorCorrection,
    SharpnessMonitor,
)
from firstlight.datamodules import DigitsDataModule
from firstlight.lightning_modules import ImageClassifier
from firstlight.runfolder import RunFolder

STRENGTHS = [0.0, 0.1, 0.3]
CELL = Cell(30, 40, 0.7, 0.10)
HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=http://example.org/x.png onerror=alert(1)>',
    "costs $5 or $\\frac{1}$",
    "bell\x07 and\nline",
    "猫",
    "a" * 200,
    "{{ 7 * 7 }}",
]


def arms(strengths=STRENGTHS):
    return [{"arm": f"jitter {s:g}", "factor": "jitter", "strength": s} for s in strengths]


def train(root):
    """A real run on long-tailed digits, a few seconds: fit and test in one folder."""
    L.seed_everything(0, verbose=False)
    data = DigitsDataModule(imbalance_factor=10, img_size=8, batch_size=64, num_workers=0)
    early = {"every_n_train_steps": 3, "probe_size": 32, "batch_norm": "warm"}
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, default_root_dir=root,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[PerClassMonitor(), FisherTraceMonitor(**early), SharpnessMonitor(**early),
                   GradualUnfreezing(interval=4), PriorCorrection()],
    )  # fmt: skip
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
    model = ImageClassifier("resnet20_cifar", optimizer=optimizer)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    return root / "firstlight"


def simulate(root):
    """Run folders of three arms of three."""
    generator = np.random.default_rng(0)
    before = CELL.chances(generator)
    after, _ = with_effects(CELL, before, 0.25, 3, generator)
    chances = [before + (after - before) * s / 0.3 for s in STRENGTHS]
    return write_runs(root, runs_of(CELL, chances, 3, generator), arms(), generator)


def described_study(root, simulated):
    """A study's folder, as ``firstlight study`` leaves it; one run has failed."""
    runs = []
    for number, path in enumerate(simulated):
        told, name = RunFolder.open(path).run, f"r{number}"
        shutil.copytree(path, root / "runs" / name)
        runs.append({"id": name, "arm": told["arm"], "strength": told["strength"],
                     "seed": told["seed"], "status": "finished", "folder": f"runs/{name}",
                     "error": None})  # fmt: skip
    failed = {"exit": -9, "lines": ["killed", "<b>by the kernel</b>"]}
    runs.append({"id": "r9", "arm": "jitter 0.3", "strength": 0.3, "seed": 9, "status": "failed",
                 "folder": "runs/r9", "error": failed})  # fmt: skip
    described = {"schema_version": 1, "name": "jitter", "status": "finished", "factor": "jitter",
                 "split": "test", "seeds": [0, 1, 2], "runs": runs, "comparison": None,
                 "arms": [{"arm": arm["arm"]} for arm in reversed(arms())],
                 "omissions": ["r9 failed, and is not in the comparison"]}  # fmt: skip
    (root / "study.json").write_text(json.dumps(described))
    return root


def change_study(study, **changes):
    file = study / "study.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def write_hostile(root):
    """Two runs whose classes, arms, events and configuration try to leave their place."""
    generator = np.random.default_rng(1)
    cell = Cell(len(HOSTILE), 20, 0.6, 0.2)
    told = [{"arm": f"</title>{one}", "factor": "<i>$x$", "strength": float(len(one))}
            for one in HOSTILE[:2]]  # fmt: skip
    runs = runs_of(cell, [cell.chances(generator) for _ in told], 3, generator)
    paths = write_runs(root, runs, told, generator)
    for path, row in zip(paths, runs.correct, strict=True):
        folder = RunFolder.open(path)
        folder.write("classes", {"class": range(cell.classes), "name": HOSTILE})
        correct = np.bincount(runs.targets, row, cell.classes).astype(int)
        folder.write("per_class", {"class": range(cell.classes), "n": 20, "correct": correct},
                     step=1000, split="test")  # fmt: skip
        reason = {"kind": ["thaw"], "block": HOSTILE[:1], "reason": HOSTILE[1:2]}
        folder.write("events", reason, step=3, split="thaw")
        columns = {"key": "val/loss", "value": 1.0}
        folder.write("scalars", columns, step=1000, split="val")
        (path / "config.yaml").write_text(f"a: {HOSTILE[1]}\n</pre><script>1</script>\n")
    return paths


def words(page):
    """What a reader reads of a page."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.S)
    return " ".join(html.unescape(text).replace("\xa0", " ").split())


def figures(page):
    return re.findall(r'<figure id="([^"]+)"', page.read_text(encoding="utf-8"))
