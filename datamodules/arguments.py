"""Arguments of DataModules: checks, and the plain values that checkpoints keep."""

import math
import os
from collections.abc import Sequence
from typing import Any


def at_least_one(name: str, value: int) -> int:
    """Return the value.

    Raises:
        ValueError: below 1; names it.
    """
    if value < 1:
        raise ValueError(f"{name} is at least 1, got {value}")
    return value


def check_crops(scale: Sequence[float], ratio: Sequence[float]) -> None:
    """Raise ValueError on ranges that no random resized crop can be drawn from; names them."""
    for name, given, most in (("scale", scale, 1.0), ("ratio", ratio, math.inf)):
        if len(given) != 2 or not 0 < given[0] <= given[1] <= most or math.isinf(given[1]):
            raise ValueError(f"{name} is a range within (0, {most:g}], got {tuple(given)}")


def plain(value: Any) -> Any:
    """Paths as strings, tuples as lists: a checkpoint that holds a Path is no safe load."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value
