"""Where a run stands: how long it will be, whether it ends now, when its learning rate jumped."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from firstlight.functional.loaders import named_sets
from firstlight.functional.unfreezing_schedule import RunLength

AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")
"""Lightning's callbacks that put other weights into the module when training ends."""


def planned_steps(trainer: Any) -> int | None:
    """How many steps a fit will take as ``global_step`` counts them; None where nobody knows."""
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        return None
    estimate = trainer.estimated_stepping_batches
    if not math.isfinite(estimate) or estimate < 0:
        return None
    by_hand = not trainer.lightning_module.automatic_optimization
    several: int = len(trainer.optimizers) if by_hand and trainer.max_steps == -1 else 1
    return int(estimate) * max(int(several), 1)


def run_length(trainer: Any) -> RunLength:
    """How long the run and its epochs are, in the steps that ``global_step`` counts."""
    batches = trainer.num_training_batches
    if not isinstance(batches, int):  # a loader without length
        return RunLength(planned_steps(trainer), None)
    updates = -(-batches // trainer.accumulate_grad_batches)
    if not trainer.lightning_module.automatic_optimization:
        updates = batches * max(len(trainer.optimizers), 1)
    return RunLength(planned_steps(trainer), updates)


def examples_per_step(trainer: Any) -> int | None:
    """How many examples a training step sees on all ranks; None where the loader does not tell."""
    loaders = named_sets("train", trainer.train_dataloader)
    sizes = [_batch_size(loader) for _, loader in loaders]
    if not sizes or any(size is None for size in sizes):
        return None
    total = sum(size for size in sizes if size is not None)
    several = 1
    if not trainer.lightning_module.automatic_optimization:
        several = max(len(trainer.optimizers), 1)  # each counts a step of its own
    per_update = total * trainer.world_size * trainer.accumulate_grad_batches
    return max(int(per_update) // several, 1)


def _batch_size(loader: Any) -> int | None:
    size: Any = getattr(loader, "batch_size", None)
    if size is None:
        size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return int(size) if isinstance(size, int) else None


def ends_with_this_epoch(trainer: Any) -> bool:
    """Say, at the end of a training epoch, whether it was the last."""
    limit = trainer.max_epochs
    return bool(
        trainer.should_stop
        or (trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps)
        or (limit not in (None, -1) and trainer.current_epoch + 1 >= limit)
    )


def averages_weights(trainer: Any) -> bool:
    """Say whether a callback of either package swaps averaged weights in when training ends."""
    return any(_is_one_of(AVERAGING, callback) for callback in trainer.callbacks)


def put_last(trainer: Any, own: Any) -> None:
    """Put a callback behind the others, before those that save checkpoints; call it in ``setup``.

    The list is made anew, so that a hook which is going through it now misses nobody.
    """
    others = [callback for callback in trainer.callbacks if callback is not own]
    saving = [_is_one_of(("Checkpoint",), callback) for callback in others]
    trainer.callbacks = [
        *(c for c, saves in zip(others, saving, strict=True) if not saves),
        own,
        *(c for c, saves in zip(others, saving, strict=True) if saves),
    ]


def _is_one_of(names: Sequence[str], callback: Any) -> bool:
    return any(kind.__name__ in names for kind in type(callback).__mro__)


Rates = dict[str, list[float]]
"""Learning rate, and factor of its last change, by parameter group."""


class LearningRateWatch:
    """Tells jumps of the learning rate from the course of a smooth schedule.

    A rate has jumped when it changes between consecutive updates by a factor of at least 2, and of
    at least twice the factor by which it changed one update before. So a step decay, a restart and
    a warm-up by epochs are jumps; the single updates of a warm-up, a cosine or a linear decay are
    not, however fast they run at their ends. Changes from or to 0, and that of the first update
    that is seen, are none.
    """

    def __init__(self) -> None:
        self._last: Rates = {}

    def look(self, optimizers: Sequence[Any]) -> dict[str, str] | None:
        """Return what jumped since the last look as ``block`` and ``reason``; None for nothing.

        Args:
            optimizers: the trainer's; asked once before each update.
        """
        groups = {
            f"{number}/{place}": (str(group.get("name", "")), float(group["lr"]))
            for number, optimizer in enumerate(optimizers)
            for place, group in enumerate(optimizer.param_groups)
        }
        jumps = {}
        for key, (name, rate) in groups.items():
            before, trend = self._last.get(key, [0.0, math.inf])
            factor = max(rate / before, before / rate) if rate > 0 and before > 0 else math.inf
            if 2 <= factor < math.inf and factor >= 2 * trend:
                jumps[key] = (name, f"{before:.4g} -> {rate:.4g}")
            self._last[key] = [rate, factor]
        if not jumps:
            return None
        names = [] if len(jumps) == len(groups) else [name for name, _ in jumps.values() if name]
        reasons = list(dict.fromkeys(reason for _, reason in jumps.values()))
        shown = ", ".join(reasons[:3]) + (", ..." if len(reasons) > 3 else "")
        return {"block": ", ".join(names), "reason": f"learning rate {shown}"}

    def state(self) -> Rates:
        """What a checkpoint keeps."""
        return {key: list(value) for key, value in self._last.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from `state`."""
        self._last = {key: list(value) for key, value in state.items()}
