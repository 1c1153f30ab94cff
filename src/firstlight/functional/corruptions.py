"""Common corruptions of images in five severities (Hendrycks and Dietterich, arXiv 1903.12261).

Thirteen of the published nineteen, those that need no pictures of frost and no ImageMagick. The
formulas and parameters are those of ImageNet-C for images above 64 pixels and those of CIFAR-10-C
for smaller ones; the random draws are our own, so that images are equal in distribution (noise,
fog) or in every pixel up to rounding (the others), not byte by byte. ImageNet-C's files were then
saved as JPEG of quality 85, which is not done here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.float64]
"""An image (H, W, C) on the scale 0 to 1."""

LARGEST_SMALL = 64
"""Height or width up to which an image is corrupted as CIFAR's are."""

PUBLISHED = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
"""The nineteen published corruptions; the fifteen of the benchmark are all but ``extra``."""

BENCHMARK = tuple(name for group, names in PUBLISHED.items() if group != "extra" for name in names)


@dataclass(frozen=True)
class Corruption:
    """A corruption and its parameter by severity.

    Attributes:
        apply: maps pixels, the parameter and a generator to pixels, which are then clipped.
        large: parameters for severities 1 to 5 of ImageNet-C.
        small: those of CIFAR-10-C.
    """

    apply: Callable[[Pixels, Any, np.random.Generator], Pixels]
    large: tuple[Any, ...]
    small: tuple[Any, ...]


