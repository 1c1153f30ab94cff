"""How strong a run's weight noise is at which step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from firstlight.functional.unfreezing_schedule import RunLength, check_time, steps_of

Sigma = float | Sequence[Sequence[Any]]
"""``0.1`` throughout, or from times on: ``[[0, 0.3], ["2 epochs", 0.1], ["50%", 0.03]]``"""


@dataclass(frozen=True)
class NoiseSchedule:
    """Sigma as a step function of optimiser steps; 0 before the first piece.

    Attributes:
        pieces: (step from which on, sigma), in the order of steps.

    Example:
        >>> NoiseSchedule.of([[0, 0.3], ["50%", 0.1]], "10%", RunLength(100, 20))
        NoiseSchedule(pieces=((0, 0.3), (50, 0.1), (90, 0.0)))
    """

    pieces: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, sigma: Sigma, noise_free: int | str, length: RunLength) -> "NoiseSchedule":
        """Read what a user gave.

        Args:
            sigma: see `Sigma`.
            noise_free: how long before the run's end the noise is off: a number of steps,
                ``"2 epochs"`` or ``"10%"`` of the run; 0 for never.
            length: of the run.

        Raises:
            ValueError: as `check_noise`; where times do not increase; where the run's length is
                needed and unknown.
        """
        check_noise(sigma, noise_free)
        given: Any = sigma if isinstance(sigma, list | tuple) else [[0, sigma]]
        pieces = [(steps_of(time, length, _TIME), float(value)) for time, value in given]
        starts = [start for start, _ in pieces]
        if any(a >= b for a, b in pairwise(starts)):
            raise ValueError(
                f"the times of sigma must increase, got the steps {starts} from {sigma!r}"
            )
        if noise_free and length.steps is None:
            raise ValueError(
                f"noise_free={noise_free!r} counts from the end of the run, which this trainer "
                "cannot tell: set max_epochs or max_steps, or noise_free=0"
            )
        free = steps_of(noise_free, length, "noise_free")
        if free and length.steps is not None:
            end = max(length.steps - free, 0)
            pieces = [*(piece for piece in pieces if piece[0] < end), (end, 0.0)]
        return cls(tuple(pieces))

    def at(self, step: int) -> float:
        """Return sigma of the update after ``step`` updates."""
        return next((value for start, value in reversed(self.pieces) if start <= step), 0.0)

    @property
    def largest(self) -> float:
        """The largest sigma of the run."""
        return max(value for _, value in self.pieces)

    def __str__(self) -> str:
        first, *rest = self.pieces
        text = f"{first[1]:g}" + (f" from step {first[0]}" if first[0] else "")
        return text + "".join(
            f", {value:g} from step {start}" if value else f", off from step {start}"
            for start, value in rest
        )


_TIME = "the time in sigma"


def check_noise(sigma: Any, noise_free: Any) -> None:
    """Refuse what `NoiseSchedule.of` cannot read, as far as it shows without the run's length.

    Raises:
        ValueError: on a sigma that is negative or not finite, an empty list, an entry that is no
            pair, or a time that cannot be read.
    """
    check_time(noise_free, "noise_free")
    if isinstance(noise_free, int) and noise_free < 0:
        raise ValueError(f"noise_free must be 0 or more, not {noise_free}")
    pieces = sigma if isinstance(sigma, list | tuple) else [[0, sigma]]
    if not pieces:
        raise ValueError(_EXPECTED.format(sigma))
    for piece in pieces:
        if not isinstance(piece, list | tuple) or len(piece) != 2:
            raise ValueError(_EXPECTED.format(piece))
        check_time(piece[0], _TIME)
        value = piece[1]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ValueError(f"sigma must be finite and 0 or more, not {value!r}")


_EXPECTED = (
    "sigma is a number, such as 0.1, or a list of [time, sigma], such as [[0, 0.3], ['50%', 0.1]]; "
    "found {!r}"
)
