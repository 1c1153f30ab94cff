"""Two gloo processes under DDP: do the parameters stay equal while blocks open?

Run by benchmarks/unfreezing.py. GroupNorm instead of BatchNorm, and batches without shuffling, so
that two processes with 8 images each are one process with 16: whatever then differs, a gradient
that was not shared made it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from unfreezing_contestants import (
    CLASSES,
    NONE,
    SCHEDULER,
    callbacks_of,
    first_line,
    largest_difference,
    plan_of,
    quiet,
    small,
    trainer,
    weights,
)

STEPS, EPOCHS, BATCH = 4, 5, 8
TIMEOUT = 180
PLAIN, UNUSED = "ddp", "ddp_find_unused_parameters_true"
RESTORES = "restore_best=True"


class Recorder(L.Callback):
    """Keeps the parameters after every update, and which of them required gradients."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.trainable: list[list[str]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """After the update."""
        self.seen.append(weights(pl_module))
        self.trainable.append([n for n, p in pl_module.named_parameters() if p.requires_grad])


def trained(contestant: str, batch: int, folder: str, option: str = "", **how: Any) -> Recorder:
    """Train for five epochs of four updates; a block opens at each of the epochs 1, 2, 3.

    Each process takes its own half of every batch: Lightning's own sampler would shuffle.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2 * BATCH * STEPS, 3, 8, 8, generator=generator)
    targets = torch.randint(CLASSES, (len(images),), generator=generator)
    share = slice(int(os.environ.get("RANK", 0)), None, how.get("devices", 1))
    data = TensorDataset(images[share], targets[share])
    module, record = small(contestant), Recorder()
    restores: dict[str, Any] = {}
    if option == RESTORES:
        best = {"monitor": "val_loss", "save_on_train_epoch_end": False}
        restores = {"restore_best": True, "checkpoint": best}
    callbacks = [*callbacks_of(contestant, plan_of(module, STEPS), **restores), record]
    loader = DataLoader(data, batch)
    validation = loader if option == RESTORES else None
    how["use_distributed_sampler"] = False
    trainer(folder, callbacks, EPOCHS, **how).fit(module, loader, validation)
    return record


def thaws(sets: Sequence[list[str]]) -> list[int]:
    """Indices of the first update after each thaw."""
    return [i for i in range(1, len(sets)) if sets[i] != sets[i - 1]]


def between_ranks(contestant: str, strategy: str, option: str = "") -> dict[str, str]:
    """Start two processes, and compare what they kept."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        arguments = ["--nproc_per_node=2", __file__, contestant, strategy, folder, option]
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()  # which ends the two as well
            process.communicate()
            return {"ranks": f"no result in {TIMEOUT} s"}
        kept = [Path(folder) / f"rank{rank}.pt" for rank in (0, 1)]
        if not all(path.exists() for path in kept):
            return {"ranks": f"no result, exit status {process.returncode}: {errors[-140:]}"}
        first, second = (torch.load(path, weights_only=True) for path in kept)
    for side in (first, second):
        if "raised" in side:
            return {"ranks": side["raised"]}
    apart = [largest_difference(a, b) for a, b in zip(first["seen"], second["seen"], strict=True)]
    starts = thaws(first["trainable"])
    phases = zip(starts, [*starts[1:], len(apart)], strict=False)
    after = [f"{max(apart[begin:end]):.1e}" for begin, end in phases]
    text = f"after thaw {', '.join(after)}; " if after else ""
    found = {"ranks": f"{text}end {apart[-1]:.1e}"}
    if not option:
        with quiet() as where:
            alone = trained(contestant, 2 * BATCH, where)
        joined = [largest_difference(side["seen"][-1], alone.seen[-1]) for side in (first, second)]
        found["joined"] = f"{max(joined):.1e}"
    return found


def findings(contestant: str, rounds: int) -> dict[str, str]:
    """What the table shows of a contestant."""
    plain = between_ranks(contestant, PLAIN)
    rows = {
        "ranks, `ddp`: largest difference of parameters": plain["ranks"],
        "ranks, `ddp`, to one process with the joined batch: at the end": plain.get("joined", ""),
    }
    unused = "" if contestant == NONE else between_ranks(contestant, UNUSED)["ranks"]
    if contestant == SCHEDULER:
        best = between_ranks(contestant, PLAIN, RESTORES)["ranks"]
        rows["ranks, `ddp`: largest difference of parameters"] += f" ({RESTORES}: {best})"
    rows[f"ranks, `{UNUSED}`: largest difference"] = unused
    return rows


def main(contestant: str, strategy: str, folder: str, option: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    try:
        with quiet():
            record = trained(contestant, BATCH, folder, option, strategy=strategy, devices=2)
        kept = {"seen": record.seen, "trainable": record.trainable}
    except Exception as error:  # whatever a contestant raises is its result
        kept = {"raised": first_line(error)}
    torch.save(kept, Path(folder) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
