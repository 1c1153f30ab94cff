"""Parameters of augmentations, one set for each example.

All are drawn on the CPU from an explicit generator. Drawing per example is the point: torchvision's
v2 transforms, given a batch, draw one set of parameters for all of it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


def draw_crop_offsets(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """Draw corners of crops of the original size from images padded by ``padding`` on each side.

    Returns:
        int64 of shape (count, 2) on the CPU: (top, left), uniform on ``0 .. 2 * padding``; the
        distribution of ``torchvision.transforms.RandomCrop(size, padding)``.
    """
    return torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)


def draw_flips(count: int, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Draw which images to flip: bool of shape (count,) on the CPU, true with probability ``p``."""
    return torch.rand(count, generator=generator) < p


def draw_erasing_boxes(
    count: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Draw boxes with the distribution of ``torchvision.transforms.RandomErasing``.

    A box has an area of ``uniform(scale)`` of the image and a height over width whose logarithm is
    uniform on ``log(ratio)``. The first of ten tries that is lower and narrower than the image is
    placed uniformly; where none fits the image stays whole (rejection makes the distribution of
    accepted boxes differ from the proposal's).

    Args:
        count: number of images N.
        image_size: (height, width) in pixels.
        generator: on the CPU.
        p: probability that an image is erased.
        scale: range of the erased share of the image's area.
        ratio: range of height over width.

    Returns:
        int64 of shape (N, 4) on the CPU: top, left, height, width; height and width are 0 for an
        image that stays whole.
    """
    height, width = image_size
    chosen = draw_flips(count, generator, p)
    tries = torch.rand(count, 10, 2, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * tries[..., 1]).exp()
    box_h, box_w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_h < height) & (box_w < width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    box_h, box_w = box_h.gather(1, first).squeeze(1), box_w.gather(1, first).squeeze(1)
    where = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    top = (where[:, 0] * (height - box_h + 1)).floor()
    left = (where[:, 1] * (width - box_w + 1)).floor()
    boxes = torch.stack((top, left, box_h, box_w), dim=1).long()
    return boxes * (chosen & fits.any(dim=1)).unsqueeze(1)


def draw_resized_crops(
    count: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw boxes with the distribution of ``torchvision.transforms.RandomResizedCrop``.

    A box has an area of ``uniform(scale)`` of the image and a width over height whose logarithm is
    uniform on ``log(ratio)``. The first of ten tries that is no higher and no wider than the image
    is placed uniformly; where none fits it is the largest centred box within ``ratio``. The trap:
    rejection makes boxes smaller than ``scale`` says: (0.5, 1) keeps 69 % of a square image on
    average, (0.08, 1) 48 %.

    Args:
        count: number of images N.
        image_size: (height, width) in pixels.
        generator: on the CPU.
        scale: range of the box's share of the image's area.
        ratio: range of width over height.

    Returns:
        int64 of shape (N, 4) on the CPU: top, left, height, width.
    """
    height, width = image_size
    tries = torch.rand(count, 10, 2, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * tries[..., 1]).exp()
    box_h, box_w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (box_h > 0) & (box_h <= height) & (box_w > 0) & (box_w <= width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    box_h, box_w = box_h.gather(1, first).squeeze(1), box_w.gather(1, first).squeeze(1)
    where = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    top = (where[:, 0] * (height - box_h + 1)).floor()
    left = (where[:, 1] * (width - box_w + 1)).floor()
    boxes = torch.stack((top, left, box_h, box_w), dim=1).long()
    boxes[~fits.any(dim=1)] = torch.tensor(_central_box(height, width, ratio))
    return boxes


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    if width / height < min(ratio):
        box_h, box_w = round(width / min(ratio)), width
    elif width / height > max(ratio):
        box_h, box_w = height, round(height * max(ratio))
    else:
        box_h, box_w = height, width
    return (height - box_h) // 2, (width - box_w) // 2, box_h, box_w


class ColorJitter(NamedTuple):
    """What `draw_color_jitter` draws, per example.

    Attributes:
        factors: float32 (N, 3), of brightness, contrast and saturation; 1 changes nothing.
        order: int64 (N, 3), which of the three comes first, second, third.
    """

    factors: Tensor
    order: Tensor


class Draws(NamedTuple):
    """Parameters of N images; None for what is not done.

    Attributes:
        flips: of `draw_flips`.
        jitter: of `draw_color_jitter`.
        boxes: of `draw_erasing_boxes`.
    """

    flips: Tensor | None
    jitter: ColorJitter | None
    boxes: Tensor | None

    def to(self, device: torch.device) -> "Draws":
        """Return the same parameters on another device."""
        move = partial(Tensor.to, device=device, non_blocking=True)
        return Draws(
            None if self.flips is None else move(self.flips),
            None if self.jitter is None else ColorJitter(*map(move, self.jitter)),
            None if self.boxes is None else move(self.boxes),
        )

    @classmethod
    def joined(cls, parts: Sequence["Draws"]) -> "Draws":
        """Return the parameters of all images, of those of some of them each."""
        flips, jitters, boxes = zip(*parts, strict=True)
        return cls(
            None if flips[0] is None else torch.cat(flips),
            None
            if jitters[0] is None
            else ColorJitter(*map(torch.cat, zip(*jitters, strict=True))),
            None if boxes[0] is None else torch.cat(boxes),
        )


def draw_color_jitter(count: int, strength: float, generator: torch.Generator) -> ColorJitter:
    """Draw factors and orders with the distribution of torchvision's ``ColorJitter``.

    Args:
        count: number of images N.
        strength: s; factors are uniform on [max(0, 1 - s), 1 + s], as timm's ``color_jitter``.
        generator: on the CPU.
    """
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = low + (high - low) * torch.rand(count, 3, generator=generator)
    return ColorJitter(factors, torch.rand(count, 3, generator=generator).argsort(dim=1))
