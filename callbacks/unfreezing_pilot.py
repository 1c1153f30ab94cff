"""A pilot: the head alone is trained for a while, then all is as before."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import LambdaCallback

from firstlight.callbacks.frozen_blocks import FrozenBlocks
from firstlight.callbacks.probe_report import progress
from firstlight.callbacks.records import keyed_random_states, say
from firstlight.callbacks.unfreezing_signals import Signal
from firstlight.functional.unfreezing_interval import StabilityRule, UnfreezingInterval

_ACCELERATORS = {"cuda": "gpu"}


class HeadPilot:
    """Trains a copy with these blocks open alone, sampling a signal, and stops in time.

    Args:
        freeze: makes the frozen blocks of the copy.
        start: blocks that train.
        watch: makes the signal of the copy.
        steps: after which it stops.
    """

    def __init__(
        self, freeze: Callable[[Any], FrozenBlocks], start: list[str],
        watch: Callable[[Any], Signal], steps: int,
    ) -> None:  # fmt: skip
        self.freeze, self.start, self.watch, self.steps = freeze, start, watch, steps
        self.tick: Callable[[], None] = lambda: None
        self.signal: Signal
        self._frozen: FrozenBlocks

    @property
    def hooks(self) -> LambdaCallback:
        """What a trainer calls."""
        return LambdaCallback(
            on_train_start=self.on_train_start, on_train_batch_start=self.on_train_batch_start
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze, and gather the probe."""
        self._frozen = self.freeze(pl_module)
        self._frozen.apply(self.start)
        self.signal = self.watch(pl_module)
        self.signal.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Sample; stop when the last sample is taken."""
        self._frozen.keep_modes(self.start)
        self.signal.decide(trainer, pl_module, trainer.global_step)
        self.tick()
        trainer.should_stop |= trainer.global_step >= self.steps


def run_pilot(
    trainer: Any, pl_module: Any, pilot: HeadPilot, rule: StabilityRule, seed: int, who: str
) -> UnfreezingInterval:
    """Train the head of a copy as the run would, in a trainer of its own, and judge the signal.

    The copy, the loader's order and the random states are such that the run itself then starts as
    it would have started without.

    Args:
        trainer: of the run that is about to start.
        pl_module: of the run; it is not touched.
        pilot: what trains and samples.
        rule: judges the samples.
        seed: keys the random numbers of the pilot.
        who: named in messages.

    Raises:
        ValueError: on several processes, or where the pilot is too short to judge.
    """
    if trainer.world_size > 1:
        raise ValueError(
            f"{who}: interval='pilot' trains in one process, but there are {trainer.world_size}. "
            "Run it once on one device, and pass the interval that it prints; or use 'auto'"
        )
    samples = rule.longest // rule.every + 1
    if samples < rule.window + rule.quiet:
        raise ValueError(
            f"{who}: a pilot of {rule.longest} steps (half the run over the number of blocks, at "
            f"most) gives {samples} samples, one every {rule.every} steps, and the rule needs "
            f"{rule.window + rule.quiet}: train for longer, unfreeze in fewer blocks (blocks=), or "
            "give the interval in steps"
        )
    say(trainer, f"{who}: a pilot trains the head alone for {rule.longest} steps.")
    twin, device = copy.deepcopy(pl_module), pl_module.device
    batches = rule.longest * trainer.accumulate_grad_batches
    inner = type(trainer)(
        accelerator=_ACCELERATORS.get(device.type, device.type),
        devices=1 if device.index is None else [device.index],
        precision=trainer.precision, max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps, accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val, limit_val_batches=0, logger=False,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm, callbacks=[pilot.hooks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=trainer.default_root_dir,
    )  # fmt: skip
    with (
        keyed_random_states(seed, device=device),
        _serving(trainer.datamodule, inner),
        progress(trainer, "pilot", batches) as pilot.tick,
    ):
        inner.fit(twin, trainer.train_dataloader, val_dataloaders=[])
    return rule.offline([value for _, value in pilot.signal.samples])


@contextmanager
def _serving(datamodule: Any, trainer: Any) -> Iterator[None]:
    """Inside, a DataModule asks another trainer for the epoch, and is asked by it for the probe."""
    if datamodule is None:
        yield
        return
    before = datamodule.trainer
    datamodule.trainer = trainer
    trainer.datamodule = datamodule  # which has the probe; its loaders are those of the run
    try:
        yield
    finally:
        datamodule.trainer = before
