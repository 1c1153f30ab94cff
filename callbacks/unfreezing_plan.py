"""The plan of a run with gradual unfreezing: what trains from the start, what opens when."""

from collections.abc import Sequence
from dataclasses import replace

from firstlight.functional.unfreezing_interval import StabilityRule
from firstlight.functional.unfreezing_schedule import (
    Opening,
    RunLength,
    regular_openings,
    steps_of,
)

HEAD = "head"
SAMPLES = 20
"""What a short run makes room for while the signal is watched."""


def starting_blocks(blocks: Sequence[str], start: int | str, who: str) -> list[str]:
    """Return the blocks that train from the start: from one of them up.

    Args:
        blocks: from the stem to the head, and what is outside the backbone.
        start: a block's name, or how many blocks below the head.
        who: named in errors.

    Raises:
        ValueError: when there is no such block, or nothing is left to train.
    """
    head = blocks.index(HEAD) if HEAD in blocks else len(blocks) - 1
    if isinstance(start, str):
        if start not in blocks:
            raise ValueError(f"{who}: start={start!r} is no block; there is {', '.join(blocks)}")
        return list(blocks[min(blocks.index(start), head) :])
    if start > head:
        raise ValueError(
            f"{who}: start={start} blocks below the head, but there are {head}: "
            f"{', '.join(blocks[:head])}"
        )
    return list(blocks[head - start :])


def openings_every(
    order: Sequence[str], interval: int | str, length: RunLength, reason: str
) -> list[Opening]:
    """Open one block every interval; see `regular_openings`.

    An interval in steps follows the published loop, whose j-th opening comes before step j k; one
    in epochs or shares of the run opens after them.

    Raises:
        ValueError: when it is no time, or less than a step.
    """
    steps = steps_of(interval, length, "interval")
    if steps < 1:
        raise ValueError(f"interval={interval!r} is {steps} steps; it must be 1 or more")
    first = steps - 1 if isinstance(interval, int) else steps
    return regular_openings(order, steps, first, reason)


def bounded(rule: StabilityRule, count: int, length: RunLength) -> StabilityRule:
    """Bound the interval that a rule may find, so that all blocks train for half the run or more.

    Where that shortens it, samples come as often as it takes for `SAMPLES` of them to fit in, for
    with fewer than eight nothing can settle. This is our own; the paper samples every 10 steps.

    Args:
        rule: see above.
        count: of blocks to open.
        length: of the run.
    """
    if length.steps is None or not count or rule.longest <= (most := length.steps // 2 // count):
        return rule
    return replace(rule, longest=max(most, 1), every=max(min(rule.every, most // SAMPLES), 1))


def timetable(
    start: Sequence[str], openings: Sequence[Opening], order: Sequence[str], length: RunLength,
    numbers: dict[str, int], waiting: bool,
) -> str:  # fmt: skip
    """The plan as a sentence.

    Args:
        start: blocks that train from the start.
        openings: what opens when.
        order: blocks in the order of opening.
        length: of the run.
        numbers: how many each block holds.
        waiting: whether the openings are still to be found.
    """
    total = sum(numbers.values())
    here = sum(numbers[block] for block in start)
    lowest = min((list(numbers).index(block) for block in start), default=0)
    text = f"{', '.join(start)} train{'s' * (len(start) == 1)} from the start ({here:,} of "
    text += f"{total:,} parameters"
    text += f", no backward pass below {list(numbers)[lowest]})" if lowest else ")"
    if openings:
        dated = ", ".join(f"{one.block} from step {one.step}" for one in openings)
        text += f"; then {dated}"
    elif waiting:
        text += f"; then, once the signal has settled, {', '.join(order)}"
    never = set() if waiting else set(order) - {one.block for one in openings}
    if never:
        text += f"; never {', '.join(block for block in order if block in never)}"
    return text + (f"; the run has {length.steps} steps." if length.steps else ".")