def corrupt(
    image: NDArray[np.uint8], name: str, severity: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Corrupt one image.

    Args:
        image: uint8 (H, W, C), C of 1 or 3; square for ``zoom_blur``.
        name: a key of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: what is random is drawn from it.

    Returns:
        A new array like ``image``; values between grey levels are cut off, as published.

    Raises:
        KeyError: for an unknown name.
    """
    how = CORRUPTIONS[name]
    parameter = (how.small if max(image.shape[:2]) <= LARGEST_SMALL else how.large)[severity - 1]
    pixels = how.apply(image / 255.0, parameter, generator)
    return (pixels.clip(0, 1) * 255).astype(np.uint8)


def _gaussian_noise(x: Pixels, scale: float, generator: np.random.Generator) -> Pixels:
    return x + generator.normal(size=x.shape, scale=scale)


def _shot_noise(x: Pixels, photons: float, generator: np.random.Generator) -> Pixels:
    return generator.poisson(x * photons) / photons


def _impulse_noise(x: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    hit = generator.random(x.shape) < share
    return np.where(hit, generator.random(x.shape) < 0.5, x)


def _speckle_noise(x: Pixels, scale: float, generator: np.random.Generator) -> Pixels:
    return x + x * generator.normal(size=x.shape, scale=scale)


def _gaussian_blur(x: Pixels, sigma: float, _: object) -> Pixels:
    blurred: Pixels = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4)
    return blurred


def _defocus_blur(x: Pixels, disk: tuple[float, float], _: object) -> Pixels:
    """Convolve with a disk whose edge is smoothed; ``disk``: its radius, and what smooths it."""
    blurred: Pixels = ndimage.correlate(x, _smoothed_disk(*disk)[..., None], mode="mirror")
    return blurred


def _smoothed_disk(radius: float, sigma: float) -> Pixels:
    half, reach = (1, 8) if radius <= 8 else (2, int(radius))
    at = np.arange(-reach, reach + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    disk /= disk.sum()
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, kernel, axis, mode="mirror")
    zeros = max(0, reach - int(radius) - half)
    # The sum is 1.01 at the largest radius, as published.
    smoothed: Pixels = disk[zeros : len(disk) - zeros, zeros : len(disk) - zeros]
    return smoothed


def _zoom_blur(x: Pixels, zooms: tuple[float, ...], _: object) -> Pixels:
    """Average the image with its own centre at several enlargements, bilinear ones."""
    enlarge = _enlarging(len(x), zooms)[:, None]
    planes = x.transpose(2, 0, 1)
    total: Pixels = (enlarge @ planes @ enlarge.swapaxes(2, 3)).sum(0) + planes
    return total.transpose(1, 2, 0) / (len(zooms) + 1)


@lru_cache(maxsize=16)
def _enlarging(side: int, zooms: tuple[float, ...]) -> Pixels:
    """Matrices (Z, side, side) that enlarge the middle of a row of pixels to all of it."""
    matrices = np.empty((len(zooms), side, side))
    for matrix, zoom in zip(matrices, zooms, strict=True):
        kept = int(np.ceil(side / zoom))
        top = (side - kept) // 2
        large = ndimage.zoom(np.eye(side)[top : top + kept], (zoom, 1), order=1)
        top = (len(large) - side) // 2
        matrix[:] = large[top : top + side]
    return matrices


def _fog(x: Pixels, fog: tuple[float, float], generator: np.random.Generator) -> Pixels:
    """Add a cloud of height ``fog[0]``, whose roughness decays by ``fog[1]`` per scale."""
    height, decay = fog
    size = 1 << (max(x.shape[:2]) - 1).bit_length()
    cloud = _cloud(size, decay, generator)[: x.shape[0], : x.shape[1], None]
    brightest = float(x.max())
    return (x + height * cloud) * brightest / (brightest + height)


def _cloud(size: int, decay: float, generator: np.random.Generator) -> Pixels:
    """Midpoint displacement (diamond-square) on a torus of ``size`` (a power of 2), from 0 to 1.

    Displacements are uniform within the square of ``rough``, which ``decay`` divides at each scale.
    """
    field, step, rough = np.zeros((size, size)), size, 100.0

    def middle(four: Pixels) -> Pixels:
        return four / 4 + rough**2 * generator.uniform(-1, 1, four.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = middle(pairs + np.roll(pairs, -1, 1))
        centres = field[half::step, half::step]
        field[::step, half::step] = middle(
            centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        )
        field[half::step, ::step] = middle(
            centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        )
        step, rough = half, rough / decay
    field -= field.min()
    cloud: Pixels = field / field.max()
    return cloud


def _brightness(x: Pixels, added: float, _: object) -> Pixels:
    """Add to the value of HSV: hue and saturation stay."""
    value: Pixels = x.max(2, keepdims=True)
    brighter = (value + added).clip(0, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _saturate(x: Pixels, change: tuple[float, float], _: object) -> Pixels:
    """Scale and shift the saturation of HSV; grey, which has no hue, turns to red as published."""
    if x.shape[2] == 1:
        return x
    value: Pixels = x.max(2, keepdims=True)
    low: Pixels = x.min(2, keepdims=True)
    saturation = (value - low) / np.where(value > 0, value, 1)
    factor, added = change
    wanted = (saturation * factor + added).clip(0, 1)
    red = value * np.concatenate([np.ones_like(wanted), 1 - wanted, 1 - wanted], axis=2)
    coloured = saturation > 0
    moved = value - (value - x) * wanted / np.where(coloured, saturation, 1)
    result: Pixels = np.where(coloured, moved, red)
    return result


def _contrast(x: Pixels, factor: float, _: object) -> Pixels:
    mean: Pixels = x.mean((0, 1), keepdims=True)
    return (x - mean) * factor + mean


def _pixelate(x: Pixels, share: float, _: object) -> Pixels:
    height, width = x.shape[:2]
    small = _image(x).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return _pixels(small.resize((width, height), Image.Resampling.BOX))


def _jpeg_compression(x: Pixels, quality: int, _: object) -> Pixels:
    file = BytesIO()
    _image(x).save(file, "JPEG", quality=quality)
    return _pixels(Image.open(file))


def _image(x: Pixels) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8).squeeze(2 if x.shape[2] == 1 else ()))


def _pixels(image: Image.Image) -> Pixels:
    # A little above the grey level, that cutting off what is between two of them finds it again.
    return (np.atleast_3d(np.asarray(image)) + 1e-6) / 255


def _up_to(end: float, step: float = 0.01) -> tuple[float, ...]:
    return tuple(np.arange(1, end, step).tolist())


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        _gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)
    ),
    "shot_noise": Corruption(_shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(
        _impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)
    ),
    "defocus_blur": Corruption(
        _defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "zoom_blur": Corruption(
        _zoom_blur,
        (_up_to(1.11), _up_to(1.16), _up_to(1.21, 0.02), _up_to(1.26, 0.02), _up_to(1.31, 0.03)),
        (_up_to(1.06), _up_to(1.11), _up_to(1.16), _up_to(1.21), _up_to(1.26)),
    ),
    "fog": Corruption(
        _fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(_jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
    "speckle_noise": Corruption(
        _speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6), (0.06, 0.1, 0.12, 0.16, 0.2)
    ),
    "gaussian_blur": Corruption(_gaussian_blur, (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "saturate": Corruption(
        _saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ),
}
"""What `corrupt` knows by name: ten of the benchmark's fifteen, and three of the extra four."""
