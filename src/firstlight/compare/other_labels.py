"""The same predictions judged by ImageNet's reassessed labels (ReaL)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.compare.runs import ComparedRuns
from firstlight.functional import ScoredRuns, accepted_predictions, relabelled_effects
from firstlight.functional.scored_runs import Floats
from firstlight.rescore import image_numbers, labels_of, refuse_other_classes
from firstlight.runfolder import RunFolder

TIMMS = "timm"
"""In the place of a file: the copy that timm ships."""


@dataclass(frozen=True)
class OtherLabels:
    """Judgements of all runs by other labels.

    Attributes:
        source: the file of labels, or `TIMMS`.
        accepted: whether each run's prediction is among the image's labels, (runs, N).
        labelled: which images have any, (N,).
    """

    source: str
    accepted: NDArray[np.bool_]
    labelled: NDArray[np.bool_]

    @property
    def summary(self) -> dict[str, Any]:
        """As ``summary.json`` holds it."""
        images = int(self.labelled.sum())
        unlabelled = len(self.labelled) - images
        return {"labels": self.source, "images": images, "unlabelled": unlabelled}


def read_other_labels(read: ComparedRuns, real: str | Path) -> OtherLabels:
    """Judge the runs' predictions anew, images being told by their file names.

    Args:
        read: runs on ImageNet's validation images, with paths in their predictions.
        real: the reassessed labels' ``real.json``, or `TIMMS`.

    Raises:
        RunFolderError: where the runs are not of ImageNet's images and 1,000 classes.
        ValueError: where runs have other images, or no image has a label.
    """
    folders = [RunFolder.open(path) for arm in read.arms for path in arm.runs]
    first, *others = folders
    refuse_other_classes(len(read.names), first.path)
    paths = _paths(first, read.split)
    file = None if str(real) == TIMMS else str(real)
    labels, numbers = labels_of(paths, file, first.path), image_numbers(paths, first.path)
    for folder in others:
        theirs = _paths(folder, read.split)
        if theirs != paths and image_numbers(theirs, folder.path) != numbers:
            raise ValueError(f"{first.path} and {folder.path} have other images in their places, "
                             "by the names of the files")  # fmt: skip
    accepted, labelled = accepted_predictions(read.pred, labels)
    if not labelled.any():
        raise ValueError(f"{real} accepts no label for any image of {read.split!r}")
    return OtherLabels(str(real), accepted, labelled)


def _paths(folder: RunFolder, split: str) -> list[str | None]:
    column: list[str | None] = folder.read_last("predictions", split, ["path"])["path"].to_pylist()
    return column


def relabelled_columns(
    scored: ScoredRuns,
    labels: OtherLabels,
    rows: NDArray[np.int64],
    weights: Floats | None,
    ends: tuple[int, int],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Columns ``real_*`` of a comparison.

    Args:
        scored: runs judged by the original labels.
        labels: all runs' judgements by the others.
        rows: which of these are the runs of ``scored``.
        weights: of its arms.
        ends: its arms compared, or of the least and the most strength.
        settings: as `firstlight.compare.compare` has them.
    """
    found = relabelled_effects(
        scored, labels.accepted[rows], labels.labelled, weights,
        trend=settings["trend"], level=settings["level"],
    )  # fmt: skip
    tested = {key: getattr(found.relabelled, key)
              for key in ("effect", "se", "p", "q", "low", "high")}  # fmt: skip
    columns = {
        "n": found.n.astype(np.int64),
        "accuracy_before": found.accuracy[ends[0]],
        "accuracy_after": found.accuracy[ends[1]],
        "original": found.original,
        **tested,
        "moved": found.moved,
        "moved_se": found.moved_se,
    }
    return {f"real_{key}": value for key, value in columns.items()}
