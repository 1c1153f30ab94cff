"""Training crops of image files: drawn as torchvision draws them, decoded as far as needed."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from firstlight.datamodules.batch_augmentation import BatchAugmentation
from firstlight.datamodules.image_files import Source, content_of, decode_bytes
from firstlight.datamodules.jpeg_regions import Box, Decoder, Jpeg, best_decoder
from firstlight.functional.augment import resize
from firstlight.functional.augment_draws import Draws

DecoderName = Literal["auto", "fast", "pil"]


def choose_decoder(name: DecoderName) -> Decoder | None:
    """Return the decoder of JPEG files that ``name`` means; None for PIL.

    Raises:
        ValueError: for an unknown name.
        ImportError: for ``fast`` where no fast decoder is installed.
    """
    if name not in get_args(DecoderName):
        raise ValueError(f"decoder is one of {get_args(DecoderName)}, got {name!r}")
    found = None if name == "pil" else best_decoder()
    if name == "fast" and found is None:
        raise ImportError(
            "decoder='fast' needs a JPEG decoder: pip install 'firstlight[fast-data]', or "
            "decoder='auto', which takes PIL where there is none"
        )
    return found


class RandomCrops:
    """Reads an image and returns a random crop of it, resized: uint8 (3, size, size).

    The crop is drawn by torchvision's ``RandomResizedCrop`` from torch's global generator, before
    anything is decoded; so it is the same whatever decodes. PIL decodes everything, crops and
    resizes, with antialiasing; that is the reference. A fast decoder decodes the crop alone. Where
    the crop is at least 2, 4 or 8 times as large as ``size`` in both directions, it decodes at
    that part of the size, each edge of the crop moved to the nearest pixel of the reduced image:
    by at most half a pixel of the result. Then torch resizes, with antialiasing. Files that are no
    plain JPEG go to PIL.

    Args:
        size: height and width of the result.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's width over height.
        interpolation: ``bilinear`` or ``bicubic``.
        decoder: a fast decoder of JPEG files; None for PIL.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolation: str,
        decoder: Decoder | None = None,
    ) -> None:
        self._size, self._interpolation, self._decoder = size, interpolation, decoder
        self._random = v2.RandomResizedCrop(size, scale, ratio)

    def __call__(self, source: Source) -> Tensor:
        """Return a random crop of one image.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be decoded; names it.
        """
        content, name = content_of(source)
        jpeg = None if self._decoder is None else self._decoder.header(content)
        if jpeg is None:
            image = decode_bytes(content, name)
            return self._reference(image, self.draw(image.height, image.width))
        box = self.draw(jpeg.height, jpeg.width)
        pixels = self._region(jpeg, box)
        if pixels is None:
            return self._reference(decode_bytes(content, name), box)
        return self._resized(pixels)

    def of_pixels(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return a random crop of an image in memory, (height, width, 3), resized by torch."""
        top, left, height, width = self.draw(pixels.shape[0], pixels.shape[1])
        return self._resized(pixels[top : top + height, left : left + width])

    def draw(self, height: int, width: int) -> Box:
        """Draw the part of an image of this size from torch's global generator."""
        return Box(**self._random.make_params([torch.empty((1, height, width), device="meta")]))

    def _region(self, jpeg: Jpeg, box: Box) -> NDArray[np.uint8] | None:
        assert self._decoder is not None
        by = reduction(box, self._size)
        top, left = (box.top + by // 2) // by, (box.left + by // 2) // by
        bottom = min((box.top + box.height + by // 2) // by, -(-jpeg.height // by))
        right = min((box.left + box.width + by // 2) // by, -(-jpeg.width // by))
        return self._decoder.region(jpeg, Box(top, left, bottom - top, right - left), by)

    def _resized(self, pixels: NDArray[np.uint8]) -> Tensor:
        # a batch of one that is contiguous as channels last: torch resizes it so, twice as fast
        images = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
        resized = resize(images, (self._size, self._size), self._interpolation)[0]
        return resized.clone() if resized.data_ptr() == images.data_ptr() else resized

    def _reference(self, image: Image.Image, box: Box) -> Tensor:
        size, how = [self._size, self._size], InterpolationMode(self._interpolation)
        pixels: Tensor = F.pil_to_tensor(F.resized_crop(image, *box, size, how, antialias=True))
        return pixels


class WithDraws:
    """Reads a crop and then draws, from the same generator, what is to be done to it in a batch."""

    def __init__(self, crops: Callable[[Any], Tensor], augmentation: BatchAugmentation) -> None:
        self._crops, self._augmentation = crops, augmentation

    def __call__(self, source: Source) -> tuple[Tensor, Draws]:
        """Return the crop of one image and parameters for it."""
        crop = self._crops(source)
        size = (crop.shape[1], crop.shape[2])
        return crop, self._augmentation.draw(1, size, torch.default_generator)


def reduction(box: Box, size: int) -> int:
    """Return the largest of 1, 2, 4, 8 by which ``box`` can be divided without losing pixels."""
    return max(by for by in (1, 2, 4, 8) if by == 1 or min(box.height, box.width) >= by * size)
