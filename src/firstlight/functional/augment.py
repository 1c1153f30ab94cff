"""Augmentation of batches of uint8 images, with parameters of their own for every example.

Parameters are drawn by `firstlight.functional.augment_draws`, and applied on whatever device holds
the images. Of images that fill a CPU's cache `firstlight.functional.augment_singly` is faster.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from firstlight.functional.augment_draws import ColorJitter, Draws

GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue, as in torchvision."""


def augment(images: Tensor, draws: Draws, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Flip, change colours, normalise and erase each image by its own parameters.

    Args:
        images: uint8 (B, C, H, W) of any memory format.
        draws: parameters of B images, on the same device.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.

    Returns:
        float32 (B, C, H, W), contiguous.
    """
    if draws.flips is not None:
        images = flip(images, draws.flips)
    batch = torch.empty(images.shape, dtype=torch.float32, device=images.device).copy_(images)
    if draws.jitter is not None:
        color_jitter(batch, draws.jitter)
    normalize_(batch, mean, std)
    return batch if draws.boxes is None else erase(batch, draws.boxes)


def color_jitter(images: Tensor, drawn: ColorJitter) -> Tensor:
    """Change brightness, contrast and saturation of each image, in its own order, in place.

    Each is ``clamp(f x + (1 - f) r)`` with r = 0, the mean grey of the image, or the grey of the
    pixel: torchvision's ``adjust_*`` of float images, up to rounding. Hue is left out.

    Args:
        images: float32 (N, 3, H, W) on the scale 0 to 255.
        drawn: of `draw_color_jitter`, on the same device.
    """
    weights = torch.tensor(GREY, device=images.device)
    for kind in drawn.order.unbind(1):
        factor = drawn.factors.gather(1, kind.unsqueeze(1)).view(-1, 1, 1, 1)
        of_mean, of_pixel = ((kind == k).view(-1, 1, 1, 1) * (1 - factor) for k in (1, 2))
        added = (images.mean((2, 3)) @ weights).view(-1, 1, 1, 1) * of_mean
        grey = images[:, :1] * GREY[0]
        for channel in (1, 2):
            grey.add_(images[:, channel : channel + 1], alpha=GREY[channel])
        images.mul_(factor).add_(grey.mul_(of_pixel).add_(added)).clamp_(0, 255)
    return images


def pad(images: Tensor, padding: int) -> Tensor:
    """Surround images (N, C, H, W) by ``padding`` rows and columns of zeros; done once per set."""
    return F.pad(images, (padding, padding, padding, padding))


def crop(padded: Tensor, index: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """Gather crops of chosen images, row by row of contiguous memory.

    ``index_select`` of rows is a copy of memory per row, and about eight times faster on a CPU than
    indexing each pixel.

    Args:
        padded: images (N, C, H', W'), any dtype, usually a whole data set on its device;
            contiguous, or all of it is copied each time.
        index: int64 (B,), which images, on the same device.
        offsets: int64 (B, 2), (top, left) of each crop, on the same device.
        size: (height, width) of the crops, at most (H', W').

    Returns:
        New contiguous tensor (B, C, height, width).
    """
    _, channels, full_height, full_width = padded.shape
    height, width = size
    channel = torch.arange(channels, device=padded.device).view(1, -1, 1)
    row = torch.arange(height, device=padded.device).view(1, 1, -1) + offsets[:, 0].view(-1, 1, 1)
    image_row = (index.view(-1, 1, 1) * channels + channel) * full_height + row
    starts = image_row * full_width + offsets[:, 1].view(-1, 1, 1)
    windows = padded.contiguous().as_strided((padded.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, starts.flatten()).view(-1, channels, height, width)


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """Return images (B, C, H, W), mirrored left and right where ``flips`` (B,) is true.

    Both versions are made and one copied for each, which is faster than writing into some.
    """
    count = len(images)
    chosen = torch.arange(count, device=images.device) + count * flips.to(images.device)
    return torch.cat((images, images.flip(-1))).index_select(0, chosen)


def erase(images: Tensor, boxes: Tensor, value: float = 0.0) -> Tensor:
    """Set the inside of each image's box to ``value``, in place.

    Args:
        images: (B, C, H, W); normalised images and 0 give torchvision's usual result.
        boxes: int64 (B, 4) of top, left, height, width, on the same device.
        value: what to write.
    """
    tops, lefts, heights, widths = (b.view(-1, 1, 1, 1) for b in boxes.unbind(1))
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    inside = (rows >= tops) & (rows < tops + heights) & (columns >= lefts)
    inside = inside & (columns < lefts + widths)
    return images.masked_fill_(inside, value)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 images (B, C, H, W) into float32 ``(x / 255 - mean) / std``, channel by channel.

    Computed as one multiplication and one addition, so equal to torchvision's ``ToTensor`` and
    ``Normalize`` up to float32 rounding.
    """
    return normalize_(images.float(), mean, std)


def normalize_(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Do what `normalize` does to float32 images on the scale 0 to 255, in place."""
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    return images.mul_(scale).add_(shift)


@functools.lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)


def resize(images: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """Resize uint8 images (B, C, H, W) with antialiasing, rounded back to uint8.

    Equal to torchvision's ``resize`` of tensors; PIL differs from both by a grey level at places.

    Args:
        images: uint8, on any device.
        size: (height, width) to reach.
        interpolation: ``bilinear`` or ``bicubic``.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    source = images if images.device.type == "cpu" else images.float()
    resized = F.interpolate(source, size, mode=interpolation, antialias=True, align_corners=False)
    return resized if resized.dtype == torch.uint8 else resized.clamp_(0, 255).round_().byte()


def resized_crop(
    images: Tensor, boxes: Tensor, size: tuple[int, int], interpolation: str = "bilinear"
) -> Tensor:
    """Resize each image's box to one size with antialiasing, rounded back to uint8.

    Equal to torchvision's ``resized_crop`` of float images, then rounded; that of uint8 images
    rounds and clips between rows and columns too, and differs by a grey level at places, bicubic by
    more where it overshoots the range. Both directions are one matrix product each for the whole
    batch, whatever its boxes: 2 C S (H W + S W) operations an image, S being the size reached.

    Args:
        images: uint8 (B, C, H, W), on any device.
        boxes: int64 (B, 4) of top, left, height, width, on the same device.
        size: (height, width) to reach.
        interpolation: ``bilinear`` or ``bicubic``.
    """
    top, left, height, width = boxes.unbind(1)
    rows = _resampling(top, height, images.shape[2], size[0], interpolation)
    columns = _resampling(left, width, images.shape[3], size[1], interpolation)
    resized = rows.unsqueeze(1) @ images.float() @ columns.mT.unsqueeze(1)
    return resized.round_().clamp_(0, 255).byte()


def _resampling(start: Tensor, length: Tensor, full: int, size: int, interpolation: str) -> Tensor:
    """Weights (B, size, full) of the pixels of each box in each pixel made of it.

    The filter is widened by the factor of reduction, and cut at the box's border, not the image's.
    """
    ratio = (length.double() / size).view(-1, 1, 1)
    wide = ratio.clamp(min=1)
    centre = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * ratio
    pixel = torch.arange(full, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    weights = _kernel((pixel + 0.5 - centre) / wide, interpolation)
    weights = weights * ((pixel >= 0) & (pixel < length.view(-1, 1, 1)))
    return (weights / weights.sum(-1, keepdim=True)).float()


def _kernel(x: Tensor, interpolation: str) -> Tensor:
    """The triangle, or Keys' cubic with a = -1/2, at distances in pixels of the coarser grid."""
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))


def center_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the centre of images (..., H, W) as a view of ``size``, placed as torchvision does."""
    top = round((images.shape[-2] - size[0]) / 2)
    left = round((images.shape[-1] - size[1]) / 2)
    return images[..., top : top + size[0], left : left + size[1]]
