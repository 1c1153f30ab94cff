"""Any tree with a folder per class, or a manifest: images decoded and augmented in workers."""

from pathlib import Path
from typing import Any

from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.image_files import (
    ImageFiles,
    LabelledFiles,
    check_decodable,
    class_folders,
    scan_classes,
)
from firstlight.datamodules.loaders import ResumableDataLoader
from firstlight.datamodules.manifest import SPLITS, UNDIVIDED, read_manifest
from firstlight.datamodules.preprocessing import (
    Preprocessing,
    evaluation_transform,
    training_transform,
)
from firstlight.datamodules.samplers import fixed_order
from firstlight.datamodules.splits import Sources, take_test

_VERIFIED_BY_DEFAULT = 5_000
_IMAGENET = Preprocessing(
    224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)  # what timm takes where a model says nothing


class ImageFolderDataModule(ImageDataModule[ImageFiles]):
    """Images on disk, in a folder per class or listed in a manifest.

    Understood are ``root/train/<class>/...`` with, if there are, ``root/val`` and ``root/test``;
    ``root/<class>/...``, of which a test set is cut; and a manifest with the columns ``path``,
    ``label`` and, if there are splits, ``split``. Splits may be called ``training``, ``valid`` and
    ``validation`` as well, in any case. Classes are numbered by sorted name.

    Training images are randomly cropped and resized, flipped, erased on request; evaluation images
    are prepared as timm's ``create_transform`` does.

    Args:
        root: the folder; with a manifest, what its relative paths start from (None: its folder).
        manifest: a ``.csv`` or ``.parquet`` file instead of a tree.
        class_names: names by class number, for a manifest whose labels are integers.
        test: share cut as test set where the data has no splits at all, the same whatever the
            seed; 0 cuts none.
        verify: decode every file once in ``setup``, so that a bad one is found before training;
            None: if there are at most 5,000.
        scale: range of a training crop's share of the image's area.
        ratio: range of a training crop's width over height.
        horizontal_flip: probability of mirroring a training image.
        erasing: probability of random erasing.
        **kwargs: the arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        root: str | None = None,
        manifest: str | None = None,
        class_names: list[str] | None = None,
        test: float = 0.1,
        verify: bool | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        erasing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, share in (("test", test), ("flip", horizontal_flip), ("erasing", erasing)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {share}")
        self.root = None if root is None else Path(root)
        self.manifest = None if manifest is None else Path(manifest)
        self.test, self.verify = test, verify
        self._names = class_names
        self.scale, self.ratio = scale, ratio
        self.horizontal_flip, self.erasing = horizontal_flip, erasing
        self._settle_preprocessing(_IMAGENET)

    def _names_for_prediction(self) -> list[str] | None:
        if self.root is None and self.manifest is None:
            return None
        return next(iter(self._find().values())).classes  # the same for every split

    def _find(self) -> dict[str, LabelledFiles]:
        if self.manifest is not None:
            root = self.manifest.parent if self.root is None else self.root
            return read_manifest(self.manifest, root, self._names)
        if self.root is None:
            raise FileNotFoundError(
                "no data: pass root, a folder of class folders (--data.root), or manifest, a table "
                "of path, label, split (--data.manifest)"
            )
        return scan_tree(self.root)

    def _read(self) -> Sources[ImageFiles]:
        found = self._find()
        if self.verify or (
            self.verify is None
            and sum(len(f.paths) for f in found.values()) <= _VERIFIED_BY_DEFAULT
        ):
            check_decodable([path for files in found.values() for path in files.paths])
        sets = {split: ImageFiles(files) for split, files in found.items()}
        if UNDIVIDED in sets:
            train, test = take_test(sets[UNDIVIDED], self.test)
            return Sources(train, None, test)
        return Sources(sets["train"], sets.get("val"), sets.get("test"))

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


def scan_tree(root: Path) -> dict[str, LabelledFiles]:
    """Find the splits of a tree; class numbers are those of the training set throughout.

    Where folders in ``root`` bear names of splits (any case), the others are left alone.

    Returns:
        The files by split: ``train`` and, if there are, ``val`` and ``test``; or all under
        ``UNDIVIDED`` where no folder bears the name of a split.

    Raises:
        FileNotFoundError: if ``root`` is no folder.
        ValueError: for splits without a training set, or two folders that mean the same one; for an
            empty class folder, or a class that the training set does not have.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root.absolute()}: point root (--data.root) to a tree root/train/<class>/, "
            "root/val/<class>/, root/test/<class>/, or to a folder of class folders"
        )
    folders: dict[str, str] = {}
    for name in class_folders(root):
        split = SPLITS.get(name.lower())
        if split in folders:
            raise ValueError(
                f"{root}: {folders[split]!r} and {name!r} both mean the split {split!r}; rename or "
                "remove one of them"
            )
        if split is not None:
            folders[split] = name
    if not folders:
        return {UNDIVIDED: scan_classes(root)}
    if "train" not in folders:
        meant = ", ".join(f"{name} ({split})" for name, split in SPLITS.items())
        raise ValueError(
            f"{root} has the split folders {', '.join(map(repr, folders.values()))}, but none for "
            f"training. Understood are, in any case: {meant}. Rename the training folder to "
            "'train'; if these are classes, list the images in a manifest (--data.manifest)"
        )
    found = {"train": scan_classes(root / folders["train"])}
    for split in ("val", "test"):
        if split in folders:
            found[split] = scan_classes(root / folders[split], found["train"].classes)
    return found
