"""What is in an image file, found by decoding it once."""

import hashlib
import warnings
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from firstlight.datamodules.image_files import DAMAGE, Encoded, Source, content_of, decode_bytes

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
}
"""Suffixes that say the truth about a format."""

_UPRIGHT = 1


class ImageFacts(NamedTuple):
    """One image file.

    Attributes:
        path: the file.
        size: bytes.
        format: as PIL names it, such as ``JPEG``; None where the file could not be opened.
        mode: PIL's, such as ``RGB`` or ``CMYK``.
        width: pixels.
        height: pixels.
        frames: more than one in an animation, of which training sees the first.
        orientation: EXIF's; other than 1 where a viewer turns the image. Training does not, as
            torchvision and timm do not.
        pixels: SHA-256 of the size and the decoded RGB values, equal where two files hold the
            same picture; None where decoding failed.
        problem: why the file cannot be read; None where it can.
    """

    path: str
    size: int = 0
    format: str | None = None
    mode: str | None = None
    width: int = 0
    height: int = 0
    frames: int = 1
    orientation: int = _UPRIGHT
    pixels: str | None = None
    problem: str | None = None


def examine(source: Source) -> ImageFacts:
    """Decode one image as training does and say what it is; damage is described, not raised.

    Cost: one decode. The trap: the same picture encoded twice by a lossy codec has different
    pixels; such pairs are not found.
    """
    path = source.name if isinstance(source, Encoded) else source
    facts = ImageFacts(path)
    try:
        content = content_of(source).content
        facts = facts._replace(size=len(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is reported
            with Image.open(BytesIO(content)) as image:
                facts = facts._replace(
                    format=image.format,
                    mode=image.mode,
                    width=image.width,
                    height=image.height,
                    frames=getattr(image, "n_frames", 1),
                    orientation=image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT),
                )
            return facts._replace(pixels=pixel_hash(np.asarray(decode_bytes(content, path))))
    except DAMAGE as error:
        return facts._replace(problem=f"{type(error).__name__}: {error}".replace(path, "it"))


def pixel_hash(pixels: "np.typing.NDArray[np.uint8]") -> str:
    """SHA-256 of an image's shape and values."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()
