"""What is left to do once crops are cut: drawn for each example, done in batches on the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.functional import augment, augment_draws

_AT_ONCE = 4
"""Large images that the CPU takes through all steps together: they stay in its cache."""

_LARGE = 30_000  # values of an image


class Drawn(NamedTuple):
    """Parameters of N examples, on the CPU; None for what is not done."""

    flips: Tensor | None
    jitter: augment_draws.ColorJitter | None
    boxes: Tensor | None


class BatchAugmentation:
    """Flip, jitter colours, normalise and erase, every example by parameters of its own.

    Drawing stands apart: who reads an example draws for it, from a generator keyed by the example,
    so that neither order nor batch nor number of processes changes what is done to it.

    Args:
        how: mean and standard deviation.
        device: where batches are made.
        horizontal_flip: probability of mirroring.
        color_jitter: strength of the changes of brightness, contrast and saturation, as in timm.
        erasing: probability of random erasing.
    """

    def __init__(
        self,
        how: Preprocessing,
        device: torch.device,
        horizontal_flip: float = 0.5,
        color_jitter: float = 0.0,
        erasing: float = 0.0,
    ) -> None:
        self.device, self._how = device, how
        self._flip, self._jitter, self._erasing = horizontal_flip, color_jitter, erasing

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Draw the parameters of ``count`` images of ``size`` from a CPU generator."""
        flip, jitter, erasing = self._flip, self._jitter, self._erasing
        return Drawn(
            augment_draws.draw_flips(count, generator, flip) if flip else None,
            augment_draws.draw_color_jitter(count, jitter, generator) if jitter else None,
            augment_draws.draw_erasing_boxes(count, size, generator, erasing) if erasing else None,
        )

    def __call__(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Return float32 (B, C, H, W), contiguous, of uint8 (B, C, H, W) of any memory format."""
        images = images.to(self.device, non_blocking=True)
        if drawn.flips is not None:
            images = augment.flip(images, drawn.flips)
        jitter, boxes = drawn.jitter, drawn.boxes
        if jitter is not None:
            jitter = augment_draws.ColorJitter(*(part.to(self.device) for part in jitter))
        boxes = None if boxes is None else boxes.to(self.device)
        batch = torch.empty(images.shape, dtype=torch.float32, device=self.device)
        in_parts = self.device.type == "cpu" and images.shape[1:].numel() > _LARGE
        step = _AT_ONCE if in_parts else max(1, len(images))
        for first in range(0, len(images), step):
            part = slice(first, first + step)
            one = batch[part].copy_(images[part])
            if jitter is not None:
                augment.color_jitter(
                    one, augment_draws.ColorJitter(*(value[part] for value in jitter))
                )
            augment.normalize_(one, self._how.mean, self._how.std)
            if boxes is not None:
                augment.erase(one, boxes[part])
        return batch


def collate_drawn(
    items: list[tuple[tuple[Tensor, Drawn], int]],
) -> tuple[tuple[Tensor, Drawn], Tensor]:
    """Make a batch of items ((uint8 (C, H, W), parameters of one), int target).

    Images are stacked as they lie in memory, which is channels last.
    """
    images = torch.stack([image.permute(1, 2, 0) for (image, _), _ in items])
    flips, jitters, boxes = zip(*(drawn for (_, drawn), _ in items), strict=True)
    drawn = Drawn(
        None if flips[0] is None else torch.cat(flips),
        None
        if jitters[0] is None
        else augment_draws.ColorJitter(*map(torch.cat, zip(*jitters, strict=True))),
        None if boxes[0] is None else torch.cat(boxes),
    )
    return (images.permute(0, 3, 1, 2), drawn), torch.tensor([target for _, target in items])
