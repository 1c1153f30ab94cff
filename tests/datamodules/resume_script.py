"""Two processes: train, save at every step, resume each checkpoint, compare; ranks disjoint.

Arguments: a folder to work in, and what to train on instead of digits: a folder of ImageNet's
layout, or the ``local:`` URL of a pack.
"""

import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from firstlight.datamodules import DigitsDataModule, ImageNetDataModule, StreamedDataModule


class Network(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Linear(64, 16)
        self.net = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(16, 10))

    def on_train_start(self):
        # Workers are forked next. While gloo's thread frees what a collective left, one may never
        # start: CPython 3.11 waits in the child for a lock that this thread held in the parent.
        if torch.distributed.is_initialized():
            time.sleep(0.3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0][:, :1]), batch[1])

    def validation_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0][:, :1]), batch[1])
        self.log("val", loss, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def digits() -> DigitsDataModule:
    return DigitsDataModule(channels=1, batch_size=128, seed=3, erasing=0.5)


def fit(folder: Path, checkpoint=None, callbacks=(), make_data=digits, **trainer_arguments):
    pl.seed_everything(0)
    model, datamodule = Network(), make_data()
    torch.rand(17 if checkpoint else 3)  # a resumed run does not find the random state it left
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **trainer_arguments,
    )
    trainer.fit(model, datamodule, ckpt_path=checkpoint, weights_only=True)
    return model, trainer


def saver(folder: Path, **when) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def main(folder: Path, root: str | None = None) -> None:
    def images() -> ImageNetDataModule | StreamedDataModule:
        how = {"img_size": 8, "batch_size": 4, "num_workers": 2, "seed": 3}
        if root.startswith("local:"):
            return StreamedDataModule(root, str(folder / "cache"), "20KB", **how)
        return ImageNetDataModule(root, val=0, holdout=0, **how)

    many = {"max_epochs": 2, "devices": 2, "strategy": "ddp"}
    many["make_data"] = images if root else digits
    if root:
        many["limit_val_batches"] = 0  # see on_train_start
    every_step = saver(folder / "steps", every_n_train_steps=1)
    whole, trainer = fit(folder, callbacks=[every_step], **many)
    loader = trainer.datamodule.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        mine = torch.tensor(list(loader.sampler))
        both = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(both, mine)
        orders.append(torch.cat(both))
        shared = set(both[0].tolist()) & set(both[1].tolist())
        repeats = len(mine) * 2 - len(loader.dataset)
        assert len(shared) <= repeats <= 1, f"ranks share {len(shared)} examples"
        assert set(orders[-1].tolist()) == set(range(len(loader.dataset)))
    assert not torch.equal(orders[0], orders[1])
    checkpoints = sorted((folder / "steps").glob("*.ckpt"))
    assert len(checkpoints) == trainer.global_step, (len(checkpoints), trainer.global_step)
    for checkpoint in checkpoints[::2] + checkpoints[-1:]:
        resumed, _ = fit(folder, checkpoint, **many)
        assert same(whole, resumed), f"{checkpoint.name} resumed to other weights"
    if trainer.global_rank == 0:
        print("resumed", len(checkpoints[::2]) + 1, "checkpoints bitwise")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    torch.distributed.destroy_process_group()  # gloo's threads may abort a process that just ends
