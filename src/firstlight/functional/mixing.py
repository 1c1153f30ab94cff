"""MixUp and CutMix with a ratio, or a box, of its own for every example."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot


def mixup(
    images: Tensor, targets: Tensor, num_classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend every image with another of the batch (1710.09412), each by its own ratio.

    ``x_i <- w_i x_i + (1 - w_i) x_p(i)`` with ``w_i ~ Beta(alpha, alpha)`` and ``p`` a random
    permutation (an image may meet itself).

    Args:
        images: floating point, (N, C, H, W).
        targets: class indices, (N,).
        num_classes: K.
        alpha: above 0; 1 draws ratios uniformly.
        generator: a CPU generator; draws never depend on the images' device.

    Returns:
        Images of the same shape, dtype and device, and target probabilities (N, K), float32.

    Raises:
        ValueError: when ``alpha`` is not above 0.
    """
    weight, partner = _draw(len(images), alpha, generator, images.device)
    shape = (-1, *[1] * (images.ndim - 1))
    blend = weight.to(images.dtype).view(shape)
    mixed = images * blend + images[partner] * (1 - blend)
    return mixed, _soft_targets(targets, partner, weight, num_classes)


def cutmix(
    images: Tensor, targets: Tensor, num_classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a box of another image of the batch into every image (1905.04899), each its own.

    A box of ``sqrt(1 - w)`` times each side, ``w ~ Beta(alpha, alpha)``, about a uniform centre
    and cut at the border. The target weight is the share of pixels that stayed, after the cut.

    Args:
        images: (N, C, H, W), any dtype.
        targets: class indices, (N,).
        num_classes: K.
        alpha: above 0; 1 draws areas uniformly (before the cut at the border).
        generator: a CPU generator; draws never depend on the images' device.

    Returns:
        Images of the same shape, dtype and device, and target probabilities (N, K), float32.

    Raises:
        ValueError: when ``alpha`` is not above 0.
    """
    height, width = images.shape[-2:]
    weight, partner = _draw(len(images), alpha, generator, images.device)
    side = (1 - weight).sqrt()
    rows = _interval(side, height, generator)
    columns = _interval(side, width, generator)
    box = rows[:, None, :, None] & columns[:, None, None, :]
    mixed = torch.where(box, images[partner], images)
    kept = 1 - rows.sum(1) * columns.sum(1) / (height * width)
    return mixed, _soft_targets(targets, partner, kept, num_classes)


def _draw(
    count: int, alpha: float, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ratios (N,) float32 and partners (N,) int64."""
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, not {alpha}; leave the mixing out instead")
    partner = torch.randperm(count, generator=generator)
    # torch's Beta draws from the global generator only.
    seed = int(torch.randint(2**62, (), generator=generator))
    weight = np.random.default_rng(seed).beta(alpha, alpha, count)
    return torch.from_numpy(weight).float().to(device), partner.to(device)


def _interval(side: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Masks (N, length) of intervals of ``side * length`` pixels about a uniform centre."""
    centre = torch.randint(length, (len(side),), generator=generator).to(side.device)
    size = (side * length).long()
    start = (centre - size // 2).unsqueeze(1)
    pixels = torch.arange(length, device=side.device)
    return (pixels >= start) & (pixels < start + size.unsqueeze(1))


def _soft_targets(targets: Tensor, partner: Tensor, weight: Tensor, num_classes: int) -> Tensor:
    own = one_hot(targets, num_classes).float()
    share = weight.float().unsqueeze(1)
    return own * share + own[partner] * (1 - share)
