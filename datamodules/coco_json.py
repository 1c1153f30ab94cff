"""Annotations in COCO's style: images, categories, and annotations that join them by id."""

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firstlight.datamodules.lists import first_repeat

Category = Mapping[str, Any]

_NUMBER = re.compile(r"\d+(?=_|$)")
_LISTS = ("images", "annotations", "categories")


class CocoImages(NamedTuple):
    """The images of one JSON file, in its order, each with its one category.

    Attributes:
        file: where it was read.
        paths: ``file_name`` of each image.
        category_ids: of each image.
        categories: by id, ascending.
    """

    file: Path
    paths: list[str]
    category_ids: list[int]
    categories: dict[int, Category]


def read_coco(file: Path) -> CocoImages:
    """Read a file ``{images, annotations, categories}`` and join it by image id.

    Images and annotations are reduced to ids and names as the parser meets them, so that the peak
    of memory is little above the text itself (2.7 million images have 0.9 GB of it).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such JSON; for an id that occurs twice, an annotation of no image or
            of no category, an image without annotation or with two, a file name that occurs twice,
            or one whose folder bears the number of another category. Names it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such annotations: {file}")
    images, image_of, category_of = array("q"), array("q"), array("q")
    paths: list[str] = []

    def keep(item: dict[str, Any]) -> dict[str, Any] | None:
        if "image_id" in item and "category_id" in item:
            image_of.append(item["image_id"])
            category_of.append(item["category_id"])
            return None
        if "file_name" in item and "id" in item:
            images.append(item["id"])
            paths.append(item["file_name"])
            return None
        return item

    try:
        with file.open(encoding="utf-8") as stream:
            content = json.load(stream, object_hook=keep)
        listed = content["categories"]
        counts = tuple(len(content[name]) for name in _LISTS)
        ids = [int(category["id"]) for category in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not a JSON object with {', '.join(_LISTS)} ({error!r}): is it complete?"
        ) from error
    if counts[:2] != (len(images), len(image_of)):
        raise ValueError(
            f"{file}: {counts[0]} images of which {len(images)} have id and file_name, {counts[1]} "
            f"annotations of which {len(image_of)} have image_id and category_id"
        )
    _once(ids, "category id", file)
    _once(paths, "file_name", file)
    categories = dict(sorted(zip(ids, listed, strict=True), key=lambda pair: pair[0]))
    joined = _join(np.array(images), np.array(image_of), np.array(category_of), paths, file)
    if unknown := set(joined.tolist()) - categories.keys():
        raise ValueError(
            f"{file}: annotations have category_id {min(unknown)}, which no category has"
        )
    found = CocoImages(file, paths, joined.tolist(), categories)
    _check_folders(found)
    return found


def _once(values: Sequence[int | str] | NDArray[np.int64], what: str, file: Path) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{file}: {what} {first_repeat(values)!r} occurs twice")


def _join(
    images: NDArray[np.int64],
    image_of: NDArray[np.int64],
    category_of: NDArray[np.int64],
    paths: Sequence[str],
    file: Path,
) -> NDArray[np.int64]:
    """Category of each image; every image has one annotation, in whatever order."""
    _once(images.tolist(), "image id", file)
    order = np.argsort(images)
    place = np.searchsorted(images[order], image_of).clip(max=max(len(images) - 1, 0))
    dangling = image_of[images[order][place] != image_of] if len(images) else image_of
    if len(dangling):
        raise ValueError(
            f"{file}: {len(dangling)} annotations are of no image, such as image_id {dangling[0]}"
        )
    row = order[place]
    times = np.bincount(row, minlength=len(images))
    if (odd := np.flatnonzero(times != 1)).size:
        raise ValueError(
            f"{file}: {len(odd)} images do not have one annotation, such as {paths[odd[0]]} "
            f"(image id {images[odd[0]]}) with {times[odd[0]]}"
        )
    result = np.empty_like(images)
    result[row] = category_of
    return result


def folder_number(path: str) -> int | None:
    """Return the number that an image's folder is (``7477``) or begins with (``07477_``)."""
    folder = path[: path.rfind("/")]
    number = _NUMBER.match(folder, folder.rfind("/") + 1)
    return None if number is None else int(number[0])


def _check_folders(found: CocoImages) -> None:
    for path, category in zip(found.paths, found.category_ids, strict=True):
        if folder_number(path) not in (None, category):
            raise ValueError(
                f"{found.file}: {path} has category_id {category}, but its folder says "
                f"{folder_number(path)}"
            )


def check_same_categories(one: CocoImages, other: CocoImages) -> None:
    """Raise ValueError where two files mean different things by an id, naming it."""
    for i in sorted(one.categories.keys() | other.categories.keys()):
        first, second = one.categories.get(i), other.categories.get(i)
        if first != second:
            raise ValueError(
                f"category {i} is {first} in {one.file}, but {second} in {other.file}: take both "
                "from the same release"
            )
