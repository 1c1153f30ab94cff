"""What a monitor measured: one number each, as a row of the run folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """One measured number; two are equal however long they took.

    Attributes:
        kind: what was measured, such as the estimator.
        block: part of the network; "" for all of it.
        value: the number; NaN where it could not be had.
        se: its standard error; NaN where unknown.
        per_parameter: the value by number of measured parameters; NaN where that says nothing.
        n: examples.
        seconds: that the measurement took, on the first rank; NaN for a block.
    """

    kind: str
    block: str
    value: float
    se: float = math.nan
    per_parameter: float = math.nan
    n: int = 0
    seconds: float = field(default=math.nan, compare=False)


def columns_of(measurements: Sequence[Measurement]) -> dict[str, list[Any]]:
    """Return measurements as columns of the run folder's schema `MEASURE`."""
    names = Measurement.__dataclass_fields__
    return {name: [getattr(one, name) for one in measurements] for name in names}


Flat = dict[tuple[str, str], float]
"""Numbers by kind and block."""


def flattened(result: Any, who: str) -> Flat:
    """Read what a user's function returned: numbers, or numbers by block, by kind.

    Raises:
        TypeError: where it is no such dict, or an empty one.
    """
    flat: Flat = {}
    if not isinstance(result, Mapping) or not result:
        raise TypeError(f"{_EXPECTED.format(who=who)}, not {result!r}")
    for kind, value in result.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for block, number in parts.items():
            if not isinstance(kind, str) or not isinstance(block, str) or not _is_number(number):
                raise TypeError(f"{_EXPECTED.format(who=who)}; {kind!r} is {value!r}")
            flat[kind, block] = float(number.detach() if isinstance(number, Tensor) else number)
    if not flat:
        raise TypeError(f"{_EXPECTED.format(who=who)}, not {result!r}")
    return flat


_EXPECTED = (
    "{who}: measure must return a dict with at least one name to a number, or name to a dict of "
    "block to number"
)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real | np.number) and not isinstance(value, np.complexfloating)


def mean_over_examples(parts: Sequence[Flat], sizes: Sequence[int], who: str) -> Flat:
    """Return the mean of batches' numbers, each weighing as many examples as it has.

    Raises:
        ValueError: where batches gave different names.
    """
    for part in parts:
        if part.keys() != parts[0].keys():
            raise ValueError(
                f"{who}: measure gave {sorted(parts[0])} for one batch of the probe set and "
                f"{sorted(part)} for another"
            )
    total = sum(sizes)
    return {
        key: math.fsum(p[key] * n for p, n in zip(parts, sizes, strict=True)) / total
        if all(math.isfinite(p[key]) for p in parts)
        else math.nan
        for key in parts[0]
    }
