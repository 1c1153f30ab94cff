"""MNIST, from its IDX files."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets

from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.resident import ResidentDataModule, ResidentImages
from firstlight.datamodules.splits import Sources

_MEAN, _STD = 0.1307, 0.3081  # of the training pixels, on the scale 0 to 1
_NAMES = [str(digit) for digit in range(10)]
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class MNISTDataModule(ResidentDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28 pixels.

    Held in memory and augmented on the training device. Other data of the same format
    (Fashion-MNIST, KMNIST) are read alike; their classes keep the names 0 to 9.

    Args:
        root: folder of the four IDX files, packed (``.gz``) or not, or of torchvision's
            ``MNIST/raw`` with them.
        download: fetch torchvision's files into ``root`` if there is nothing.
        channels: 3 (the grey image three times, as most networks expect) or 1.
        crop_padding: border of zeros that random crops may reach into.
        horizontal_flip: off, because a mirrored digit is another shape.
        **kwargs: the arguments of `ResidentDataModule` and `ImageDataModule`.
    """

    def __init__(
        self,
        root: str = "data/mnist",
        download: bool = False,
        channels: int = 3,
        crop_padding: int = 2,
        horizontal_flip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(crop_padding=crop_padding, horizontal_flip=horizontal_flip, **kwargs)
        if channels not in (1, 3):
            raise ValueError(f"channels is 3 or 1, got {channels}")
        self.root, self.download, self.channels = Path(root), download, channels
        self._settle_preprocessing(
            Preprocessing(28, 1.0, "bilinear", (_MEAN,) * channels, (_STD,) * channels),
            follow_crop=False,
        )

    def _file(self, name: str) -> Path | None:
        folders = (self.root, self.root / "MNIST" / "raw")
        # the packages of some mirrors have a dot before idx
        spellings = [s + end for s in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        places = (folder / spelling for folder in folders for spelling in spellings)
        return next((place for place in places if place.is_file()), None)

    def prepare_data(self) -> None:
        """Download, if asked to and nothing is there; torchvision compares checksums."""
        if self.download and self._file(_FILES["train"][0]) is None:
            datasets.MNIST(str(self.root), download=True)

    def _names_for_prediction(self) -> list[str]:
        return list(_NAMES)

    def _read(self) -> Sources[ResidentImages]:
        self.prepare_data()
        train, test = self._read_split("train"), self._read_split("test")
        return Sources(train.subset(self._kept(train.targets, train.classes)), None, test)

    def _read_split(self, split: str) -> ResidentImages:
        paths = [self._file(name) for name in _FILES[split]]
        for name, path in zip(_FILES[split], paths, strict=True):
            if path is None:
                raise FileNotFoundError(
                    f"no {name} (nor .gz) under {self.root.absolute()}, nor in its folder "
                    "MNIST/raw: point root (--data.root) to the four IDX files, or switch the "
                    "download on (download=True, --data.download true)"
                )
        images, labels = (read_idx(path) for path in paths if path is not None)
        if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
            raise ValueError(
                f"{paths[0]} has shape {images.shape}, {paths[1]} {labels.shape} with labels up to "
                f"{labels.max(initial=0)}: MNIST has (n, 28, 28) and (n,) with labels 0 to 9"
            )
        grey = torch.from_numpy(images).unsqueeze(1)
        pixels = grey.expand(-1, self.channels, -1, -1).contiguous()
        return ResidentImages(pixels, labels.tolist(), list(_NAMES))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, packed by gzip where it is called ``.gz``.

    Raises:
        ValueError: for a file that is damaged, truncated or of another kind; names it.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): load it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes: it begins with {raw[:4]!r}")
    dims = raw[3]
    begin = 4 + 4 * dims
    shape = struct.unpack(f">{dims}I", raw[4:begin]) if len(raw) >= begin else ()
    if len(raw) - begin != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"{path} has {len(raw) - begin} bytes of data; its header says {shape}: it is "
            "truncated or altered, load it again"
        )
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(shape).copy()
