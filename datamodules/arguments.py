"""Arguments of DataModules: checks, and the plain values that checkpoints keep."""

import os
from typing import Any


def at_least_one(name: str, value: int) -> int:
    """Return the value.

    Raises:
        ValueError: below 1; names it.
    """
    if value < 1:
        raise ValueError(f"{name} is at least 1, got {value}")
    return value


def plain(value: Any) -> Any:
    """Paths as strings, tuples as lists: a checkpoint that holds a Path is no safe load."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value
