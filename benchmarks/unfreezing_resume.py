"""Is a run resumed after a thaw the run that was never interrupted?

Run by benchmarks/unfreezing.py. One process, batches in fixed order from a loader whose position is
saved, so that without a callback the resumed run ends bitwise equal. Checkpoints come from the
usual checkpoint callback: at the end of the epoch after a thaw, and two updates into the next.
Lightning takes a checkpoint by ``trainer.fit(ckpt_path=...)`` or by ``trainer.ckpt_path = ...``;
finetuning-scheduler looks only at the second, so both are shown for it.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from unfreezing_contestants import (
    SCHEDULER,
    Batches,
    callbacks_of,
    finding,
    largest_difference,
    plan_of,
    quiet,
    small,
    trainer,
    weights,
)

STEPS, EPOCHS = 4, 6
BOUNDARY, INSIDE = 2 * STEPS, 2 * STEPS + 2
"""Optimiser steps at which checkpoints are taken; blocks open at 4, 8 and 12."""


class Trainable(L.Callback):
    """Keeps which parameters require gradients in each batch, once other callbacks have run."""

    def __init__(self) -> None:
        self.seen: dict[int, set[str]] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        """By the number of updates before."""
        names = {n for n, p in pl_module.named_parameters() if p.requires_grad}
        self.seen[trainer.global_step] = names


ARGUMENT, ATTRIBUTE = "fit(ckpt_path=)", "trainer.ckpt_path="


def fit(
    contestant: str, folder: str, every: int, resume: Path | None = None, way: str = ARGUMENT
) -> tuple[L.LightningModule, Trainable]:
    """Train, saving every so many updates; the module and what was trainable when."""
    module, seen = small(contestant), Trainable()
    saves = {
        "dirpath": folder, "filename": "{step}", "save_top_k": -1, "every_n_train_steps": every,
        "save_on_train_epoch_end": None,
    }  # fmt: skip
    if every == STEPS:
        saves |= {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": True}
    callbacks = [*callbacks_of(contestant, plan_of(module, STEPS), saves), seen]
    fitter = trainer(folder, callbacks, EPOCHS)
    if way == ATTRIBUTE:
        fitter.ckpt_path = resume
    fitter.fit(module, Batches(STEPS, 8), ckpt_path=resume if way == ARGUMENT else None)
    return module, seen


def resumed(contestant: str, step: int, way: str) -> str:
    """Train through, then again from the checkpoint of ``step``; compare."""
    every = STEPS if step == BOUNDARY else step
    with quiet() as folder, quiet() as again:
        whole, seen = fit(contestant, folder, every)
        (checkpoint,) = Path(folder).rglob(f"step={step}.ckpt")
        rest, after = fit(contestant, again, every, checkpoint, way)
    if min(after.seen) != step:
        return f"went on at step {min(after.seen)} instead of {step}"
    wanted, found = seen.seen[step], after.seen[step]
    apart = largest_difference(weights(whole), weights(rest))
    return f"{_trained(wanted, found)}; end {apart:.1e}"


def _trained(wanted: set[str], found: set[str]) -> str:
    if wanted == found:
        return f"the same {len(wanted)} tensors trainable"
    refrozen, extra = len(wanted - found), len(found - wanted)
    return f"of {len(wanted)} trainable tensors {refrozen} frozen again, {extra} others trainable"


def findings(contestant: str, rounds: int) -> dict[str, str]:
    """What the table shows of a contestant."""
    ways = (ARGUMENT, ATTRIBUTE) if contestant == SCHEDULER else (ARGUMENT,)
    found = {}
    for where, step in {"at an epoch's end": BOUNDARY, "in mid-epoch": INSIDE}.items():
        texts = {way: finding(lambda s=step, w=way: resumed(contestant, s, w)) for way in ways}
        label = f"resumed {where}, after a thaw: trainable at once, largest difference at the end"
        several = "; ".join(f"`{way}`: {text}" for way, text in texts.items())
        found[label] = several if len(ways) > 1 else texts[ARGUMENT]
    return found
