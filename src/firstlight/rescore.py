"""``firstlight rescore``: what a run predicted on ImageNet, judged by the ReaL labels."""

import json
import pkgutil
import re
from pathlib import Path

from rich.console import Console

from firstlight.functional import MultiLabelAccuracy, multi_label_accuracy
from firstlight.run_table import run_in
from firstlight.runfolder import RunFolderError

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
    if (count := len(folder.read("classes"))) != CLASSES:
        raise RunFolderError(
            f"{folder.path} has {count} classes; the ReaL labels number ImageNet's {CLASSES}"
        )
    numbers = [_image_number(path, folder.path) for path in found["path"]]
    accepted = _read_labels(labels)
    if max(numbers) > len(accepted):
        raise ValueError(f"there are labels of {len(accepted)} images, none of {max(numbers)}")
    score = multi_label_accuracy(found["pred"], [accepted[n - 1] for n in numbers])
    hits = sum(map(int.__eq__, found["pred"], found["target"]))
    Console().print(
        f"{split}: ReaL top-1 {100 * score.accuracy:.2f} % of {score.n} images "
        f"({score.unlabelled} without an accepted label left out); top-1 "
        f"{100 * hits / len(numbers):.2f} % of {len(numbers)}",
        soft_wrap=True,
    )
    return score


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
