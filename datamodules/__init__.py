"""FROM WHERE examples come: LightningDataModules for image classification."""

from firstlight.datamodules.array_shifts import CIFARC, MNISTC
from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from firstlight.datamodules.corrupted import Corrupted
from firstlight.datamodules.digits import DigitsDataModule
from firstlight.datamodules.folder_shifts import ImageFolderShift, ImageNetC
from firstlight.datamodules.image_folder import ImageFolderDataModule
from firstlight.datamodules.imagenet import ImageNetDataModule
from firstlight.datamodules.inaturalist import INaturalistDataModule
from firstlight.datamodules.mnist import MNISTDataModule
from firstlight.datamodules.shifts import Shift
from firstlight.datamodules.streamed import StreamedDataModule

__all__ = [
    "CIFARC",
    "MNISTC",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "Corrupted",
    "DigitsDataModule",
    "INaturalistDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageFolderShift",
    "ImageNetC",
    "ImageNetDataModule",
    "MNISTDataModule",
    "Shift",
    "StreamedDataModule",
]
