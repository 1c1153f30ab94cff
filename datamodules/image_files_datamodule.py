"""What the DataModules that read image files share: bad files found, a smaller copy kept."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from firstlight.datamodules.decoding import DecodingDataModule
from firstlight.datamodules.image_files import ImageFiles, LabelledFiles
from firstlight.datamodules.resized_cache import CachedCrops, ResizedCache
from firstlight.datamodules.splits import Sources
from firstlight.datamodules.verification import (
    KEPT_FROM,
    OnBadImage,
    check_policy,
    without_bad_images,
)


class ImageFilesDataModule(DecodingDataModule):
    """Base of the DataModules that read image files; a subclass finds them.

    Args:
        verify: decode every file once in ``setup``, so that a bad one is found before training;
            None: if there are at most 5,000, or with ``on_bad_image="skip"``. Results for more are
            kept in the user's cache folder, until a file's size or time changes.
        on_bad_image: what is done about files that cannot be decoded. ``raise``; or ``skip``: find
            them before training and leave them out, of splits, counts and epochs, with a warning
            that names them. A file that turns bad later raises in any case.
        max_bad_images: how many may be skipped.
        resized_cache: a folder in which the training images are kept as pixels at a smaller size
            (see `ResizedCache`), those held out too, so that later epochs and runs, of whatever
            seed, decode nothing; crops are then drawn from, and limited to, those. On ``/dev/shm``
            it lies in memory. None: no such copy.
        resized_side: shorter side of what is kept there; None: twice ``img_size``.
        **kwargs: the arguments of `DecodingDataModule` and `ImageDataModule`.

    Raises:
        ValueError: for an unknown choice, or arguments that contradict each other.
    """

    def __init__(
        self,
        verify: bool | None = None,
        on_bad_image: OnBadImage = "raise",
        max_bad_images: int = 10,
        resized_cache: str | None = None,
        resized_side: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_policy(on_bad_image, max_bad_images, verify)
        self.verify = verify
        self.on_bad_image: OnBadImage = on_bad_image
        self.max_bad_images = max_bad_images
        if resized_side is not None and (resized_side < 1 or resized_cache is None):
            raise ValueError(f"resized_side={resized_side} is a number of pixels in resized_cache")
        self.resized_cache, self.resized_side = resized_cache, resized_side

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

    def _crops(self, data: ImageFiles) -> Callable[[Any], Tensor]:
        if self.resized_cache is None:
            return super()._crops(data)
        side = self.resized_side or 2 * self.img_size
        # also those held out: another seed trains on them, from the same copy
        kept = ResizedCache(self._pool, side, Path(self.resized_cache))
        return CachedCrops(self._random_crops(), kept)
