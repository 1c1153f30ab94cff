"""A grid of training images as the network sees them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from firstlight.figures.palette import save

LONGEST = 18
"""Letters of a class name that fit above an image."""


def training_images_figure(
    images: Tensor,
    targets: Tensor,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    file: Path,
    columns: int = 8,
) -> Path:
    """Draw images with the names of their classes, normalisation undone.

    Args:
        images: float (N, C, H, W), normalised by ``mean`` and ``std``.
        targets: class numbers (N,), or probabilities (N, classes) of mixed images, of which the
            two largest are named.
        classes: names by class number.
        mean: per channel.
        std: per channel.
        file: the PNG to write; an SVG of the same name stands beside it.
        columns: images in a row.
    """
    shape = (1, -1, 1, 1)
    shown = images.float() * images.new_tensor(std).view(shape) + images.new_tensor(mean).view(
        shape
    )
    pixels = shown.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(1.35 * columns, 1.6 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, target in zip(grid.flat, pixels, targets, strict=False):
        axes.imshow(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
        axes.set_title(_name(target, classes), fontsize=7)
    figure.suptitle(
        f"{len(pixels)} training images as the network sees them: {pixels.shape[2]} x "
        f"{pixels.shape[1]} pixels, augmented",
        fontsize=10,
    )
    return save(figure, file)


def _name(target: Tensor, classes: Sequence[str]) -> str:
    if target.ndim == 0:
        return _short(classes[int(target)])
    shares, labels = target.topk(min(2, len(target)))
    return "\n".join(
        f"{_short(classes[int(label)])} {100 * share:.0f} %"
        for share, label in zip(shares.tolist(), labels, strict=True)
        if share > 0
    )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
