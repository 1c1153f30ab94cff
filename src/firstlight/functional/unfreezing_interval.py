"""When a signal of head-only training has settled, and the unfreezing interval that follows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

EARLIEST = 8
"""Number of the first sample after which the online rule may fire."""


@dataclass(frozen=True)
class UnfreezingInterval:
    """How many optimiser steps lie between two thaws, and why.

    Attributes:
        steps: the interval k.
        index: number of the sample that it rests on, counted from 0.
        settled: whether the signal passed its transient and settled; False for a fallback.
        reason: a sentence.
    """

    steps: int
    index: int
    settled: bool
    reason: str


@dataclass(frozen=True)
class StabilityRule:
    """Tells when a signal, sampled while only the head trains, has settled.

    Algorithm 2 of arXiv 2403.15210 takes the first sample after a rapid change at which a moving
    average stands still to within a tolerance. The paper leaves open the signal's scale, where the
    rapid change ends, and what holds if nothing settles. What fills those gaps is our own:

    1. the signal is scaled to [0, 1] by the range of its samples, so that the rule does not see
       its unit; ``d_i = (y_{i+window} - y_i) / window`` is the step of its moving average;
    2. where no ``|d_i|`` exceeds ``tolerance`` nothing moved, and the signal tells nothing;
    3. the rapid change ends with the first ``|d_i|``, at the largest or after it, of half the
       largest or less;
    4. the signal has settled at the first i from there on with ``quiet`` steps in a row within
       ``tolerance``.

    The noise of ``d`` is ``sqrt(2)/window`` of the signal's (relative to its range): ``window=3``
    bears noise of 2 % of the range, 8 bears 5.6 %. A hump that lasts more than about ten samples
    passes for settled at its top.

    Args:
        every: optimiser steps from one sample to the next.
        window: samples in the moving average; the paper uses 3 and 8.
        tolerance: of a step of the average, as a share of the signal's range.
        quiet: steps in a row that must be within it.
        longest: the longest interval, in optimiser steps; the paper's random intervals end there.

    Raises:
        ValueError: on a value that is no number above 0.
    """

    every: int = 10
    window: int = 3
    tolerance: float = 0.02
    quiet: int = 2
    longest: int = 800

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            whole = one.name == "tolerance" or isinstance(value, int)
            if isinstance(value, bool) or not whole or not 0 < value < np.inf:
                kind = "number" if one.name == "tolerance" else "whole number"
                raise ValueError(f"{one.name} must be a {kind} above 0, not {value!r}")

    def offline(self, signal: Sequence[float]) -> UnfreezingInterval:
        """Return the interval that a finished pilot tells.

        Args:
            signal: its samples, from before the first update on, ``every`` steps apart.

        Returns:
            ``every`` times the first settled sample, at least ``every`` and at most ``longest``.
            Where nothing moved, an eighth of ``longest``; where nothing settled, ``longest``.

        Raises:
            ValueError: when a sample is not finite, or there are too few to judge.
        """
        values = _finite(signal)
        if len(values) < self.window + self.quiet:
            raise ValueError(
                f"{len(values)} samples are too few to judge: window={self.window} and "
                f"quiet={self.quiet} need at least {self.window + self.quiet}"
            )
        moves = self._moves(values)
        onset = self._end_of_change(moves)
        if onset is None:
            return self._interval(self.longest // 8 // self.every, False, _NOTHING_MOVED)
        for index in range(onset, len(moves) - self.quiet + 1):
            if (moves[index : index + self.quiet] <= self.tolerance).all():
                return self._interval(index, True, _SETTLED)
        return self._interval(self.longest // self.every, False, NOT_SETTLED)

    def online(self, signal: Sequence[float]) -> UnfreezingInterval | None:
        """Say, after the latest sample, whether to thaw now; None to go on waiting.

        It fires ``window + quiet`` samples or so after the index that `offline` finds, since it has
        to see the quiet.

        Args:
            signal: the samples so far.

        Raises:
            ValueError: when a sample is not finite.
        """
        values, last = _finite(signal), len(signal) - 1
        if last >= max(EARLIEST, self.window + self.quiet - 1):
            moves = self._moves(values)
            onset, first = self._end_of_change(moves), len(moves) - self.quiet
            quiet = bool((moves[first:] <= self.tolerance).all())
            if onset is not None and onset <= first and quiet:
                return self._interval(last, True, _SETTLED)
        if last * self.every >= self.longest:
            return self._interval(last, False, NOT_SETTLED)
        return None

    def _moves(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        span = float(values.max() - values.min())
        scaled = (values - values.min()) / span if span else np.zeros_like(values)
        return np.abs(scaled[self.window :] - scaled[: -self.window]) / self.window

    def _end_of_change(self, moves: NDArray[np.float64]) -> int | None:
        largest = int(moves.argmax())
        if moves[largest] <= self.tolerance:
            return None
        slow = moves[largest:] <= moves[largest] / 2
        return largest + int(slow.argmax()) if slow.any() else len(moves)

    def _interval(self, index: int, settled: bool, reason: str) -> UnfreezingInterval:
        steps = min(max(index * self.every, self.every), self.longest)
        return UnfreezingInterval(steps, index, settled, reason)


_SETTLED = "the signal passed its transient and settled"
_NOTHING_MOVED = "the signal never moved by more than the tolerance: an eighth of the longest"
NOT_SETTLED = "the signal did not settle: the longest interval"


def unfreezing_interval(
    signal: Sequence[float],
    *,
    every: int = 10,
    window: int = 3,
    tolerance: float = 0.02,
    quiet: int = 2,
    longest: int = 800,
) -> UnfreezingInterval:
    """Choose the steps between two thaws from a signal sampled while only the head trained.

    The signal may be a Fisher trace, a sharpness or any other metric; the result does not depend
    on its unit or sign. See `StabilityRule` for the rule (arXiv 2403.15210, Algorithm 2, completed
    by us), the arguments and what raises, and its ``online`` for the same during a run.

    Example:
        >>> import math
        >>> unfreezing_interval([math.exp(-i / 8) for i in range(80)]).steps
        140
    """
    return StabilityRule(every, window, tolerance, quiet, longest).offline(signal)


def _finite(signal: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(signal, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a signal is a sequence of numbers, not of shape {values.shape}")
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"sample {first} of the signal is {values[first]}: no rule can judge it")
    return values
