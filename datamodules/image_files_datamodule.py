"""What the DataModules share whose images are files: decoded and augmented in worker processes."""

from abc import abstractmethod
from typing import Any

from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.image_files import ImageFiles, LabelledFiles, check_decodable
from firstlight.datamodules.loaders import ResumableDataLoader
from firstlight.datamodules.preprocessing import (
    Preprocessing,
    evaluation_transform,
    training_transform,
)
from firstlight.datamodules.samplers import fixed_order
from firstlight.datamodules.splits import Sources

IMAGENET_PREPROCESSING = Preprocessing(
    224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
"""What timm takes where a model says nothing."""

_VERIFIED_BY_DEFAULT = 5_000


class ImageFilesDataModule(ImageDataModule[ImageFiles]):
    """Base of the DataModules that read image files; a subclass finds them.

    Training images are randomly cropped and resized, flipped, erased on request; evaluation images
    are prepared as timm's ``create_transform`` does.

    Args:
        verify: decode every file once in ``setup``, so that a bad one is found before training;
            None: if there are at most 5,000.
        scale: range of a training crop's share of the image's area.
        ratio: range of a training crop's width over height.
        horizontal_flip: probability of mirroring a training image.
        erasing: probability of random erasing.
        **kwargs: the arguments of `ImageDataModule`.

    Raises:
        ValueError: for a probability outside [0, 1].
    """

    def __init__(
        self,
        verify: bool | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        erasing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, share in (("flip", horizontal_flip), ("erasing", erasing)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {share}")
        self.verify = verify
        self.scale, self.ratio = scale, ratio
        self.horizontal_flip, self.erasing = horizontal_flip, erasing

    @abstractmethod
    def _find(self) -> dict[str, LabelledFiles]:
        """Find the files by split; class numbers and names are the same in all of them."""

    def _divide(self, sets: dict[str, ImageFiles]) -> Sources[ImageFiles]:
        return Sources(sets["train"], sets.get("val"), sets.get("test"))

    def _read(self) -> Sources[ImageFiles]:
        found = self._find()
        count = sum(len(files.paths) for files in found.values())
        if self.verify or (self.verify is None and count <= _VERIFIED_BY_DEFAULT):
            check_decodable([path for files in found.values() for path in files.paths])
        return self._divide({split: ImageFiles(files) for split, files in found.items()})

    def _train_loader(self, data: ImageFiles) -> ResumableDataLoader:
        transform = training_transform(
            self.preprocessing, self.scale, self.ratio, self.horizontal_flip, self.erasing
        )
        return self._loader(
            data.with_transform(transform, self.seed),
            self._train_sampler(data),
            self.batch_size,
            self.drop_last,
        )

    def _eval_loader(self, data: ImageFiles, shared: bool = True) -> ResumableDataLoader:
        transform = evaluation_transform(self.preprocessing)
        sampler = fixed_order(data, *(self._shard if shared else (1, 0)))
        return self._loader(data.with_transform(transform), sampler, self.eval_batch_size, False)

    def _loader(
        self, data: ImageFiles, sampler: Any, batch_size: int, drop_last: bool
    ) -> ResumableDataLoader:
        return ResumableDataLoader(
            data,
            sampler=sampler,
            batch_size=batch_size,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._device.type == "cuda",
        )
