"""Data sets small enough to live on the training device as uint8, augmented there in batches."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from firstlight.datamodules.arguments import check_crops
from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.batch_augmentation import BatchAugmentation
from firstlight.datamodules.loaders import ResidentLoader
from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.samplers import fixed_order
from firstlight.functional import augment, augment_draws
from firstlight.functional.long_tail import ImbalanceType, long_tailed_counts, long_tailed_indices


class ResidentImages(Dataset[tuple[Tensor, int]]):
    """Images in memory; items are (uint8 (C, H, W), int target).

    Args:
        images: uint8 (N, C, H, W).
        targets: N class numbers.
        classes: names by class number.
    """

    def __init__(self, images: Tensor, targets: list[int], classes: list[str]) -> None:
        self.images, self.targets, self.classes = images, targets, classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]

    def subset(self, index: Tensor) -> "ResidentImages":
        """Return a copy of the examples at ``index``, in that order."""
        return ResidentImages(
            self.images[index], [self.targets[i] for i in index.tolist()], self.classes
        )


class EvaluationPipeline:
    """Chosen images, resized, centre-cropped and normalised."""

    def __init__(self, images: Tensor, how: Preprocessing, device: torch.device) -> None:
        self.device, self._how, self._images = device, how, images.to(device)

    def __call__(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return float32 (B, C, img_size, img_size); nothing is drawn."""
        return prepare(self._images.index_select(0, index), self._how)


def prepare(images: Tensor, how: Preprocessing) -> Tensor:
    """Make float32 inputs (B, C, img_size, img_size) of uint8 images (B, C, H, W)."""
    batch = augment.resize(images, (how.resized, how.resized), how.interpolation)
    batch = augment.center_crop(batch, (how.img_size, how.img_size))
    return augment.normalize(batch, how.mean, how.std)


class TrainingPipeline:
    """Chosen images, each randomly cropped, resized, flipped, normalised and erased.

    Args:
        images: uint8 (N, C, H, W).
        how: size and normalisation.
        device: where images live and batches are made.
        padding: width of the border of zeros that crops may reach into, in original pixels.
        horizontal_flip: whether half of the images are mirrored.
        erasing: probability of random erasing.
        scale: range of a random resized crop's share of the area, in the place of padded crops.
        ratio: range of its width over height.
    """

    def __init__(
        self,
        images: Tensor,
        how: Preprocessing,
        device: torch.device,
        padding: int,
        horizontal_flip: bool,
        erasing: float,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.device, self._how = device, how
        self._size = (images.shape[2], images.shape[3])
        padding = padding if scale is None else 0
        self._images = augment.pad(images.to(device), padding).contiguous()
        self._padding, self._scale, self._ratio = padding, scale, ratio
        self._augment = BatchAugmentation(how, device, 0.5 * horizontal_flip, erasing=erasing)

    def __call__(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return float32 (B, C, img_size, img_size), drawn from ``generator`` alone."""
        size = (self._how.img_size, self._how.img_size)
        batch = self._crop(index, generator, size)
        batch = augment.resize(batch, size, self._how.interpolation)
        return self._augment(batch, self._augment.draw(len(index), size, generator))

    def _crop(self, index: Tensor, generator: torch.Generator, size: tuple[int, int]) -> Tensor:
        """Crops of the original size, or resized ones."""
        count = len(index)
        if self._scale is None:
            offsets = augment_draws.draw_crop_offsets(count, self._padding, generator)
            return augment.crop(self._images, index, offsets.to(self.device), self._size)
        boxes = augment_draws.draw_resized_crops(
            count, self._size, generator, self._scale, self._ratio
        )
        images = self._images.index_select(0, index)
        return augment.resized_crop(images, boxes.to(self.device), size, self._how.interpolation)


class ResidentDataModule(ImageDataModule[ResidentImages]):
    """Base of the small data sets: long-tailed on request, augmented on the training device.

    The whole image is shown in evaluation unless ``crop_pct`` is given: the crops of pretrained
    configurations belong to training by random resized crops, which is done with ``scale`` only.

    Args:
        imbalance_factor: largest class over smallest; None leaves the data as it is.
        imbalance_type: ``exp`` or ``step``.
        imbalance_seed: 0 gives the published subset.
        crop_padding: border of zeros that random crops may reach into, in original pixels.
        scale: range of a random resized crop's share of the image's area, as torchvision's
            ``RandomResizedCrop`` takes it; None: crops of the original size, by ``crop_padding``,
            which has no effect otherwise.
        ratio: range of such a crop's width over height.
        horizontal_flip: whether to mirror half of the training images.
        erasing: probability of random erasing.
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        imbalance_factor: float | None = None,
        imbalance_type: ImbalanceType = "exp",
        imbalance_seed: int = 0,
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        erasing: float = 0.0,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if crop_padding < 0:
            raise ValueError(f"crop_padding is a number of pixels, got {crop_padding}")
        check_crops((1, 1) if scale is None else scale, ratio)
        if not 0 <= erasing <= 1:
            raise ValueError(f"erasing is a probability, got {erasing}")
        if imbalance_factor is not None:  # refuses what can be refused before data is read
            long_tailed_counts(2, 2**62, imbalance_factor, imbalance_type)
        self.imbalance_factor, self.imbalance_type = imbalance_factor, imbalance_type
        self.imbalance_seed = imbalance_seed
        self.crop_padding, self.horizontal_flip = crop_padding, horizontal_flip
        self.erasing, self.scale, self.ratio = erasing, scale, ratio

    def _kept(self, targets: list[int], classes: list[str]) -> Tensor:
        """Indices of the long-tailed construction, or all; every ``_read`` applies them."""
        if self.imbalance_factor is None:
            return torch.arange(len(targets))
        return long_tailed_indices(
            targets, self.imbalance_factor, self.imbalance_type, self.imbalance_seed, classes
        )

    def _train_loader(self, data: ResidentImages) -> ResidentLoader:
        pipeline = TrainingPipeline(
            data.images,
            self.preprocessing,
            self._device,
            self.crop_padding,
            self.horizontal_flip,
            self.erasing,
            self.scale,
            self.ratio,
        )
        sampler = self._train_sampler(data)
        return ResidentLoader(data, pipeline, sampler, self.batch_size, self.seed, self.drop_last)

    def _eval_loader(self, data: ResidentImages, shared: bool = True) -> ResidentLoader:
        pipeline = EvaluationPipeline(data.images, self.preprocessing, self._device)
        sampler = fixed_order(data, *(self._shard if shared else (1, 0)))
        return ResidentLoader(data, pipeline, sampler, self.eval_batch_size)
