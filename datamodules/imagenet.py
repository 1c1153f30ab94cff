"""ImageNet (ILSVRC 2012) as people keep it, and the subsets that are published as lists."""

import dataclasses
from pathlib import Path
from typing import Any

from firstlight.datamodules.archives import index_archive
from firstlight.datamodules.image_files import ImageFiles, LabelledFiles, class_folders
from firstlight.datamodules.image_files_datamodule import ImageFilesDataModule
from firstlight.datamodules.imagenet_files import (
    TRAIN_ARCHIVE,
    UNKNOWN,
    VAL_ARCHIVE,
    check_same_classes,
    choose_listed,
    find_train,
    find_val,
    has_train,
    with_labels,
)
from firstlight.datamodules.imagenet_labels import readable_names, validation_labels
from firstlight.datamodules.lists import find_lists, read_list
from firstlight.datamodules.preprocessing import IMAGENET_PREPROCESSING
from firstlight.datamodules.splits import Sources
from firstlight.datamodules.subsets import evenly_spaced, number_by, take_fraction

MINIVAL = 0.01
"""Share of the training images for validation, as in big_vision (``train[99%:]``)."""


class ImageNetDataModule(ImageFilesDataModule):
    """ImageNet's folders or untouched archives; ImageNet-LT and other subsets by their lists.

    Understood under ``root`` are ``train/<wnid>/*.JPEG`` or ``ILSVRC2012_img_train.tar``, and
    ``val/<wnid>/*.JPEG``, a flat ``val/*.JPEG`` or ``ILSVRC2012_img_val.tar``; flat images need the
    devkit's ground truth (or Kaggle's) beside them, or labels in a list. Classes are numbered by
    sorted WordNet id, as everywhere; names come from the synsets that timm ships.

    The labels of ImageNet's own test set are not published, so its 50,000 validation images are
    what papers report on: they are ``test`` here. Under ``protocol="honest"`` validation is 1 % of
    the training images (big_vision's "minival") and another 1 % is held out; with ImageNet-LT's
    ``val`` list, its 20,000 images (20 of each class, tail classes too: say ``val=official``
    beside numbers selected on them), and a tenth of the training list is held out.
    ``protocol="legacy"`` trains on everything and validates on the 50,000. Where only validation
    images lie under ``root``, a network can be validated and tested on them.

    Args:
        root: the folder.
        lists: the folder of ``ImageNet_LT_{train,val,test}.txt``, or files by split, of lines
            ``path label`` or ``path``; a split that is not listed is as it is on disk. Images are
            found by class folder and name, so that either layout of ``val`` serves either list.
        classes: for development: how many classes (evenly over the sorted ids), or their ids.
        fraction: for development: the share of every class's training images to keep.
        devkit: where the ground truth of flat validation images lies; None: in ``root``.
        val: share of the training images for validation; None: see above.
        holdout: share of the training images held out; None: see above.
        **kwargs: the arguments of `ImageFilesDataModule` and `ImageDataModule`.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        lists: str | dict[str, str] | None = None,
        classes: int | list[str] | None = None,
        fraction: float = 1.0,
        devkit: str | None = None,
        val: float | None = None,
        holdout: float | None = None,
        **kwargs: Any,
    ) -> None:
        if lists is None and kwargs.get("protocol", "honest") == "honest":
            val = MINIVAL if val is None else val
            holdout = MINIVAL if holdout is None else holdout
        super().__init__(val=val, holdout=holdout, **kwargs)
        take_fraction(LabelledFiles([], [], []), fraction)  # refuses before data is read
        self.root, self.lists, self.fraction = Path(root), lists, fraction
        self.classes = classes
        self.devkit = self.root if devkit is None else Path(devkit)
        self._trains = True
        self._wnids: list[str] = []
        self._notes: list[str] = []
        self._settle_preprocessing(IMAGENET_PREPROCESSING)

    def prepare_data(self) -> None:
        """Index the archives, once per machine."""
        for name, folder in ((TRAIN_ARCHIVE, "train"), (VAL_ARCHIVE, "val")):
            if not (self.root / folder).is_dir() and (self.root / name).is_file():
                index_archive(self.root / name)

    def _names_for_prediction(self) -> list[str] | None:
        train = self.root / "train"
        if not has_train(self.root):
            return None
        wnids = class_folders(train) if train.is_dir() else find_train(self.root).classes
        return readable_names(self._chosen(wnids))

    def _chosen(self, wnids: list[str]) -> list[str]:
        if self.classes is None:
            return wnids
        if isinstance(self.classes, int):
            return evenly_spaced(wnids, self.classes)
        if unknown := sorted(set(self.classes) - set(wnids)):
            raise ValueError(f"classes: {self.root} has no training images of {unknown[0]}")
        return sorted(set(self.classes))

    @property
    def class_ids(self) -> list[str]:
        """WordNet ids by class number: what folders of further test sets are called."""
        self._ready  # noqa: B018  # raises before setup
        return list(self._wnids)

    def setup(self, stage: str | None = None) -> None:
        """As in `ImageDataModule`; to validate and test, training images may be missing."""
        self._trains = stage in (None, "fit")
        if self._trains and self._splits is not None and not len(self._splits.train):
            self._splits = None  # refused when it is read again
        super().setup(stage)

    def _find(self) -> dict[str, LabelledFiles]:
        files = {} if self.lists is None else find_lists(self.lists)
        lists = {split: read_list(file) for split, file in files.items()}
        val = find_val(self.root)
        if val is not None and UNKNOWN in val.targets and "test" not in lists:
            val = with_labels(val, validation_labels(self.devkit))
        if val is not None and not lists and not self._trains and not has_train(self.root):
            return self._only_validation(val)
        train = find_train(self.root)
        sets = {"train": train} | ({} if val is None else {"test": val})
        notes = [] if val is not None else ["no validation images, so there is no test set"]
        if lists:
            sets |= choose_listed(lists, train, val)
            notes += [f"{split} by {images.file.name}" for split, images in lists.items()]
            if "val" in lists:
                notes += ["validation has labels beside those trained on: say val=official"]
        if self.classes is None:
            check_same_classes(sets, self.root)
        sets = self._in_part(sets, train.classes, notes)
        if self.fraction < 1:
            sets["train"] = take_fraction(sets["train"], self.fraction)
            notes += [f"{self.fraction:g} of the training images of every class"]
        self._notes = ["; ".join(notes)] if notes else []
        return sets

    def _in_part(
        self, sets: dict[str, LabelledFiles], wnids: list[str], notes: list[str]
    ) -> dict[str, LabelledFiles]:
        """Number by the chosen classes; name them."""
        self._wnids = chosen = self._chosen(wnids)
        if self.classes is not None:
            notes += [f"{len(chosen)} of {len(wnids)} classes"]
        names = readable_names(chosen)
        return {
            split: number_by(files, chosen)._replace(classes=names) for split, files in sets.items()
        }

    def _only_validation(self, val: LabelledFiles) -> dict[str, LabelledFiles]:
        self.holdout = 0.0  # there is nothing to hold out
        self._notes = ["no training images: validation is the test set, do not select on it"]
        sets = {"train": LabelledFiles([], [], val.classes), "val": val, "test": val}
        return self._in_part(sets, val.classes, self._notes)

    def _divide(self, sets: dict[str, ImageFiles]) -> Sources[ImageFiles]:
        return dataclasses.replace(super()._divide(sets), notes=self._notes)
