"""CIFAR-10 and CIFAR-100, long-tailed on request."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torchvision import datasets

from firstlight.datamodules.image_files import (
    LabelledFiles,
    class_folders,
    decode,
    for_each_file,
    scan_classes,
)
from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.resident import ResidentDataModule, ResidentImages
from firstlight.datamodules.splits import Sources

_SIZE = 32


class _CIFARDataModule(ResidentDataModule):
    """What both CIFARs share; ``torchvision_class`` says which."""

    torchvision_class: ClassVar[Any]

    def __init__(self, root: str, download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.download = Path(root), download
        # long-tail papers normalise both CIFARs with these
        mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
        self._settle_preprocessing(
            Preprocessing(_SIZE, 1.0, "bilinear", mean, std), follow_crop=False
        )

    @property
    def _archive(self) -> Path:
        return self.root / str(self.torchvision_class.base_folder)

    @property
    def _is_tree(self) -> bool:
        return (self.root / "train").is_dir()

    def prepare_data(self) -> None:
        """Download, if asked to and nothing is there; torchvision compares the checksum."""
        if self.download and not self._is_tree:
            self.torchvision_class(self.root, train=True, download=True)

    def _names_for_prediction(self) -> list[str] | None:
        if self._is_tree:
            return class_folders(self.root / "train")
        return self._read_archive(train=False).classes if self._archive.is_dir() else None

    def _read(self) -> Sources[ResidentImages]:
        if self._is_tree:
            return self._read_tree()
        if not self._archive.is_dir():
            if not self.download:
                raise FileNotFoundError(self._missing())
            self.prepare_data()
        train, test = self._read_archive(train=True), self._read_archive(train=False)
        return Sources(train.subset(self._kept(train.targets, train.classes)), None, test)

    def _missing(self) -> str:
        name = self.torchvision_class.__name__
        return (
            f"no {name} under {self.root.absolute()}. Understood are:\n"
            f"  {self._archive}  (torchvision's; made by download=True, --data.download=true)\n"
            f"  {self.root}/train/<class>/*.png|jpg and {self.root}/test/<class>/*.png|jpg\n"
            "Point root (--data.root) to one of them, or switch the download on."
        )

    def _read_archive(self, train: bool) -> ResidentImages:
        try:
            data = self.torchvision_class(self.root, train=train)
        except RuntimeError as error:
            raise ValueError(
                f"{self._archive} is incomplete or altered ({error}): remove the folder and load "
                "it again with download=True"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ResidentImages(images, list(data.targets), list(data.classes))

    def _read_tree(self) -> Sources[ResidentImages]:
        if not (self.root / "test").is_dir():
            raise FileNotFoundError(f"{self.root} has train/ but no test/: add the test images")
        train = scan_classes(self.root / "train")
        test = scan_classes(self.root / "test", train.classes)
        if missing := sorted(set(train.classes) - set(class_folders(self.root / "test"))):
            raise ValueError(f"{self.root / 'test' / missing[0]} is missing: train has that class")
        kept = self._kept(train.targets, train.classes).tolist()  # the others need no decoding
        train = LabelledFiles(
            [train.paths[i] for i in kept], [train.targets[i] for i in kept], train.classes
        )
        return Sources(_read_files(train, "train"), None, _read_files(test, "test"))


def _read_files(files: LabelledFiles, name: str) -> ResidentImages:
    images = np.empty((len(files.paths), _SIZE, _SIZE, 3), dtype=np.uint8)
    for position, pixels in enumerate(for_each_file(_pixels, files.paths, f"Reading {name}")):
        images[position] = pixels
    stacked = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return ResidentImages(stacked, files.targets, files.classes)


def _pixels(path: str) -> np.ndarray[Any, Any]:
    image = decode(path)
    if image.size != (_SIZE, _SIZE):
        raise ValueError(
            f"{path} has {image.size[0]} x {image.size[1]} pixels, CIFAR images have {_SIZE} x "
            f"{_SIZE}: for other sizes use ImageFolderDataModule"
        )
    return np.asarray(image)


class CIFAR10DataModule(_CIFARDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Held in memory and augmented on the training device: random crop with zero padding, flip.

    Args:
        root: folder with ``cifar-10-batches-py`` (torchvision's), or with
            ``train/<class>/*.{png,jpg}`` and ``test/<class>/*.{png,jpg}``.
        download: fetch torchvision's archive into ``root`` if there is nothing.
        **kwargs: the arguments of `ResidentDataModule` (``imbalance_factor``,
            ``imbalance_type``, ``crop_padding``, ``erasing``...) and `ImageDataModule`.
    """

    torchvision_class = datasets.CIFAR10

    def __init__(self, root: str = "data/cifar10", download: bool = False, **kwargs: Any) -> None:
        super().__init__(root=root, download=download, **kwargs)


class CIFAR100DataModule(_CIFARDataModule):
    """CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes.

    Args:
        root: folder with ``cifar-100-python`` (torchvision's), or with
            ``train/<class>/*.{png,jpg}`` and ``test/<class>/*.{png,jpg}``.
        download: fetch torchvision's archive into ``root`` if there is nothing.
        **kwargs: as for `CIFAR10DataModule`.
    """

    torchvision_class = datasets.CIFAR100

    def __init__(self, root: str = "data/cifar100", download: bool = False, **kwargs: Any) -> None:
        super().__init__(root=root, download=download, **kwargs)
