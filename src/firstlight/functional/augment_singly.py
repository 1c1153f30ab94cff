"""Augmentation of uint8 images one after another: faster on a CPU where a few fill its cache.

Does what `firstlight.functional.augment` does in batches, up to rounding. Where an operation reads
and writes an image once instead of two or three times, that is why.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from firstlight.functional.augment import GREY
from firstlight.functional.augment_draws import Draws


def augment_singly(
    images: Tensor, draws: Draws, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Flip, change colours, normalise and erase each image by its own parameters.

    Args:
        images: uint8 (B, C, H, W) of any memory format, on the CPU.
        draws: parameters of B images, on the CPU.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.

    Returns:
        float32 (B, C, H, W), contiguous.
    """
    flips = None if draws.flips is None else draws.flips.tolist()
    boxes = None if draws.boxes is None else draws.boxes.tolist()
    shifts = [torch.tensor(-m / s) for m, s in zip(mean, std, strict=True)]
    scales = [1 / (255 * s) for s in std]
    batch = torch.empty(
        images.shape, dtype=torch.float32
    )  # contiguous, whatever the format of the images
    planes = torch.empty(images.shape[1:], dtype=torch.uint8)
    for number, (image, made) in enumerate(zip(images.numpy(), batch.unbind(), strict=True)):
        mirrored = flips is not None and flips[number]
        # numpy takes channels apart faster than torch, and mirrors without a copy
        np.copyto(planes.numpy(), image[..., ::-1] if mirrored else image)
        made.copy_(planes)
        if draws.jitter is not None:
            _jitter(made, draws.jitter.order[number], draws.jitter.factors[number])
        for channel, shift, scale in zip(made, shifts, scales, strict=True):
            torch.add(shift, channel, alpha=scale, out=channel)
        if boxes is not None:
            top, left, height, width = boxes[number]
            made[:, top : top + height, left : left + width] = 0
    return batch


def _jitter(image: Tensor, order: Tensor, factors: Tensor) -> None:
    """Change an image (3, H, W) on the scale 0 to 255, in place.

    A factor up to 1 mixes values of the scale, so that nothing has to be clipped.
    """
    values = factors.tolist()
    for kind in order.tolist():
        factor = values[kind]
        if kind == 0:
            image.mul_(factor)
        elif kind == 1:
            grey = image.mean((1, 2)).dot(torch.tensor(GREY))
            torch.add(grey.mul_(1 - factor), image, alpha=factor, out=image)
        else:
            grey = image[0] * (GREY[0] * (1 - factor))
            for channel in (1, 2):
                grey.add_(image[channel], alpha=GREY[channel] * (1 - factor))
            torch.add(grey, image, alpha=factor, out=image)
        if factor > 1:
            image.clamp_(0, 255)
