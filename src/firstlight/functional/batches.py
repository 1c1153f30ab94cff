"""What batches are made of: the keys that the ecosystem uses, and words for error messages."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

INPUT_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs")
TARGET_KEYS = ("label", "labels", "target", "targets", "y")


def describe(value: Any, depth: int = 2) -> str:
    """Say what a batch is made of, for an error message.

    Example:
        >>> import torch
        >>> describe({"a": torch.zeros(2, 3), "b": [1, 2]})
        "{'a': float32 (2, 3), 'b': [int, int]}"
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if depth and isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {describe(v, depth - 1)}' for k, v in value.items())}}}"
    if depth and isinstance(value, list | tuple):
        shown = ", ".join(describe(v, depth - 1) for v in value[:4])
        return f"[{shown}{', ...' if len(value) > 4 else ''}]"
    return type(value).__name__
