"""What is left to do once crops are cut: drawn for each example, done in batches on the device."""

import torch
from torch import Tensor

from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.functional import augment_draws
from firstlight.functional.augment import augment
from firstlight.functional.augment_draws import Draws
from firstlight.functional.augment_singly import augment_singly

_LARGE = 30_000
"""Values of an image from which on one after another is faster on a CPU than all together."""


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

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw the parameters of ``count`` images of ``size`` from a CPU generator."""
        flip, jitter, erasing = self._flip, self._jitter, self._erasing
        return Draws(
            augment_draws.draw_flips(count, generator, flip) if flip else None,
            augment_draws.draw_color_jitter(count, jitter, generator) if jitter else None,
            augment_draws.draw_erasing_boxes(count, size, generator, erasing) if erasing else None,
        )

    def __call__(self, images: Tensor, drawn: Draws) -> Tensor:
        """Return float32 (B, C, H, W), contiguous, of uint8 (B, C, H, W) of any memory format."""
        large = images.shape[1:].numel() > _LARGE
        make = augment_singly if large and self.device.type == "cpu" else augment
        images = images.to(self.device, non_blocking=True)
        return make(images, drawn.to(self.device), self._how.mean, self._how.std)


def collate_drawn(
    items: list[tuple[tuple[Tensor, Draws], int]],
) -> tuple[tuple[Tensor, Draws], Tensor]:
    """Make a batch of items ((uint8 (C, H, W), parameters of one), int target).

    Images are stacked as they lie in memory, which is channels last.
    """
    images = torch.stack([image.permute(1, 2, 0) for (image, _), _ in items])
    drawn = Draws.joined([draws for (_, draws), _ in items])
    return (images.permute(0, 3, 1, 2), drawn), torch.tensor([target for _, target in items])
