"""Which images a copy of ImageNet has, in folders, in archives, and by lists."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from firstlight.datamodules.archives import index_archive
from firstlight.datamodules.image_files import (
    LabelledFiles,
    class_folders,
    list_images,
    scan_classes,
)
from firstlight.datamodules.lists import ImageList, check_disjoint

TRAIN_ARCHIVE, VAL_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
UNKNOWN = -1
"""The class of an image that only a list or the ground truth can tell."""

_WNID = re.compile(r"n\d{8}")


def has_train(root: Path) -> bool:
    """Whether there is a training folder or archive."""
    return (root / "train").is_dir() or (root / TRAIN_ARCHIVE).is_file()


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
        paths: Sequence[str] = list_images(root / "val")
    elif (root / VAL_ARCHIVE).is_file():
        paths = index_archive(root / VAL_ARCHIVE)
        if all(_WNID.fullmatch(_tail(path)[0]) for path in paths):
            return _by_folder(paths)
    else:
        return None
    return LabelledFiles(paths, [UNKNOWN] * len(paths), [])


def _tail(path: str) -> tuple[str, str]:
    """Folder and name; pathlib takes half a minute for all of ImageNet, this two seconds."""
    *_, folder, name = f"/{path}".rsplit("/", 2)
    return folder, name.partition("@")[0]  # what follows is the place in an archive


def _by_folder(paths: Sequence[str]) -> LabelledFiles:
    folders = [_tail(path)[0] for path in paths]
    classes = sorted(set(folders))
    place = {name: number for number, name in enumerate(classes)}
    return LabelledFiles(paths, [place[folder] for folder in folders], classes)


def with_labels(files: LabelledFiles, wnids: Mapping[str, str]) -> LabelledFiles:
    """Give flat images their classes, told by their names without suffix.

    Raises:
        ValueError: for an image of which ``wnids`` says nothing.
    """
    stems = [_tail(path)[1].partition(".")[0] for path in files.paths]
    missing = next((stem for stem in stems if stem not in wnids), None)
    if missing is not None:
        raise ValueError(f"the ground truth of {len(wnids)} images has no label for {missing}")
    classes = sorted({wnids[stem] for stem in stems})
    place = {name: number for number, name in enumerate(classes)}
    return LabelledFiles(files.paths, [place[wnids[stem]] for stem in stems], classes)


def check_same_classes(sets: Mapping[str, LabelledFiles], root: Path) -> None:
    """Raise ValueError where a split has a class that training lacks, or lacks one; names it."""
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
        ValueError: for a label that does not number the sorted ids, a label that nothing tells, two
            images on disk that a line could mean, or an image in two splits, a split that is not
            listed included.
    """
    wanted = {
        key for images in lists.values() for keys in _keys(images, train.classes) for key in keys
    }
    there: dict[str, _Image] = {}
    for files in (train, val) if val is not None else (train,):
        for path, target in zip(files.paths, files.targets, strict=True):
            wnid = None if target == UNKNOWN else files.classes[target]
            name = _tail(path)[1] if wnid is None else f"{wnid}/{_tail(path)[1]}"
            if name in wanted:
                if name in there:
                    raise ValueError(
                        f"a list has {name}, which may be {there[name].path} or {path}: rename one"
                    )
                there[name] = _Image(path, wnid)
    found = {split: _match(images, train.classes, there) for split, images in lists.items()}
    on_disk = {"train": train} | ({} if val is None else {"test": val})
    whole = {f"{s} (not listed: all)": f for s, f in on_disk.items() if s not in found}
    check_disjoint({split: files.paths for split, files in (whole | found).items()})
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
