"""The checkpoint that a retrained head is written to, with the old head kept in it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstlight.callbacks.linear_head import Head
from firstlight.callbacks.retraining import NotRetrainedError, put_in
from firstlight.functional import RetrainedHead
from firstlight.runfolder import replacing

CHECKPOINT_KEY = "last_layer_retraining"


def retrained_path(checkpoint: Path, name: str | None = None) -> Path:
    """``<name>-retrained.ckpt`` beside a checkpoint."""
    end = "" if name is None else f"-{name}"
    return checkpoint.with_name(f"{checkpoint.stem}-retrained{end}.ckpt")


def start_from(trainer: Any, pl_module: Any, which: str) -> str:
    """Give a module the weights of the ``"last"`` or ``"best"`` checkpoint; say what they are.

    Raises:
        NotRetrainedError: where no best one was written.
    """
    if which == "last":
        return "the weights that training ended with"
    path = trainer.checkpoint_callback.best_model_path
    if not path:
        raise NotRetrainedError("it starts from the best checkpoint, and none was written")
    # Of this very run, whatever types the user's module put into it.
    content = torch.load(path, map_location="cpu", weights_only=False)
    pl_module.load_state_dict(content["state_dict"])
    return str(path)


def checkpoint_of(trainer: Any, which: str, folder: Path) -> Path:
    """The file that the new one is named after: a checkpoint's, or one in the run folder."""
    saving = trainer.checkpoint_callback
    best = getattr(saving, "best_model_path", "")
    last = getattr(saving, "last_model_path", "") or best
    given = best if which == "best" else last
    return Path(given) if given else folder / "last.ckpt"


def describe_head(
    head: Head, new: RetrainedHead, old: dict[str, Tensor], source: str, started: str
) -> dict[str, Any]:
    """What a checkpoint keeps of a retraining: the old head, and how the new one came about."""
    return {
        "layer": head.name,
        "rule": new.rule,
        "source": source,
        "started_from": started,
        "provenance": new.provenance,
        "ridge": new.ridge,
        "converged": new.converged,
        "gradient_norm": new.gradient_norm,
        "class_weights": new.class_weights.detach().cpu(),
        "old_weight": old["weight"].cpu(),
        "old_bias": old["bias"].cpu(),
    }


def rewrite_checkpoint(
    path: Path,
    content: dict[str, Any],
    head: Head,
    new: RetrainedHead,
    told: dict[str, Any],
    key: str = CHECKPOINT_KEY,
) -> None:
    """Write a checkpoint with another head, atomically.

    Every state dict in it gets the head: the one that is loaded, and, where a moving average is
    kept beside the weights being trained, these too.

    Args:
        path: of the file to make.
        content: a Lightning checkpoint.
        head: where the head is.
        new: the head.
        told: see `describe_head`.
        key: where that is kept in the checkpoint.

    Raises:
        ValueError: where the checkpoint does not hold the layer.
    """
    kept = dict(content)
    for part in ("state_dict", "current_model_state"):
        if part in kept:
            kept[part] = _with_head(kept[part], head, new)
    kept[key] = told
    with replacing(path) as temporary:
        torch.save(kept, temporary)


def _with_head(state: dict[str, Any], head: Head, new: RetrainedHead) -> dict[str, Any]:
    state = dict(state)
    for part, value in {"weight": new.weight, "bias": new.bias}.items():
        key = f"{head.name}.{part}"
        if key not in state:
            raise ValueError(f"the checkpoint holds no {key}: it is of another module")
        state[key] = value.to(state[key])
    return state


def write_retrained(
    trainer: Any, path: Path, head: Head, new: RetrainedHead, told: dict[str, Any]
) -> None:
    """Write a trainer's checkpoint with a fitted head, atomically. Collective.

    Args:
        trainer: at the end of a fit.
        path: of the file.
        head: where the head is.
        new: the head.
        told: see `describe_head`.
    """
    draft = path.with_name(f".{path.name}.draft")
    # Lightning's own way of writing one, which other callbacks take part in.
    trainer.save_checkpoint(draft, weights_only=False)  # callbacks' states too, as by default
    if trainer.is_global_zero:
        try:
            # Of this very run, whatever types the user's module put into it.
            content = torch.load(draft, map_location="cpu", weights_only=False)
            rewrite_checkpoint(path, content, head, new, told)
        finally:
            draft.unlink(missing_ok=True)
    trainer.strategy.barrier()


def keep_head(
    trainer: Any, pl_module: Any, head: Head, new: RetrainedHead, source: str, started: str,
    path: Path,
) -> str:  # fmt: skip
    """Put a fitted head into the module, and write the trainer's checkpoint with it. Collective.

    Args:
        trainer: at the end of a fit.
        pl_module: gets the head.
        head: where it is.
        new: the head.
        source: what it was fitted to.
        started: see `start_from`.
        path: of the file.

    Returns:
        What was done, and how to test it.
    """
    told = describe_head(head, new, put_in(pl_module, head, new), source, started)
    write_retrained(trainer, path, head, new, told)
    return (
        f"started from {started} and put the head of {new.rule!r} in; the old one is kept in "
        f"{path}. To test it:\n  {command_that_tests(trainer, pl_module, path)}"
    )


def command_that_tests(trainer: Any, pl_module: Any, path: Path) -> str:
    """What to type to test a checkpoint."""
    ours = any(kind.__name__ == "ImageClassifier" for kind in type(pl_module).__mro__)
    config = Path(trainer.log_dir or ".", "config.yaml")
    if ours and config.is_file():
        return f"firstlight test --config {config} --ckpt_path {path}"
    return f"trainer.test(model, dataloaders_or_datamodule, ckpt_path={str(path)!r})"
