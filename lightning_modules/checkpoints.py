"""Checks of arguments and checkpoints, so that nothing fails after an hour."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn


def check_fits(
    checkpoint: Mapping[str, Any], model_name: str, num_classes: int, state: Mapping[str, Tensor]
) -> None:
    """Raise ValueError, naming both sides, unless the checkpoint's weights fit the model's.

    Args:
        checkpoint: a Lightning checkpoint.
        model_name: timm's name of the model at hand; tags of weights do not matter.
        num_classes: outputs of its head.
        state: its state dict.
    """
    saved = checkpoint.get("hyper_parameters", {})
    name = saved.get("model_name", model_name)
    if name.partition(".")[0] != model_name.partition(".")[0]:
        raise ValueError(
            f"the checkpoint holds {name}, the model is {model_name}: set model_name={name}, or "
            "give the checkpoint that belongs to this model"
        )
    classes = saved.get("num_classes", num_classes)
    if classes != num_classes:
        raise ValueError(
            f"the checkpoint's head has {classes} classes, the model's has {num_classes}: give the "
            "data that the checkpoint was trained on, or start anew from its weights "
            "(checkpoint_path), which makes a new head"
        )
    theirs = checkpoint["state_dict"]
    missing = [key for key in state if key not in theirs]
    unexpected = [key for key in theirs if key not in state]
    shapes = [
        f"{key} {tuple(theirs[key].shape)} against {tuple(state[key].shape)}"
        for key in state
        if key in theirs and theirs[key].shape != state[key].shape
    ]
    if missing or unexpected or shapes:
        found = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if keys
        ]
        raise ValueError(
            f"the checkpoint does not fit {model_name} with {num_classes} classes: weights "
            f"{'; '.join(found)}. Check model_kwargs, in_chans and the loss."
        )


def check_reduction(loss: nn.Module) -> None:
    """Raise ValueError for a loss whose ``reduction`` is not the mean over a batch's examples.

    ``<stage>/loss`` weighs every batch's mean by its examples: of sums it would make a number that
    grows with the batch size. A loss without that attribute is taken to return the mean.
    """
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean":
        name = type(loss).__name__
        raise ValueError(
            f"loss: {name} has reduction={reduction!r}, but what is logged and optimised is the "
            f"mean over examples: pass {name}(reduction='mean') (in YAML, init_args: "
            "{reduction: mean})"
        )


def check_values(
    num_classes: int | None, layer_decay: float, mixup: float, cutmix: float, interval: str
) -> None:
    """Raise ValueError for arguments of a classifier that cannot be right."""
    if num_classes is not None and num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, not {num_classes}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], not {layer_decay}; 1 turns it off")
    for name, value in {"mixup_alpha": mixup, "cutmix_alpha": cutmix}.items():
        if value < 0:
            raise ValueError(f"{name} must be 0 (off) or above, not {value}")
    if interval not in ("epoch", "step"):
        raise ValueError(f"lr_scheduler_interval must be 'epoch' or 'step', not {interval!r}")


def provenance(weights_from: Mapping[str, Any]) -> str:
    """Say in words where initial weights came from."""
    if weights_from.get("location") is None:
        return f"{weights_from.get('source', 'unknown')} weights"
    head = "a new head" if weights_from["head"] == "new" else "the head included"
    return f"weights from {weights_from['location']}, {head}"


def warn_of_other_images(trained: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn where images are prepared in another way than those the checkpoint was trained on."""
    other = [
        f"{name} {now[name]} instead of {trained[name]}"
        for name in trained
        if name in now and now[name] != trained[name]
    ]
    if other:
        rank_zero_warn(
            f"images are prepared otherwise than in the checkpoint's training: {'; '.join(other)}. "
            "Unless that is meant, give the DataModule the values of the training"
        )
