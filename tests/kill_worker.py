"""Train on digits; killed by SIGKILL at a moment given in batches. Run by killed_runs.py."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from firstlight.callbacks import (
    FisherTraceMonitor,
    GradualUnfreezing,
    LastLayerRetraining,
    PerClassMonitor,
    SharpnessMonitor,
    WeightNoise,
)
from firstlight.datamodules import DigitsDataModule
from firstlight.functional import StabilityRule, row_store
from firstlight.lightning_modules import ImageClassifier

DECAY = {"milestones": [1, 2], "gamma": 0.2}  # jumps that the table of events must hold
PROBE = {"every_n_train_steps": [[0, 4], [14, 6]], "probe_size": 12, "probe_batch_size": 4}
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
ADAMW = {"lr": 3e-3, "weight_decay": 0.05}
PLANNED = ("seed", "moving", "plan", "opened", "decision", "openings")
RULE = StabilityRule(every=1, window=1, quiet=1, tolerance=0.03)


def monitored() -> dict[str, Any]:
    """Three monitors, 27 updates in 3 epochs of 18 batches."""
    callbacks = [
        PerClassMonitor(["train", "val"]),
        FisherTraceMonitor(**PROBE),
        SharpnessMonitor(draws=2, **PROBE),
    ]
    return {"epochs": 3, "accumulate": 2, "callbacks": callbacks, "optimizer": ("AdamW", {})}


def fixed() -> dict[str, Any]:
    """A block opens every 13 updates, of 72 in 8 epochs; the average of the weights is kept too."""
    unfreezing = GradualUnfreezing(interval=13, lr_scale=0.5, warmup_steps=5)
    callbacks = [unfreezing, EMAWeightAveraging(decay=0.9)]
    return {"epochs": 8, "accumulate": 2, "callbacks": callbacks, "optimizer": ("SGD", SGD)}


def auto() -> dict[str, Any]:
    """The signal says when the first block opens, of 90 updates in 5 epochs."""
    unfreezing = GradualUnfreezing(rule=RULE, probe_size=12, order="random", seed=5)
    return {"epochs": 5, "accumulate": 1, "callbacks": [unfreezing], "optimizer": ("AdamW", ADAMW)}


def retraining() -> dict[str, Any]:
    """Features of 3 batches held out and 2 of validation, in a file, after each of 2 epochs."""
    row_store.SHARE = 0.0
    callbacks = [LastLayerRetraining(every_n_epochs=1, ridge="loo")]
    return {"epochs": 2, "accumulate": 2, "callbacks": callbacks, "optimizer": ("AdamW", {}),
            "data": {"holdout": 0.2, "eval_batch_size": 64}}  # fmt: skip


def noise() -> dict[str, Any]:
    """Noise in all matrices, less of it from step 8 on, none in the last 8 of 36 updates."""
    callbacks = [WeightNoise([[0, 0.5], [8, 0.2]], mode="all", noise_free=8,
                             returns="perturbed", batch_norm_examples=24)]  # fmt: skip
    return {"epochs": 4, "accumulate": 2, "callbacks": callbacks, "optimizer": ("SGD", SGD)}


MODES = {"monitors": monitored, "fixed": fixed, "auto": auto, "retraining": retraining,
         "noise": noise}  # fmt: skip


class KilledAt(L.Callback):
    """No handler runs, no file is closed: what SIGKILL leaves is what there is."""

    def __init__(self, batches: int, hook: str) -> None:
        self.left = batches
        if hook != "extraction":
            setattr(self, hook, self.count)
            return
        append = row_store.RowStore.append

        def append_and_count(store: row_store.RowStore, rows: torch.Tensor) -> None:
            append(store, rows)
            self.count()

        row_store.RowStore.append = append_and_count

    def count(self, *_: Any) -> None:
        """Once a batch."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def model_of(optimizer: str, arguments: dict[str, Any]) -> ImageClassifier:
    """Dropout and MixUp draw random numbers, the schedule has a state."""
    decay = {"class_path": "torch.optim.lr_scheduler.MultiStepLR", "init_args": DECAY}
    spec = {"class_path": f"torch.optim.{optimizer}", "init_args": arguments}
    return ImageClassifier(
        "resnet20_cifar", drop_rate=0.3, mixup_alpha=0.2, lr_scheduler=decay, seed=1,
        optimizer=spec if arguments else None,
    )  # fmt: skip


def main(folder: Path, kill_after: int, every: int, ranks: int, mode: str, hook: str) -> None:
    """Train in `folder`, from its last checkpoint where it has one; save the weights at the end."""
    torch.set_num_threads(1)
    L.seed_everything(1, verbose=False)
    run = MODES[mode]()
    data = DigitsDataModule(
        imbalance_factor=5, batch_size=32, img_size=8, seed=1, **run.get("data", {})
    )
    model = model_of(*run["optimizer"])
    saving = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=every, save_last=True)
    trainer = L.Trainer(
        max_epochs=run["epochs"], accelerator="cpu", devices=ranks,
        accumulate_grad_batches=run["accumulate"], strategy="ddp" if ranks > 1 else "auto",
        default_root_dir=folder, logger=False,
        callbacks=[*run["callbacks"], saving, KilledAt(kill_after, hook)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    if trainer.is_global_zero:
        state = {"model": model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
        callbacks = [c.state_dict() for c in trainer.callbacks if isinstance(c, GradualUnfreezing)]
        state["unfreezing"] = [{part: one[part] for part in PLANNED} for one in callbacks]
        torch.save(state, folder / "end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), *sys.argv[5:])
