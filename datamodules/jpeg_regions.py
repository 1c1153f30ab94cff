"""Parts of JPEG files, decoded at 1, 1/2, 1/4 or 1/8 of the size, by libjpeg-turbo.

libturbojpeg 3 decodes only what a region needs: rows below it are not read, of the rest only the
entropy coding is. It is called through ctypes; no binding that the registry has offers it. Where
there is none, simplejpeg decodes the whole image. Both give PIL's pixels, which come from
libjpeg-turbo too.
"""

import ctypes
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Iterator
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_START, _END = b"\xff\xd8", b"\xff\xd9"
_MARGIN = 2  # pixels around a region that the smoothing of chroma looks at

# of turbojpeg.h
_DECOMPRESS, _RGB = 1, 0
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLORS, _LOSSLESS = (
    *(0, 4, 5, 6, 7, 8),
    15,
)
_BLOCK_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # of 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
_RGB_YCC_GREY = (0, 1, 2)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Jpeg(NamedTuple):
    """A JPEG file that can be decoded in parts."""

    content: bytes
    width: int
    height: int
    subsampling: int


class Decoder(Protocol):
    """Decodes parts of JPEG files."""

    name: str

    def header(self, content: bytes) -> Jpeg | None:
        """Return what is known before decoding; None for a file that is left to PIL.

        Those are files of other formats, CMYK, more than 8 bits, no end marker (they may be
        truncated), and more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
        """
        ...

    def region(self, jpeg: Jpeg, box: Box, reduction: int) -> NDArray[np.uint8] | None:
        """Decode ``box`` of the image at 1 / ``reduction`` of its size.

        Args:
            jpeg: of `header`.
            box: in pixels of the reduced image, ``ceil(side / reduction)`` a side.
            reduction: 1, 2, 4 or 8.

        Returns:
            RGB, (height, width, 3), valid until the next call in this thread; None where the
            decoder met any irregularity.
        """
        ...


@cache
def best_decoder() -> Decoder | None:
    """Return the fastest decoder that is installed: regions before whole images; or None."""
    for path in _libraries():
        try:
            return TurboJpeg(path)
        except (OSError, AttributeError):  # does not load, or is older than 3
            continue
    return SimpleJpeg() if importlib.util.find_spec("simplejpeg") else None


def _libraries() -> Iterator[str]:
    """Where libturbojpeg may be: $TURBOJPEG, the environment, the system, the wheel turbojpeg."""
    yield from filter(None, [os.environ.get("TURBOJPEG")])
    yield from map(str, sorted(Path(sys.prefix, "lib").glob("libturbojpeg.*")))
    yield from filter(None, [find_library("turbojpeg")])
    wheel = importlib.util.find_spec("turbojpeg")
    if wheel is not None and wheel.origin is not None:
        yield from map(str, Path(wheel.origin).parent.glob("turbojpeg.libs/*turbojpeg*"))


def _may_be_decoded(content: bytes) -> bool:
    return content.startswith(_START) and content.endswith(_END)


def _bounded(width: int, height: int) -> bool:
    return width * height <= (Image.MAX_IMAGE_PIXELS or width * height)


class _Scaling(ctypes.Structure):
    _fields_ = (("num", ctypes.c_int), ("denom", ctypes.c_int))


class _Region(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in "xywh")


