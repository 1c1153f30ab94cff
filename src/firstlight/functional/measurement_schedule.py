"""When a run measures: dense at its start, sparse later, as a pure function of the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Steps = int | Sequence[Sequence[int]]
"""``10`` (every 10 steps from step 0), or pieces ``[[0, 10], [500, 500]]``."""


@dataclass(frozen=True)
class MeasurementSchedule:
    """Steps at which to measure; a step is an optimiser update, 0 the untrained model.

    Each piece (start, every) asks for the steps start, start + every, start + 2 every, ... that lie
    before the next piece's start. Nothing is due before the first piece, which need not start at 0.

    Attributes:
        pieces: (start, every) with increasing starts.

    Example:
        >>> schedule = MeasurementSchedule.parse([[0, 10], [500, 500]])
        >>> [step for step in range(2001) if schedule.is_due(step)][-5:]
        [490, 500, 1000, 1500, 2000]
        >>> schedule.count(10_000)
        70
    """

    pieces: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, steps: Steps) -> "MeasurementSchedule":
        """Read an interval, or a list of pieces ``[start, every]``.

        Raises:
            ValueError: on anything else, on a negative start, an interval below 1, or starts that
                do not increase.
        """
        pieces: Any = [[0, steps]] if _is_int(steps) else steps
        if not _is_list(pieces) or not pieces:
            raise ValueError(f"{_EXPECTED}, got {steps!r}")
        for piece in pieces:
            if not _is_list(piece) or len(piece) != 2 or not all(_is_int(n) for n in piece):
                raise ValueError(f"{_EXPECTED}, got {piece!r} in {steps!r}")
            if piece[0] < 0 or piece[1] < 1:
                raise ValueError(
                    f"a schedule starts at step 0 or later and measures every 1 or more steps, "
                    f"got {list(piece)} in {steps!r}"
                )
        starts = [piece[0] for piece in pieces]
        if any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"the starts of a schedule must increase, got {starts} in {steps!r}")
        return cls(tuple((start, every) for start, every in pieces))

    def latest(self, step: int) -> int:
        """Return the last scheduled step that is not after ``step``; -1 where there is none."""
        for start, every in reversed(self.pieces):
            if start <= step:
                return step - (step - start) % every
        return -1

    def is_due(self, step: int, seen: int | None = None) -> bool:
        """Say whether to measure now.

        Args:
            step: updates so far.
            seen: updates at the last look; None for one less than ``step``. With several
                optimisers stepped by hand, Lightning's count moves by more than one at a time: a
                measurement is due when a scheduled step lies in (seen, step].
        """
        return self.latest(step) > (step - 1 if seen is None else seen)

    def count(self, last: int) -> int:
        """Return how many scheduled steps lie in [0, last]."""
        ends = [*(start - 1 for start, _ in self.pieces[1:]), last]
        return sum(
            (min(end, last) - start) // every + 1
            for (start, every), end in zip(self.pieces, ends, strict=True)
            if start <= last
        )

    def __str__(self) -> str:
        parts = [
            f"every {every} steps" + (f" from step {start}" if start else "")
            for start, every in self.pieces
        ]
        return ", then ".join(part.replace("every 1 steps", "every step") for part in parts)


_EXPECTED = (
    "a schedule is a number of steps, such as 10, or a list of [start, every], such as "
    "[[0, 10], [500, 500]] (from step 0 every 10, from 500 every 500)"
)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
