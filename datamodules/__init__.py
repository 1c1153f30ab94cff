"""FROM WHERE examples come: LightningDataModules for image classification."""

from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from firstlight.datamodules.digits import DigitsDataModule
from firstlight.datamodules.image_folder import ImageFolderDataModule
from firstlight.datamodules.imagenet import ImageNetDataModule
from firstlight.datamodules.inaturalist import INaturalistDataModule

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "INaturalistDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
]
