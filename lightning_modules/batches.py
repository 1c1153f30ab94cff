"""What a classifier takes and gives: batches and logits, checked where it costs nothing."""

from collections.abc import Mapping

import torch
from torch import Tensor

from firstlight.functional.batches import INPUT_KEYS, TARGET_KEYS, describe


def unpack(batch: object, num_classes: int, check: bool = True) -> tuple[Tensor, Tensor]:
    """Return images (N, ...) and int64 targets (N,) of a tuple ``(x, y, ...)`` or a usual dict.

    Args:
        batch: what the loader gave.
        num_classes: labels lie in [0, num_classes).
        check: whether to look at the labels on a device other than the CPU, which waits for it. On
            the CPU they are always looked at.

    Raises:
        TypeError: for any other structure.
        ValueError: for labels of a wrong shape or type, or out of range.
    """
    images, targets = images_of(batch), None
    if isinstance(batch, Mapping):
        targets = next((batch[key] for key in TARGET_KEYS if key in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        targets = batch[1]
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"no labels found in a batch of {describe(batch)}: expected (images, labels, ...) or "
            f"a dict with one of {', '.join(TARGET_KEYS)}"
        )
    if targets.shape != images.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"expected integer labels of shape ({len(images)},), got {targets.dtype} of shape "
            f"{tuple(targets.shape)}"
        )
    targets = targets.long()
    if (check or targets.device.type == "cpu") and len(targets):
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"label {low if low < 0 else high} lies outside 0..{num_classes - 1} (num_classes="
                f"{num_classes}): correct the labels, or num_classes"
            )
    return images, targets


def images_of(batch: object) -> Tensor:
    """Return the images of a batch: the tensor itself, a tuple's first item, a usual dict's."""
    images = batch
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in INPUT_KEYS if key in batch), None)
    elif isinstance(batch, tuple | list) and batch:
        images = batch[0]
    if not isinstance(images, Tensor):
        raise TypeError(
            f"no images found in a batch of {describe(batch)}: expected a tensor, (images, ...) "
            f"or a dict with one of {', '.join(INPUT_KEYS)}"
        )
    return images


def check_logits(logits: object, count: int, num_classes: int, model_name: str) -> Tensor:
    """Return logits (N, C) in at least single precision.

    Raises:
        TypeError: when the model gives something else, such as the two heads of a network in
            distillation mode: which of them to train is not for this module to guess.
        ValueError: when the shape is another.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{model_name} returned {describe(logits)} instead of logits (N, {num_classes}); "
            "switch its auxiliary or distillation outputs off (model_kwargs), or subclass "
            "ImageClassifier and choose one in forward"
        )
    if logits.shape != (count, num_classes):
        raise ValueError(
            f"{model_name} returned shape {tuple(logits.shape)} instead of logits "
            f"({count}, {num_classes}); is global_pool switched off in model_kwargs?"
        )
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
