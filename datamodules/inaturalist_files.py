"""Which images iNaturalist's releases have, by their JSON, their folders or published lists."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from firstlight.datamodules.coco_json import (
    Category,
    check_same_categories,
    folder_number,
    read_coco,
)
from firstlight.datamodules.image_files import LabelledFiles, scan_classes
from firstlight.datamodules.lists import check_disjoint, check_present, read_list
from firstlight.datamodules.taxonomy import Lineage, lineage_of_category, lineage_of_folder

Version = Literal["2018", "2021", "2021_mini"]
NAMES: dict[Version, tuple[str, str]] = {
    "2018": ("train2018", "val2018"),
    "2021": ("train", "val"),
    "2021_mini": ("train_mini", "val"),
}
"""Names of training and validation set: of the JSON files, and in 2021 of the folders."""


class Species(NamedTuple):
    """Files by split, ``train`` and ``test``, numbered by species; the lineage of each species."""

    sets: dict[str, LabelledFiles]
    lineages: list[Lineage]


def read_categories(file: Path | None) -> dict[int, Category]:
    """Read 2018's ``categories.json``, a list of categories with their ranks; None: nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else.
    """
    if file is None:
        return {}
    try:
        return {int(c["id"]): {**c, "name": c["name"]} for c in json.loads(file.read_text("utf-8"))}
    except FileNotFoundError:
        raise FileNotFoundError(f"no such categories: {file}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not a JSON list of categories with id and name ({error!r})"
        ) from error


def by_json(
    root: Path, annotations: Path, version: Version, told: Mapping[int, Category]
) -> Species:
    """Divide the images as the JSON files say.

    Args:
        root: what ``file_name`` starts from.
        annotations: folder of the JSON files.
        version: says their names.
        told: what `read_categories` found.

    Raises:
        FileNotFoundError: for a missing JSON file or image.
        ValueError: for JSON that disagrees with itself, with the other file or with ``told``.
    """
    names = dict(zip(("train", "test"), NAMES[version], strict=True))
    files = {split: annotations / f"{name}.json" for split, name in names.items()}
    if missing := [file for file in files.values() if not file.is_file()]:
        raise FileNotFoundError(
            f"no {missing[0].absolute()}: iNaturalist's images are divided by its JSON files. Put "
            "them into root, say where they are with annotations (--data.annotations), or pass the "
            "text lists (--data.lists)"
        )
    found = {split: read_coco(file) for split, file in files.items()}
    check_same_categories(found["train"], found["test"])
    check_disjoint({split: images.paths for split, images in found.items()})
    place = {i: number for number, i in enumerate(found["train"].categories)}
    sets = {}
    for split, images in found.items():
        paths = _below(root, images.paths)
        check_present(paths, images.file)
        sets[split] = LabelledFiles(paths, [place[i] for i in images.category_ids], [])
    return Species(sets, _lineages(found["train"].categories, told))


def by_lists(root: Path, files: Mapping[str, Path], told: Mapping[int, Category]) -> Species:
    """Divide the images as text lists say; a list of validation images is the test set.

    Args:
        root: what the paths start from.
        files: lists by split.
        told: what `read_categories` found.

    Raises:
        FileNotFoundError: for a missing list or image.
        ValueError: for lists without labels, an image in two of them, a label that the image's
            folder or ``told`` contradicts, or one that no image has.
    """
    lists = {split: read_list(file) for split, file in files.items()}
    if "train" not in lists:
        raise ValueError(f"lists of {', '.join(lists)}, but none of train: name it too")
    if "test" not in lists and "val" in lists:
        lists["test"] = lists.pop("val")
    check_disjoint({split: images.paths for split, images in lists.items()})
    sets: dict[str, LabelledFiles] = {}
    categories: dict[int, Category] = {}
    for split, images in lists.items():
        if images.labels is None:
            raise ValueError(f"{images.file} has no labels: every line is 'path label'")
        paths = _below(root, images.paths)
        check_present(paths, images.file)
        for row, (path, label) in enumerate(zip(images.paths, images.labels, strict=True), 1):
            if folder_number(path) not in (None, label):
                raise ValueError(
                    f"{images.file}, line {row}: {path} has label {label}, but its folder says "
                    f"{folder_number(path)}"
                )
            if label not in categories:
                categories[label] = _category_of(path)
        sets[split] = LabelledFiles(paths, images.labels, [])
    if gaps := set(range(max(categories) + 1)) - categories.keys():
        raise ValueError(f"{files['train']}: no image has label {min(gaps)}")
    return Species(sets, _lineages(dict(sorted(categories.items())), told))


def by_folders(root: Path, version: Version) -> Species:
    """Divide the images of 2021 as their folders are.

    Raises:
        FileNotFoundError: without the training folder.
        ValueError: for a folder that is not named as in 2021, or one that only validation has.
    """
    train, val = (root / name for name in NAMES[version])
    if not train.is_dir():
        raise FileNotFoundError(
            f"no folder {train.absolute()}: iNaturalist {version} is {train.name}/ and {val.name}/ "
            "with a folder per species, 00000_Animalia_Annelida_...; point root (--data.root) to "
            "the folder that has them"
        )
    sets = {"train": scan_classes(train)}
    if val.is_dir():
        sets["test"] = scan_classes(val, sets["train"].classes)
    return Species(sets, [lineage_of_folder(name) for name in sets["train"].classes])


def _below(root: Path, paths: Sequence[str]) -> list[str]:
    return [os.path.join(root, path) for path in paths]  # noqa: PTH118  # Path is slow for 10^6 files


def _lineages(categories: Mapping[int, Category], told: Mapping[int, Category]) -> list[Lineage]:
    """What the data tell of each category, and what ``categories.json`` adds."""
    for i, own in categories.items() if told else ():
        other = told.get(i, {}).get("supercategory")
        if i not in told or other != own.get("supercategory", other):
            raise ValueError(
                f"category {i} is {dict(own)} in the annotations, but "
                f"{dict(told[i]) if i in told else 'missing'} in the file of categories: take both "
                "from the same release"
            )
    return [lineage_of_category({**c, **told.get(i, {})}) for i, c in categories.items()]


def _category_of(path: str) -> dict[str, Any]:
    """What the folder of a listed image tells about its category."""
    folder = PurePosixPath(path).parent
    if re.match(r"\d{5}_", folder.name):
        lineage = lineage_of_folder(folder.name)
        return {**lineage, "name": lineage["species"]}
    above = folder.parent.name
    return {"supercategory": above, "name": f"{above} {folder.name}".strip()}
