"""ImageNet (ILSVRC 2012) as people keep it, and the subsets that are published as lists."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from firstlight.datamodules.archives import index_archive
from firstlight.datamodules.image_files import (
    ImageFiles,
    LabelledFiles,
    class_folders,
    list_images,
    scan_classes,
)
from firstlight.datamodules.image_files_datamodule import (
    IMAGENET_PREPROCESSING,
    ImageFilesDataModule,
)
from firstlight.datamodules.imagenet_labels import readable_names, validation_labels
from firstlight.datamodules.lists import ImageList, check_disjoint, find_lists, read_list
from firstlight.datamodules.splits import Sources
from firstlight.datamodules.subsets import evenly_spaced, number_by, take_fraction

TRAIN_ARCHIVE, VAL_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
MINIVAL = 0.01
"""Share of the training images for validation, as in big_vision (``train[99%:]``)."""

_WNID = re.compile(r"n\d{8}")
_UNKNOWN = -1  # the class of an image that only a list or the ground truth can tell


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
    ``protocol="legacy"`` trains on everything and validates on the 50,000.

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
        self._notes: list[str] = []
        self._settle_preprocessing(IMAGENET_PREPROCESSING)

    def prepare_data(self) -> None:
        """Index the archives, once per machine."""
        for name, folder in ((TRAIN_ARCHIVE, "train"), (VAL_ARCHIVE, "val")):
            if not (self.root / folder).is_dir() and (self.root / name).is_file():
                index_archive(self.root / name)

    def _names_for_prediction(self) -> list[str] | None:
        train = self.root / "train"
        if not train.is_dir() and not (self.root / TRAIN_ARCHIVE).is_file():
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

    def _find(self) -> dict[str, LabelledFiles]:
        train, val = find_train(self.root), find_val(self.root)
        sets = {"train": train} | ({} if val is None else {"test": val})
        notes = [] if val is not None else ["no validation images, so there is no test set"]
        if self.lists is not None:
            lists = {split: read_list(f) for split, f in find_lists(self.lists).items()}
            sets |= choose_listed(lists, train, val)
            notes += [f"{split} by {images.file.name}" for split, images in lists.items()]
            if "val" in lists:
                notes += ["validation has labels beside those trained on: say val=official"]
        if "test" in sets and _UNKNOWN in sets["test"].targets:
            sets["test"] = _with_labels(sets["test"], validation_labels(self.devkit))
        chosen = self._chosen(train.classes)
        if self.classes is None:
            _check_same_classes(sets, self.root)
        else:
            notes += [f"{len(chosen)} of {len(train.classes)} classes"]
        sets = {split: number_by(files, chosen) for split, files in sets.items()}
        if self.fraction < 1:
            sets["train"] = take_fraction(sets["train"], self.fraction)
            notes += [f"{self.fraction:g} of the training images of every class"]
        self._notes = ["; ".join(notes)] if notes else []
        names = readable_names(chosen)
        return {split: files._replace(classes=names) for split, files in sets.items()}

    def _divide(self, sets: dict[str, ImageFiles]) -> Sources[ImageFiles]:
        return dataclasses.replace(super()._divide(sets), notes=self._notes)


def find_train(root: Path) -> LabelledFiles:
    """Find the training images, from the folder or else the archive; classes are WordNet ids.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: for a folder that is not named by a WordNet id, or is empty.
    """
    if (root / "train").is_dir():
        train = scan_classes(root / "train")
    elif (root / TRAIN_ARCHIVE).is_file():
        train = _by_folder(index_archive(root / TRAIN_ARCHIVE))
    else:
        raise FileNotFoundError(
            f"no ImageNet training images under {root.absolute()}: point root (--data.root) to the "
            f"folder that has train/<wnid>/*.JPEG or {TRAIN_ARCHIVE}. (Kaggle's copy has it at "
            "ILSVRC/Data/CLS-LOC)"
        )
    strange = next((name for name in train.classes if not _WNID.fullmatch(name)), None)
    if strange is not None:
        raise ValueError(
            f"{root}: the training folder {strange!r} is not a WordNet id such as n01440764; for "
            "other classes use ImageFolderDataModule"
        )
    return train


def find_val(root: Path) -> LabelledFiles | None:
    """Find the validation images; in a flat folder or an archive their class is unknown (-1)."""
    if (root / "val").is_dir():
        if class_folders(root / "val"):
            return scan_classes(root / "val")
        paths = list_images(root / "val")
    elif (root / VAL_ARCHIVE).is_file():
        paths = index_archive(root / VAL_ARCHIVE)
        if all(_WNID.fullmatch(_tail(path)[0]) for path in paths):
            return _by_folder(paths)
    else:
        return None
    return LabelledFiles(paths, [_UNKNOWN] * len(paths), [])


def _tail(path: str) -> tuple[str, str]:
    """Folder and name; pathlib takes half a minute for all of ImageNet, this two seconds."""
    *_, folder, name = f"/{path}".rsplit("/", 2)
    return folder, name.partition("@")[0]  # what follows is the place in an archive


def _by_folder(paths: list[str]) -> LabelledFiles:
    folders = [_tail(path)[0] for path in paths]
    classes = sorted(set(folders))
    place = {name: number for number, name in enumerate(classes)}
    return LabelledFiles(paths, [place[folder] for folder in folders], classes)


def _with_labels(files: LabelledFiles, wnids: Mapping[str, str]) -> LabelledFiles:
    stems = [_tail(path)[1].partition(".")[0] for path in files.paths]
    missing = next((stem for stem in stems if stem not in wnids), None)
    if missing is not None:
        raise ValueError(f"the ground truth of {len(wnids)} images has no label for {missing}")
    classes = sorted({wnids[stem] for stem in stems})
    place = {name: number for number, name in enumerate(classes)}
    return LabelledFiles(files.paths, [place[wnids[stem]] for stem in stems], classes)


def _check_same_classes(sets: Mapping[str, LabelledFiles], root: Path) -> None:
    trained = {sets["train"].classes[t] for t in set(sets["train"].targets)}
    for split, files in sets.items():
        present = {files.classes[t] for t in set(files.targets)}
        for name in sorted(present ^ trained):
            has, lacks = (split, "train") if name in present else ("train", split)
            raise ValueError(
                f"{root}: class {name} is in {has} but not in {lacks}: complete the copy, or name "
                "the classes to use (--data.classes)"
            )


def choose_listed(
    lists: Mapping[str, ImageList], train: LabelledFiles, val: LabelledFiles | None
) -> dict[str, LabelledFiles]:
    """Find the images of lists among those on disk, in the lists' order.

    An image is found as ``<class>/<name>``, the class being the folder in the list, or that of the
    label, or the id before ``_`` in the name; or by its name alone in a flat folder.

    Returns:
        The files by split, numbered by the sorted ids of ``train``.

    Raises:
        FileNotFoundError: for images that are not there; names the list, their number and one.
        ValueError: for a label that does not number the sorted ids, a label that nothing tells, or
            an image in two splits.
    """
    wanted = {
        key for images in lists.values() for keys in _keys(images, train.classes) for key in keys
    }
    there: dict[str, _Image] = {}
    for files in (train, val) if val is not None else (train,):
        for path, target in zip(files.paths, files.targets, strict=True):
            wnid = None if target == _UNKNOWN else files.classes[target]
            name = _tail(path)[1] if wnid is None else f"{wnid}/{_tail(path)[1]}"
            if name in wanted:
                there[name] = _Image(path, wnid)
    found = {split: _match(images, train.classes, there) for split, images in lists.items()}
    check_disjoint({split: files.paths for split, files in found.items()})
    return found


class _Image(NamedTuple):
    """An image on disk; its class is None where the folder does not tell it."""

    path: str
    wnid: str | None


def _keys(images: ImageList, wnids: list[str]) -> list[list[str]]:
    keys = []
    for row, path in enumerate(images.paths):
        folder, name = _tail(path)
        owners = [folder, name.partition("_")[0]]
        if images.labels is not None and images.labels[row] < len(wnids):
            owners.append(wnids[images.labels[row]])
        keys.append([*(f"{owner}/{name}" for owner in owners), name])
    return keys


def _match(images: ImageList, wnids: list[str], there: Mapping[str, _Image]) -> LabelledFiles:
    found = [next((there[k] for k in keys if k in there), None) for keys in _keys(images, wnids)]
    if missing := [row for row, image in enumerate(found) if image is None]:
        raise FileNotFoundError(
            f"{images.file} lists {len(found)} images, of which {len(missing)} are not under root, "
            f"such as {images.paths[missing[0]]} (line {missing[0] + 1}): is the copy complete, "
            "and ILSVRC 2012? Names of other years differ"
        )
    place = {wnid: number for number, wnid in enumerate(wnids)}
    paths, targets = [], []
    for row, image in enumerate(found):
        assert image is not None
        paths.append(image.path)
        targets.append(_class_of(images, row, image.wnid, place))
    return LabelledFiles(paths, targets, wnids)


def _class_of(images: ImageList, row: int, wnid: str | None, place: Mapping[str, int]) -> int:
    """The class that folder and label agree on, or the one of them that there is."""
    folder = _tail(images.paths[row])[0]
    listed = folder if _WNID.fullmatch(folder) else None
    label = None if images.labels is None else images.labels[row]
    where = f"{images.file}, line {row + 1}: {images.paths[row]}"
    if wnid and listed and wnid != listed:
        raise ValueError(f"{where} lies in the folder {wnid}")
    told = wnid or listed
    if told is None and label is None:
        raise ValueError(f"{where}: nothing tells its class; add the label after the path")
    number = label if told is None else place.get(told)
    if number is None or number >= len(place) or label not in (None, number):
        is_ = f"{told} has number {number} among" if told else "there are only"
        raise ValueError(
            f"{where} has label {label}, but {is_} the {len(place)} training classes in sorted "
            "order: are the folders of all classes there?"
        )
    return number
