"""Which blocks are open after how many optimiser steps: timetables of gradual unfreezing."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from firstlight.functional.seeding import keyed_generator

Order = Literal["top-down", "bottom-up", "random"]
_ORDER, _INTERVAL = 1, 2  # first keys of the random numbers of a seed
_UNITS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?|%)\s*")


@dataclass(frozen=True)
class Opening:
    """A block is opened once so many optimiser steps are done.

    Attributes:
        step: ``global_step`` before the first update that moves the block.
        block: its name.
        reason: why then.
    """

    step: int
    block: str
    reason: str = ""


@dataclass(frozen=True)
class RunLength:
    """What turns epochs and shares of a run into optimiser steps; None where nobody knows.

    Attributes:
        steps: of the whole run.
        steps_per_epoch: of one epoch.
    """

    steps: int | None
    steps_per_epoch: int | None


def check_time(time: object, what: str) -> None:
    """Refuse what `steps_of` cannot read.

    Raises:
        ValueError: on anything but a number of steps, ``"2 epochs"`` or ``"10%"``.
    """
    whole = isinstance(time, int) and not isinstance(time, bool)
    if not (whole or (isinstance(time, str) and _UNITS.fullmatch(time))):
        raise ValueError(
            f"{what} is a number of optimiser steps, such as 200, or text such as '2 epochs' or "
            f"'10%' (of the run), not {time!r}"
        )


def steps_of(time: int | str, length: RunLength, what: str) -> int:
    """Turn ``200``, ``"2 epochs"`` or ``"10%"`` into optimiser steps, rounded to the nearest.

    Args:
        time: see above.
        length: of the run.
        what: named in errors.

    Raises:
        ValueError: when it cannot be read, or the run's length is needed and unknown.

    Example:
        >>> steps_of("2 epochs", RunLength(1000, 50), "interval")
        100
    """
    check_time(time, what)
    if isinstance(time, int):
        return time
    match = _UNITS.fullmatch(time)
    assert match is not None
    number, unit = float(match[1]), match[2]
    if unit.startswith("step"):
        return round(number)
    known = length.steps if unit == "%" else length.steps_per_epoch
    if known is None:
        raise ValueError(
            f"{what} {time!r} needs the length of the "
            f"{'run' if unit == '%' else 'epochs'}, which this trainer cannot tell (no limit, or a "
            "loader without length): give it in optimiser steps"
        )
    return round(number / 100 * known if unit == "%" else number * known)


def opening_order(blocks: Sequence[str], order: Order, seed: int = 0) -> list[str]:
    """Put blocks, given from the stem to the top, into the order in which they open.

    Args:
        blocks: names, the head left out.
        order: ``top-down`` (from the head to the stem), ``bottom-up``, or ``random``.
        seed: of the random order.
    """
    if order == "bottom-up":
        return list(blocks)
    if order == "top-down":
        return list(reversed(blocks))
    drawn = torch.randperm(len(blocks), generator=keyed_generator(seed, _ORDER))
    return [blocks[i] for i in drawn.tolist()]


def random_interval(longest: int, seed: int) -> int:
    """Draw an interval from 1 to ``longest``, each alike: a control of arXiv 2403.15210."""
    return int(torch.randint(1, longest + 1, (), generator=keyed_generator(seed, _INTERVAL)))


def regular_openings(
    order: Iterable[str], interval: int, first: int | None = None, reason: str = ""
) -> list[Opening]:
    """Open one block every ``interval`` steps.

    By Algorithm 1 of arXiv 2403.15210, which opens the next block before step i (counted from 1)
    where k divides i, ``min(L, (g + 1) // k)`` blocks are open after g steps: the j-th opens at
    ``j * interval - 1``.

    Args:
        order: blocks in the order of opening.
        interval: k, 1 or more.
        first: ``global_step`` of the first opening, by default ``interval - 1``.
        reason: of every opening.
    """
    start = interval - 1 if first is None else first
    return [Opening(start + j * interval, block, reason) for j, block in enumerate(order)]


def open_blocks(openings: Iterable[Opening], step: int) -> set[str]:
    """Return the blocks that are open for the update after ``step`` updates."""
    return {opening.block for opening in openings if opening.step <= step}


Schedule = Sequence[Sequence[Any]]
"""Pairs of a time and the block or blocks that open then: ``[[0, "layer4"], ["10%", ["stem"]]]``"""


def check_schedule(schedule: Any) -> None:
    """Refuse what `scheduled_openings` cannot read.

    Raises:
        ValueError: naming the entry.
    """
    if isinstance(schedule, str) or not isinstance(schedule, Sequence):
        raise ValueError(f"{_EXPECTED}, not {schedule!r}")
    for entry in schedule:
        if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
            raise ValueError(f"{_EXPECTED}; found {entry!r}")
        check_time(entry[0], "the time in a schedule")
        blocks = entry[1]
        named = isinstance(blocks, str) or (
            isinstance(blocks, Sequence) and blocks and all(isinstance(b, str) for b in blocks)
        )
        if not named:
            raise ValueError(f"{_EXPECTED}; found {blocks!r} for blocks")


_EXPECTED = (
    "schedule is a list of pairs of a time and the block or blocks that open then, such as "
    "[[0, layer4], [200, layer3], ['10%', [layer2, layer1, stem]]]"
)


def scheduled_openings(
    schedule: Schedule, blocks: Collection[str], length: RunLength
) -> list[Opening]:
    """Read an explicit schedule; a time is the number of optimiser steps done before.

    Args:
        schedule: see `Schedule`.
        blocks: those that may be named.
        length: of the run.

    Returns:
        Openings in the order of time. A block that no entry names never opens; an empty schedule
        leaves all as they are.

    Raises:
        ValueError: on an unknown block, one named twice, or a time that cannot be read.
    """
    check_schedule(schedule)
    openings: list[Opening] = []
    for time, named in schedule:
        step = steps_of(time, length, "the time in a schedule")
        for block in [named] if isinstance(named, str) else named:
            if block not in blocks:
                raise ValueError(
                    f"schedule names the block {block!r}; there is {', '.join(blocks)}"
                )
            if any(block == opening.block for opening in openings):
                raise ValueError(f"schedule opens the block {block!r} twice")
            openings.append(Opening(step, block, f"scheduled at {time}"))
    return sorted(openings, key=lambda opening: opening.step)


def check_order(order: object) -> None:
    """Refuse an unknown order.

    Raises:
        ValueError: naming those that exist.
    """
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {', '.join(get_args(Order))}, not {order!r}")
