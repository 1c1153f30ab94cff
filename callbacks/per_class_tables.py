"""What PerClassMonitor writes into the run folder."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.callbacks.classes import Classes
from firstlight.callbacks.evaluation import Evaluation
from firstlight.functional import confusion_pairs
from firstlight.runfolder import RunFolder, fingerprint


def writer(folder: RunFolder, evaluation: Evaluation) -> Callable[[str, Mapping[str, Any]], Path]:
    """Return what writes columns into a table, at the step and for the split of an evaluation."""
    return partial(
        folder.write, step=evaluation.step, epoch=evaluation.epoch, split=evaluation.split
    )


def write_classes(folder: RunFolder, classes: Classes) -> None:
    """Write the table ``classes``."""
    columns = {
        "class": range(len(classes.names)),
        "name": classes.names,
        "train_count": classes.train_counts,
        "full_count": classes.full_counts,
        "shot": classes.shots,
    }
    folder.write("classes", columns)


def write_counts(folder: RunFolder, evaluation: Evaluation) -> None:
    """Write the table ``per_class``."""
    counts = evaluation.result
    columns = {k: v.numpy() for k, v in counts.items() if not k.startswith("top")}
    columns["class"] = np.arange(len(counts["n"]))
    writer(folder, evaluation)("per_class", columns)


def write_predictions(folder: RunFolder, evaluation: Evaluation) -> None:
    """Write ``confusions`` and, where examples came in the data set's order, ``predictions``."""
    table, write = evaluation.table, writer(folder, evaluation)
    pairs = confusion_pairs(table["target"], table["pred"])
    write("confusions", dict(zip(("target", "pred", "count"), pairs, strict=True)))
    if evaluation.in_order:
        write("predictions", {**table, "path": evaluation.paths()})
        folder.update(split=evaluation.split, targets_sha256=fingerprint(table["target"].tolist()))
