"""Training images kept as pixels at a smaller size, in a mapped file: nothing is decoded again."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from firstlight.datamodules.image_files import decode, for_each_file
from firstlight.datamodules.random_crops import RandomCrops
from firstlight.datamodules.verification import digest_of_files
from firstlight.functional.ranks import Ranks, gather_or_raise

_VERSION = 1
_AT_ONCE = 64  # images in memory while they are written


class ResizedCache:
    """Images by path: uint8 (height, width, 3), read from a mapped file.

    The file is written once, by rank zero under a progress bar, and renamed when complete; its name
    tells the paths, sizes and times of all image files and the size kept, so that changed files are
    written anew. Worker processes share it through the system's page cache. On a folder in memory
    (``/dev/shm``) it is a cache in memory.

    Args:
        paths: of the image files.
        side: the shorter side of what is kept, in pixels; smaller images are kept as they are.
        folder: where the file is. An image of 4 : 3 takes ``4 * side**2`` bytes.

    Raises:
        ValueError: for an image that cannot be decoded; names it. On ranks that only waited for it
            this is a RuntimeError.
        OSError: if the file cannot be written.
    """

    def __init__(self, paths: Sequence[str], side: int, folder: Path) -> None:
        digest = digest_of_files(paths)
        self._file = folder / f"{digest}-{side}-v{_VERSION}.pixels"
        self._table = self._file.with_suffix(".npz")
        ranks, error = Ranks.current(), None
        try:
            if ranks.rank == 0:
                self._write(paths, side)
        except Exception as caught:  # what the others have to hear of, who wait
            error = caught
        gather_or_raise(ranks, {ranks.rank: None}, error)
        self._write(paths, side)  # where rank zero wrote to a disk that this machine does not see
        with self._table.open("rb") as opened, np.load(opened, allow_pickle=False) as table:
            self._keys, self._starts, self._shapes = (
                table[name] for name in ("keys", "starts", "shapes")
            )
        self._pixels: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a worker maps the file itself

    def __getitem__(self, path: str) -> NDArray[np.uint8]:
        if self._pixels is None:
            self._pixels = np.memmap(self._file, np.uint8, "c")  # torch warns of read-only ones
        place = int(np.searchsorted(self._keys, _key(path)))
        if place == len(self._keys) or self._keys[place] != _key(path):
            raise KeyError(f"{path} is not in {self._file}")
        height, width = self._shapes[place].tolist()
        start = int(self._starts[place])
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def _write(self, paths: Sequence[str], side: int) -> None:
        if self._table.is_file() and self._file.is_file():
            return
        from firstlight.runfolder import replacing  # loads pyarrow

        def shrink(path: str) -> NDArray[np.uint8]:
            try:
                return np.asarray(_shrunk(decode(path), side))
            except FileNotFoundError as error:  # an OSError here would be one of writing
                raise ValueError(str(error)) from error

        shapes: list[tuple[int, int]] = []
        with replacing(self._file) as temporary, temporary.open("wb") as file:
            for pixels in for_each_file(shrink, paths, "Resizing images", _AT_ONCE):
                file.write(pixels.tobytes())
                shapes.append((pixels.shape[0], pixels.shape[1]))
            rank_zero_info(
                f"{len(paths)} images of side {side}: {file.tell():,} bytes in {self._file.parent}"
            )
        keys = np.array([_key(path) for path in paths], np.uint64)
        sizes = np.array(shapes, np.int64).prod(axis=1) * 3
        starts = sizes.cumsum() - sizes
        order = keys.argsort()
        with replacing(self._table) as temporary, temporary.open("wb") as file:  # complete now
            np.savez(file, keys=keys[order], starts=starts[order], shapes=np.array(shapes)[order])


class CachedCrops:
    """Random crops of kept images, drawn and resized as `RandomCrops` does of whole ones."""

    def __init__(self, crops: RandomCrops, images: ResizedCache) -> None:
        self._crops, self._images = crops, images

    def __call__(self, path: str) -> Tensor:
        """Return a random crop of one file: uint8 (3, size, size)."""
        return self._crops.of_pixels(self._images[path])


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    shorter = min(image.size)
    if shorter <= side:
        return image
    width, height = (round(length * side / shorter) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _key(path: str) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(os.fsencode(path), digest_size=8).digest(), "little"))
