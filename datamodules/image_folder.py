"""Any tree with a folder per class, or a manifest: images decoded and augmented in workers."""

from pathlib import Path
from typing import Any

from firstlight.datamodules.image_files import (
    ImageFiles,
    LabelledFiles,
    class_folders,
    scan_classes,
)
from firstlight.datamodules.image_files_datamodule import ImageFilesDataModule
from firstlight.datamodules.manifest import SPLITS, UNDIVIDED, read_manifest
from firstlight.datamodules.preprocessing import IMAGENET_PREPROCESSING
from firstlight.datamodules.splits import Sources, take_test


class ImageFolderDataModule(ImageFilesDataModule):
    """Images on disk, in a folder per class or listed in a manifest.

    Understood are ``root/train/<class>/...`` with, if there are, ``root/val`` and ``root/test``;
    ``root/<class>/...``, of which a test set is cut; and a manifest with the columns ``path``,
    ``label`` and, if there are splits, ``split``. Splits may be called ``training``, ``valid``,
    ``validation`` and ``testing`` as well, in any case. Classes are numbered by sorted name.

    Args:
        root: the folder; with a manifest, what its relative paths start from (None: its folder).
        manifest: a ``.csv`` or ``.parquet`` file instead of a tree.
        class_names: names by class number, for a manifest whose labels are integers.
        test: share cut as test set where the data has no splits at all, the same whatever the
            seed; 0 cuts none.
        **kwargs: the arguments of `ImageFilesDataModule` and `ImageDataModule`.
    """

    def __init__(
        self,
        root: str | None = None,
        manifest: str | None = None,
        class_names: list[str] | None = None,
        test: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= test < 1:
            raise ValueError(f"test lies in [0, 1), got {test}")
        if class_names and (manifest is None or len(set(class_names)) < len(class_names)):
            raise ValueError(
                f"class_names are names for a manifest's numbers, no two alike: {class_names}"
            )
        self.root = None if root is None else Path(root)
        self.manifest = None if manifest is None else Path(manifest)
        self.test = test
        self._names = class_names
        self._settle_preprocessing(IMAGENET_PREPROCESSING)

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

    def _divide(self, sets: dict[str, ImageFiles]) -> Sources[ImageFiles]:
        if UNDIVIDED in sets:
            train, test = take_test(sets[UNDIVIDED], self.test)
            return Sources(train, None, test)
        return super()._divide(sets)


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
