"""``firstlight rescore``: what a run predicted on ImageNet, judged by the ReaL labels."""

import json
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

from firstlight.functional import MultiLabelAccuracy, multi_label_accuracy
from firstlight.run_table import run_in
from firstlight.runfolder import RunFolderError
from firstlight.terminal import console

CLASSES = 1000


def rescore(run: str, labels: str | None = None, split: str = "test") -> MultiLabelAccuracy:
    """Judge a run's last predictions on ImageNet's validation images by several labels an image.

    Needs the tables ``predictions`` and ``classes`` that `PerClassMonitor` wrote, for all 1,000
    classes in sorted order of their WordNet ids.

    Args:
        run: a run folder, or a folder with exactly one below it.
        labels: the reassessed labels' ``real.json``, a list of labels for each of the 50,000
            images (arXiv 2006.07159); None: the copy that timm ships.
        split: the evaluation.

    Raises:
        RunFolderError: where there is no such evaluation, or one of other images or classes.
        ValueError: where the labels are no list of lists of class numbers, or too few.
    """
    folder = run_in(Path(run))
    found = folder.read_last("predictions", split, ["target", "pred", "path"]).to_pydict()
    refuse_other_classes(len(folder.read("classes")), folder.path)
    accepted = labels_of(found["path"], labels, folder.path)
    score = multi_label_accuracy(found["pred"], accepted)
    hits = sum(map(int.__eq__, found["pred"], found["target"]))
    console.print(
        f"{split}: ReaL top-1 {100 * score.accuracy:.2f} % of {score.n} images "
        f"({score.unlabelled} without an accepted label left out); top-1 "
        f"{100 * hits / len(accepted):.2f} % of {len(accepted)}",
        soft_wrap=True,
    )
    return score


def refuse_other_classes(count: int, folder: Path) -> None:
    """Refuse a run that cannot be of ImageNet's classes."""
    if count != CLASSES:
        raise RunFolderError(
            f"{folder} has {count} classes; the ReaL labels number ImageNet's {CLASSES}"
        )


def labels_of(paths: Sequence[str | None], file: str | None, folder: Path) -> list[list[int]]:
    """Read the labels of these images of a run folder, told by their names; see `rescore`."""
    numbers, accepted = image_numbers(paths, folder), _read_labels(file)
    if max(numbers) > len(accepted):
        raise ValueError(f"there are labels of {len(accepted)} images, none of {max(numbers)}")
    return [accepted[number - 1] for number in numbers]


def image_numbers(paths: Sequence[str | None], folder: Path) -> list[int]:
    """Numbers of ImageNet's validation images, from 1.

    Raises:
        RunFolderError: on a path that is none of one.
    """
    return [_image_number(path, folder) for path in paths]


def _image_number(path: str | None, folder: Path) -> int:
    match = re.search(r"ILSVRC2012_val_(\d{8})", path or "")
    if match is None:
        raise RunFolderError(
            f"{folder} has a prediction of {path}, which is no ILSVRC2012_val_... image of ImageNet"
        )
    return int(match[1])


def _read_labels(file: str | None) -> list[list[int]]:
    if file is None:
        content = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
        assert content is not None, "timm ships it"
    else:
        content = Path(file).read_bytes()
    labels = json.loads(content)
    if not isinstance(labels, list) or not all(isinstance(each, list) for each in labels):
        raise ValueError(f"{file} is not a list with a list of class numbers for each image")
    return labels
