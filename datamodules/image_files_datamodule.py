"""What the DataModules of image files share: decoded in workers, augmented on the device."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from firstlight.datamodules.arguments import check_crops
from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.batch_augmentation import BatchAugmentation, collate_drawn
from firstlight.datamodules.image_files import ImageFiles, LabelledFiles
from firstlight.datamodules.loaders import ResumableDataLoader
from firstlight.datamodules.preprocessing import Preprocessing, evaluation_transform
from firstlight.datamodules.random_crops import DecoderName, RandomCrops, WithDraws, choose_decoder
from firstlight.datamodules.resized_cache import CachedCrops, ResizedCache
from firstlight.datamodules.samplers import fixed_order
from firstlight.datamodules.splits import Sources
from firstlight.datamodules.verification import (
    KEPT_FROM,
    OnBadImage,
    check_policy,
    without_bad_images,
)

IMAGENET_PREPROCESSING = Preprocessing(
    224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
"""What timm takes where a model says nothing."""


class ImageFilesDataModule(ImageDataModule[ImageFiles]):
    """Base of the DataModules that read image files; a subclass finds them.

    Worker processes decode random crops of the training images, resized, as uint8; the rest is done
    in batches on the training device: flips, colours, normalisation, erasing. Evaluation images are
    decoded by PIL and prepared as timm's ``create_transform`` does. EXIF orientation is ignored, as
    torchvision and timm ignore it.

    Args:
        verify: decode every file once in ``setup``, so that a bad one is found before training;
            None: if there are at most 5,000, or with ``on_bad_image="skip"``. Results for more are
            kept in the user's cache folder, until a file's size or time changes.
        scale: range of a training crop's share of the image's area.
        ratio: range of a training crop's width over height.
        horizontal_flip: probability of mirroring a training image.
        color_jitter: strength of random changes of brightness, contrast and saturation, as timm's.
        erasing: probability of random erasing.
        decoder: of training images. ``pil``: all of each file, the reference; ``fast``: the part of
            a JPEG file that the crop needs, by the extra ``fast-data``; ``auto``: fast if it is
            installed. Crops are the same; pixels differ as `RandomCrops` says.
        on_bad_image: what is done about files that cannot be decoded. ``raise``; or ``skip``: find
            them before training and leave them out, of splits, counts and epochs, with a warning
            that names them. A file that turns bad later raises in any case.
        max_bad_images: how many may be skipped.
        resized_cache: a folder in which the training images are kept as pixels at a smaller size
            (see `ResizedCache`), those held out too, so that later epochs and runs, of whatever
            seed, decode nothing; crops are then drawn from, and limited to, those. On ``/dev/shm``
            it lies in memory. None: no such copy.
        resized_side: shorter side of what is kept there; None: twice ``img_size``.
        **kwargs: the arguments of `ImageDataModule`.

    Raises:
        ValueError: for a probability outside [0, 1], a range of crops that is none, or an unknown
            choice.
        ImportError: for ``decoder="fast"`` where none is installed.
    """

    def __init__(
        self,
        verify: bool | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        color_jitter: float = 0.0,
        erasing: float = 0.0,
        decoder: DecoderName = "auto",
        on_bad_image: OnBadImage = "raise",
        max_bad_images: int = 10,
        resized_cache: str | None = None,
        resized_side: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_crops(scale, ratio)
        for name, share in (("horizontal_flip", horizontal_flip), ("erasing", erasing)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {share}")
        if color_jitter < 0:
            raise ValueError(f"color_jitter is 0 or above, got {color_jitter}")
        check_policy(on_bad_image, max_bad_images, verify)
        choose_decoder(decoder)
        self.verify, self.decoder = verify, decoder
        self.on_bad_image: OnBadImage = on_bad_image
        self.max_bad_images = max_bad_images
        if resized_side is not None and (resized_side < 1 or resized_cache is None):
            raise ValueError(f"resized_side={resized_side} is a number of pixels in resized_cache")
        self.resized_cache, self.resized_side = resized_cache, resized_side
        self.scale, self.ratio = scale, ratio
        self.horizontal_flip, self.erasing = horizontal_flip, erasing
        self.color_jitter = color_jitter

    @abstractmethod
    def _find(self) -> dict[str, LabelledFiles]:
        """Find the files by split; class numbers and names are the same in all of them."""

    def _divide(self, sets: dict[str, ImageFiles]) -> Sources[ImageFiles]:
        return Sources(sets["train"], sets.get("val"), sets.get("test"))

    def _read(self) -> Sources[ImageFiles]:
        found = self._find()
        few = sum(len(files.paths) for files in found.values()) <= KEPT_FROM
        if self.verify or (self.verify is None and (few or self.on_bad_image == "skip")):
            found = without_bad_images(found, self.on_bad_image, self.max_bad_images)
        sources = self._divide({split: ImageFiles(files) for split, files in found.items()})
        self._pool = sources.train.paths
        return sources

    def summary(self) -> str:
        """As in every DataModule, and what decodes the training images."""
        fast = choose_decoder(self.decoder)
        return f"{super().summary()}\n  training images decoded by {fast.name if fast else 'PIL'}"

    def _train_loader(self, data: ImageFiles) -> ResumableDataLoader:
        how, decoder = self.preprocessing, choose_decoder(self.decoder)
        crops: Callable[[str], Tensor]
        crops = whole = RandomCrops(
            how.img_size, self.scale, self.ratio, how.interpolation, decoder
        )
        if self.resized_cache is not None:
            side = self.resized_side or 2 * how.img_size
            # also those held out: another seed trains on them, from the same copy
            kept = ResizedCache(self._pool, side, Path(self.resized_cache))
            crops = CachedCrops(whole, kept)
        augmentation = BatchAugmentation(
            how, self._device, self.horizontal_flip, self.color_jitter, self.erasing
        )
        return self._loader(
            data.with_reader(WithDraws(crops, augmentation), self.seed),
            self._train_sampler(data),
            self.batch_size,
            drop_last=self.drop_last,
            finish=augmentation,
            collate_fn=collate_drawn,
        )

    def _eval_loader(self, data: ImageFiles, shared: bool = True) -> ResumableDataLoader:
        transform = evaluation_transform(self.preprocessing)
        sampler = fixed_order(data, *(self._shard if shared else (1, 0)))
        return self._loader(data.with_transform(transform), sampler, self.eval_batch_size)

    def _loader(
        self, data: ImageFiles, sampler: Any, batch_size: int, **kwargs: Any
    ) -> ResumableDataLoader:
        return ResumableDataLoader(
            data,
            sampler=sampler,
            batch_size=batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._device.type == "cuda",
            **kwargs,
        )
