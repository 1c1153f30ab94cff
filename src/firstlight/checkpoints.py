"""Checkpoints of training runs: found, and read without running what they hold."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Weights = Literal["auto", "ema", "raw"]


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not the one that is needed."""


def read_checkpoint(path: str | Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint on the CPU with ``weights_only=True``: nothing in it is run.

    Args:
        path: a file that Lightning or ``torch.save`` wrote.
        trust: import paths of further types, such as ``pathlib.PosixPath``, that the file may
            hold. They are imported and called: name none that you do not know.

    Returns:
        Its contents.

    Raises:
        FileNotFoundError: where there is no file.
        CheckpointError: where it is damaged, is no dictionary, or holds a type that is not
            trusted, naming the type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {path}" + (": it is a folder" if path.is_dir() else "")
        )
    with trusting(trust):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises anything
            raise CheckpointError(_what_is_wrong(path, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} is not a checkpoint: it holds one {type(content).__name__}, no dictionary"
        )
    return dict(content)


def trusting(types: Iterable[str]) -> ExitStack:
    """Return a context in which ``weights_only=True`` admits types by their import paths.

    Raises:
        CheckpointError: on a path that cannot be imported.
    """
    stack = ExitStack()
    stack.enter_context(torch.serialization.safe_globals([(imported(t), t) for t in types]))
    return stack


def imported(name: str) -> Any:
    """Return what an import path such as ``my_package.MyModule`` names.

    Raises:
        CheckpointError: where there is no such thing, saying which part is missing.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{name!r} cannot be imported ({error}): give an import path such as "
            "my_package.MyModule, with the folder of my_package in PYTHONPATH"
        ) from error


def _what_is_wrong(path: Path, error: Exception) -> str:
    try:
        refused = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged file again
        refused = []
    if not refused:
        first = next(iter(str(error).splitlines()), "")
        return f"{path} cannot be read as a checkpoint: {type(error).__name__}: {first}"
    options = " ".join(f"--trust {name}" for name in refused)
    return (
        f"{path} holds types that could run code when read: {', '.join(refused)}. If the file "
        f"comes from a source that you trust, admit them by {options}"
    )


def choose_weights(
    content: Mapping[str, Any], weights: Weights, path: Path
) -> tuple[Mapping[str, Tensor], str]:
    """Return a checkpoint's weights, and "ema" or "raw", whichever they are.

    Lightning's averaging callbacks put the average in ``state_dict``, the rest aside.

    Args:
        content: as `read_checkpoint` returns it.
        weights: the moving average (``ema``), those being trained (``raw``), or the average where
            there is one (``auto``).
        path: named in errors.

    Raises:
        ValueError: on another word.
        CheckpointError: where an average is asked for and there is none.
    """
    raw = content.get("current_model_state")
    if weights not in ("auto", "ema", "raw"):
        raise ValueError(f"weights must be 'auto', 'ema' or 'raw', not {weights!r}")
    if weights == "ema" and raw is None:
        raise CheckpointError(
            f"{path} holds no moving average: train with the callback EMAWeightAveraging, or "
            "choose weights 'raw'"
        )
    if weights == "raw" and raw is not None:
        return raw, "raw"
    return content["state_dict"], "raw" if raw is None else "ema"


def find_checkpoints(
    paths: Iterable[str | Path], trust: Sequence[str] = ()
) -> list[tuple[int, Path]]:
    """Return the checkpoints in files and folders of one run by step, one for each step.

    Folders are searched recursively for ``*.ckpt``. Of several files of one step with the same
    weights (``last.ckpt`` repeats another) the first is kept.

    Args:
        paths: files and folders.
        trust: as for `read_checkpoint`.

    Returns:
        ``global_step`` and path, by step.

    Raises:
        FileNotFoundError: where a path does not exist or a folder holds no checkpoint.
        CheckpointError: where a file cannot be read, is not Lightning's, or two files hold
            different weights of one step, as those of two runs do.
    """
    found: dict[int, Path] = {}
    for path in [file for one in paths for file in _files(Path(one))]:
        content = read_checkpoint(path, trust)
        step = content.get("global_step")
        if not isinstance(step, int) or not isinstance(content.get("state_dict"), Mapping):
            raise CheckpointError(
                f"{path} is not a Lightning checkpoint: it has no global_step and state_dict. "
                "Save it by trainer.save_checkpoint, or by the callback ModelCheckpoint"
            )
        other = found.setdefault(step, path)
        if other != path and not _same_weights(content, read_checkpoint(other, trust)):
            raise CheckpointError(
                f"{other} and {path} hold different weights of step {step}: give the checkpoints "
                "of one run"
            )
    return sorted(found.items())


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.ckpt"), key=lambda file: (file.name.startswith("last"), file))
    if not files:
        raise FileNotFoundError(f"there is no checkpoint (*.ckpt) in {path}")
    return [file for file in files if file.is_file()]


def _same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ours, theirs = one["state_dict"], other["state_dict"]
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) if isinstance(value, Tensor) else True
        for key, value in ours.items()
    )
