"""Train on digits; killed by SIGKILL at a moment given in batches. Run by test_kill_and_resume."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from firstlight.callbacks import FisherTraceMonitor, PerClassMonitor, SharpnessMonitor
from firstlight.datamodules import DigitsDataModule
from firstlight.lightning_modules import ImageClassifier

EPOCHS = 3
DECAY = {"milestones": [1, 2], "gamma": 0.2}  # jumps that the table of events must hold
PROBE = {"every_n_train_steps": [[0, 4], [14, 6]], "probe_size": 12, "probe_batch_size": 4}


class KilledAt(L.Callback):
    """No handler runs, no file is closed: what SIGKILL leaves is what there is."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, kill_after: int, every: int, ranks: int) -> None:
    """Train in `folder`, from its last checkpoint where it has one; save the weights at the end."""
    torch.set_num_threads(1)
    L.seed_everything(1, verbose=False)
    data = DigitsDataModule(imbalance_factor=5, batch_size=32, img_size=8, seed=1)
    decay = {"class_path": "torch.optim.lr_scheduler.MultiStepLR", "init_args": DECAY}
    model = ImageClassifier(
        "resnet20_cifar", drop_rate=0.3, mixup_alpha=0.2, lr_scheduler=decay, seed=1,
    )  # fmt: skip
    saving = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=every, save_last=True)
    monitors = [
        PerClassMonitor(["train", "val"]),
        FisherTraceMonitor(**PROBE),
        SharpnessMonitor(draws=2, **PROBE),
    ]
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=ranks, accumulate_grad_batches=2,
        strategy="ddp" if ranks > 1 else "auto", default_root_dir=folder, logger=False,
        callbacks=[*monitors, saving, KilledAt(kill_after)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    if trainer.is_global_zero:
        state = {"model": model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
        torch.save(state, folder / "end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