class TurboJpeg(threading.local):
    """libturbojpeg 3 or later.

    Args:
        path: of the library.

    Raises:
        OSError: if it cannot be loaded.
        AttributeError: if it is older.
    """

    name = "libturbojpeg (regions)"

    def __init__(self, path: str) -> None:
        self._path, self._library = path, ctypes.CDLL(path)
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for name, *arguments in (
            ("tj3Init", number),
            ("tj3Destroy", pointer),
            ("tj3Set", pointer, number, number),
            ("tj3Get", pointer, number),
            ("tj3DecompressHeader", pointer, ctypes.c_char_p, size),
            ("tj3SetScalingFactor", pointer, _Scaling),
            ("tj3SetCroppingRegion", pointer, _Region),
            ("tj3Decompress8", pointer, ctypes.c_char_p, size, pointer, number, number),
        ):
            getattr(self._library, name).argtypes = arguments
        self._library.tj3Init.restype = pointer
        self._library.tj3Destroy.restype = None
        self._memory = np.empty(0, np.uint8)  # new memory for every image costs a tenth of the time
        self._handle: int | None = None
        self._renew()

    def __reduce__(self) -> tuple[Any, ...]:
        """How worker processes get it that are not forked."""
        return TurboJpeg, (self._path,)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.tj3Destroy(self._handle)

    def header(self, content: bytes) -> Jpeg | None:
        """See `Decoder`."""
        if not _may_be_decoded(content):
            return None
        if not self._begun(content):
            return None
        wanted = (_WIDTH, _HEIGHT, _SUBSAMPLING, _COLORS, _PRECISION, _LOSSLESS)
        found = (self._library.tj3Get(self._handle, parameter) for parameter in wanted)
        width, height, subsampling, colors, precision, lossless = found
        plain = precision == 8 and not lossless and colors in _RGB_YCC_GREY
        if not (plain and 0 <= subsampling < len(_BLOCK_WIDTHS) and _bounded(width, height)):
            return None
        return Jpeg(content, width, height, subsampling)

    def _renew(self) -> None:
        """Begin with a new handle; after an error the old one misreads the next image."""
        self._library.tj3Destroy(self._handle)
        self._handle = self._library.tj3Init(_DECOMPRESS)
        # what PIL would pass over is left to PIL
        self._library.tj3Set(self._handle, _STOP_ON_WARNING, 1)
        self._current: bytes | None = None  # whose header the handle holds

    def _begun(self, content: bytes) -> bool:
        if self._current is not content:
            if self._library.tj3DecompressHeader(self._handle, content, len(content)) < 0:
                self._renew()
                return False
            self._current = content
        return True

    def region(self, jpeg: Jpeg, box: Box, reduction: int) -> NDArray[np.uint8] | None:
        """See `Decoder`."""
        library, content = self._library, jpeg.content
        width, height = -(-jpeg.width // reduction), -(-jpeg.height // reduction)
        block = max(1, _BLOCK_WIDTHS[jpeg.subsampling] // reduction)
        x, y = max(0, box.left - _MARGIN) // block * block, max(0, box.top - _MARGIN)
        right = min(width, box.left + box.width + _MARGIN)
        bottom = min(height, box.top + box.height + _MARGIN)
        shape = (bottom - y, right - x, 3)
        if math.prod(shape) > self._memory.size:
            self._memory = np.empty(math.prod(shape), np.uint8)
        pixels = self._memory[: math.prod(shape)].reshape(shape)
        done = (
            self._begun(content)
            and library.tj3SetScalingFactor(self._handle, _Scaling(1, reduction)) == 0
            and library.tj3SetCroppingRegion(self._handle, _Region(x, y, right - x, bottom - y))
            == 0
            and library.tj3Decompress8(
                self._handle, content, len(content), pixels.ctypes.data, 0, _RGB
            )
            == 0
        )
        if not done:
            self._renew()
            return None
        top, left = box.top - y, box.left - x
        return pixels[top : top + box.height, left : left + box.width]


class SimpleJpeg:
    """simplejpeg, which decodes whole images."""

    name = "simplejpeg (whole images)"

    def header(self, content: bytes) -> Jpeg | None:
        """See `Decoder`."""
        import simplejpeg

        if not _may_be_decoded(content):
            return None
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        except ValueError:
            return None
        plain = colors in ("RGB", "YCbCr", "Gray") and _bounded(width, height)
        return Jpeg(content, width, height, 0) if plain else None

    def region(self, jpeg: Jpeg, box: Box, reduction: int) -> NDArray[np.uint8] | None:
        """See `Decoder`."""
        import simplejpeg

        least = (-(-jpeg.height // reduction), -(-jpeg.width // reduction))
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                jpeg.content, "RGB", min_height=least[0], min_width=least[1]
            )
        except ValueError:
            return None
        if pixels.shape[:2] != least:
            return None
        return pixels[box.top : box.top + box.height, box.left : box.left + box.width]
