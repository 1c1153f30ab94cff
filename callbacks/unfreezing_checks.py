"""What gradual unfreezing refuses, and where: arguments, trainers, optimisers, checkpoints."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from firstlight.callbacks.frozen_blocks import MODES
from firstlight.callbacks.records import say
from firstlight.functional.unfreezing_schedule import (
    Opening,
    check_order,
    check_schedule,
    check_time,
)

FOUND = ("auto", "pilot", "random")
"""Intervals that are not given but found."""

_OTHERS = ("BaseFinetuning", "FinetuningScheduler")


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse bad arguments of `GradualUnfreezing`.

    Raises:
        ValueError: naming the argument, and what it may be.
    """
    interval, start, blocks = given["interval"], given["start"], given["blocks"]
    if interval not in FOUND:
        try:
            check_time(interval, "interval")
        except ValueError as error:
            raise ValueError(f"{error}; or one of {', '.join(FOUND)}") from None
        if isinstance(interval, int) and interval < 1:
            raise ValueError(f"interval must be at least 1 step, not {interval}")
    check_order(given["order"])
    if given["schedule"] is not None:
        check_schedule(given["schedule"])
        if interval != "auto" or given["order"] != "top-down":
            raise ValueError("schedule takes the place of interval and order: leave them out")
    whole = isinstance(start, int) and not isinstance(start, bool) and start >= 0
    if not (whole or isinstance(start, str)):
        raise ValueError(
            f"start is a block's name, or a number of blocks below the head, not {start!r}"
        )
    if isinstance(blocks, str) and blocks not in ("coarse", "fine"):
        raise ValueError(
            f"blocks must be 'coarse', 'fine', or a mapping of names to patterns, not {blocks!r}"
        )
    if given["batch_norm"] not in MODES:
        raise ValueError(f"batch_norm must be one of {', '.join(MODES)}: {given['batch_norm']!r}")
    if not 0 < given["lr_scale"] < math.inf:
        raise ValueError(f"lr_scale must be above 0 and finite, not {given['lr_scale']!r}")
    if not isinstance(given["warmup_steps"], int) or given["warmup_steps"] < 0:
        raise ValueError(f"warmup_steps must be 0 or more, not {given['warmup_steps']!r}")
    if given["probe_size"] < 1:
        raise ValueError(f"probe_size must be at least 1, not {given['probe_size']}")


def refuse_others(trainer: Any, own: Any) -> None:
    """Refuse another callback that freezes; a second of the same kind Lightning refuses itself.

    Raises:
        ValueError: naming it.
    """
    for other in trainer.callbacks:
        kinds = {kind.__name__ for kind in type(other).__mro__}
        if other is not own and kinds & set(_OTHERS):
            raise ValueError(
                f"{type(own).__name__} and {type(other).__name__} would both freeze and thaw "
                "parameters of one module: remove one of them"
            )


def check_optimizers(
    trainer: Any, pl_module: Any, blocks: Mapping[str, Sequence[Tensor]], who: str
) -> None:
    """Look for blocks that no optimiser would move once they are open.

    Raises:
        ValueError: where an optimiser holds nothing of a block.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    held = {id(p) for group in groups for p in group["params"]}
    names = {id(p): name for name, p in pl_module.named_parameters()}
    missing = {b: [names[id(p)] for p in ps if id(p) not in held] for b, ps in blocks.items()}
    for block, ps in blocks.items():
        if len(missing[block]) == len(ps):
            raise ValueError(
                f"{who}: no optimiser holds any parameter of the block {block!r} "
                f"({missing[block][0]}, ...). Let configure_optimizers pass all parameters, "
                "whether they require gradients or not: frozen ones are not moved, and groups that "
                "are complete from the start need no change at a thaw"
            )
    left = [name for found in missing.values() for name in found]
    if left:
        say(
            trainer,
            f"{who}: {len(left)} parameters are in no optimiser and will never move: "
            f"{', '.join(left[:4])}{', ...' * (len(left) > 4)}.",
        )


def check_resumed(
    before: Mapping[str, Any], plan: Mapping[str, Any], openings: Sequence[Opening], who: str
) -> None:
    """Refuse a checkpoint that was made under another plan.

    Raises:
        ValueError: saying what differs.
    """
    kept = before.get("plan") or plan
    for part, value in plan.items():
        if (then := kept.get(part, value)) != value:
            raise ValueError(
                f"{who}: the checkpoint was made with other {part} ({then}) than now "
                f"({value}): resume with the arguments and the module of the first run"
            )
    dated = {block: int(step) for step, block, _ in before.get("openings", [])}
    now = {one.block: one.step for one in openings}
    if dated and dated != now and set(now) - set(before["opened"]):
        raise ValueError(
            f"{who}: by the checkpoint the blocks open at the steps {dated}, by the arguments now "
            f"at {now}: resume with the interval (or schedule) and the length of the first run, "
            "or give the interval in steps"
        )


def check_end(openings: Sequence[Opening], steps: int | None, who: str) -> None:
    """Refuse a timetable that goes on after the end of training.

    Raises:
        ValueError: naming the block, and the longest interval that fits.
    """
    late = [one for one in openings if steps is not None and one.step >= steps]
    if late and steps is not None:
        fits = steps // len(openings)
        raise ValueError(
            f"{who}: {late[-1].block!r} would open at step {late[-1].step}, but the run ends after "
            f"{steps}: "
            + (
                f"interval={fits} is the longest with which all {len(openings)} blocks open"
                if fits
                else f"it is too short for {len(openings)} blocks: train for longer, or use fewer"
            )
        )
