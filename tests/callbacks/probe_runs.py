"""Runs with a probe that several test files share."""

import contract_checks as checks
import lightning.pytorch as L
import pytest
import torch
from contract_modules import MODULES, Images, TupleBatch
from contract_table import CALLBACKS

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


def fit_data(root, monitor, data, module=None):
    checks.seed_all(7)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=root, logger=False, callbacks=[monitor],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module or Plain(), data)
    return monitor
