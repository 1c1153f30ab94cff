"""``firstlight compare``: which classes does an augmentation or a regulariser hurt?"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from firstlight.compare.comparison import (
    CLASS_EFFECTS,
    Comparison,
    Question,
    compare_arms,
    compare_strengths,
)
from firstlight.compare.other_labels import OtherLabels, read_other_labels
from firstlight.compare.report import show
from firstlight.compare.runs import ComparedRuns, read_runs
from firstlight.figures.compared_folder import ComparedFolder
from firstlight.figures.comparison import comparison_pictures
from firstlight.runfolder import new_folder, replacing
from firstlight.terminal import console


def compare(
    runs: Sequence[str | Path] = (),
    *,
    arm: Mapping[str, Sequence[str | Path]] | None = None,
    arms: Sequence[str] | None = None,
    strengths: Mapping[str, float] | None = None,
    split: str | None = None,
    question: Question = "test_set",
    least: float = 0.02,
    worst: int = 10,
    draws: int = 400,
    level: float = 0.95,
    trend: bool = False,
    real: str | Path | None = None,
    seed: int = 0,
    out: str | Path = "class_effects",
) -> Path:
    """Say which classes' accuracies an arm changes by more than seeds do, and where errors went.

    Every arm is compared with the first, and, where three arms or more have a strength, a line over
    strength is fitted to all. Five runs an arm or more are good, three the least for any claim:
    below, no q is given, only the null band, the sorted effects of all classes as chance alone
    would draw them. Predictions are read from the runs' folders (`PerClassMonitor` writes them).

    Two questions are told apart. ``test_set``: would other seeds change the same classes, on these
    images? ``new_images``: would they on other images of the classes, too? The second needs larger
    effects. Tables hold the answers to both.

    Args:
        runs: run folders, whose ``run.json`` says the arm (`PerClassMonitor`'s ``study``).
        arm: run folders by arm, whatever their ``run.json`` says.
        arms: names of the arms to take, the one to compare with first; None for all, the least
            strength first where every arm has one, otherwise as they come.
        strengths: by arm, in the place of what ``run.json`` says.
        split: evaluation to compare; None for ``test``, or the only one that all runs have.
        question: which one's q and intervals are printed and drawn.
        least: smallest effect reported, as a fraction: .02 is two points.
        worst: how many classes are printed at either end.
        draws: of the null band; 0 for none, which one run an arm is not compared without.
        level: of intervals and bands, in (0, 1).
        trend: let the seeds' variance depend on a class's accuracy; see `moderated_t`.
        real: ImageNet's reassessed labels, ``real.json`` (arXiv 2006.07159), or "timm" for the copy
            that timm ships: effects by these, too, as columns ``real_*`` and a figure. Images for
            which they accept no label are left out of both sides there. Over seeds only.
        seed: of all random draws.
        out: the folder to make; made unique, never overwritten.

    Returns:
        The folder. It holds ``class_effects.parquet`` (a row for each class of each comparison; see
        `firstlight.compare.comparison.CLASS_EFFECTS`), ``accuracies.parquet`` (of each class in
        each run), ``confusion_shifts.parquet`` (change of P(predicted class | true class), its
        interval over seeds on these images), ``summary.json`` and ``figures``.

    Raises:
        RunFolderError: on a folder or table that cannot be read, by name.
        ValueError: on runs that cannot be compared, see `firstlight.compare.runs.read_runs`; on an
            argument that cannot be right; on one run an arm without a null band.
    """
    _check(question, least, worst, draws, level)
    read = read_runs(runs, arm or {}, arms, strengths, split)
    if not draws and read.scored.replicas.min() < 2:
        raise ValueError(
            "an arm has one run only: differences between single runs are ranked beside the null "
            "band or not at all, since chance makes the worst of many classes look terrible. Leave "
            "out draws=0, or add runs"
        )
    settings = {"level": level, "trend": trend, "draws": draws, "seed": seed}
    labels = None if real is None else read_other_labels(read, real)
    found = [compare_arms(read, 0, other, settings, labels) for other in range(1, len(read.arms))]
    steps = {arm.strength for arm in read.arms}
    if len(read.arms) > 2 and None not in steps and len(steps) > 1:
        found.append(compare_strengths(read, settings, labels))
    folder = new_folder(Path(out))
    _write(folder, read, found, {**settings, "question": question, "least": least}, labels)
    show(console, read, found, question, least, worst, labels)
    for drawn in comparison_pictures(ComparedFolder.open(folder)).values():
        for picture in drawn.pictures:
            picture.write(folder / "figures")
        for note in drawn.missing:
            console.print(f"No figure: {note}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"The figures: {folder / 'figures'}", soft_wrap=True, highlight=False)
    console.print(f"The tables:  {folder}", soft_wrap=True, highlight=False)
    return folder


def _check(question: str, least: float, worst: int, draws: int, level: float) -> None:
    if question not in get_args(Question):
        raise ValueError(f"question is one of {get_args(Question)}, not {question!r}")
    if not 0 <= least <= 1:
        raise ValueError(f"least is an accuracy from 0 to 1 (.02 is two points), not {least}")
    if worst < 1 or draws < 0 or not 0 < level < 1:
        raise ValueError(f"worst must be at least 1, draws at least 0, level in (0, 1); got {worst}"
                         f", {draws}, {level}")  # fmt: skip


def _write(
    folder: Path,
    read: ComparedRuns,
    found: Sequence[Comparison],
    settings: Mapping[str, Any],
    labels: OtherLabels | None,
) -> None:
    _write_table(folder, "class_effects", pa.concat_tables([one.table() for one in found]))
    assert found[0].table().schema == CLASS_EFFECTS
    _write_table(folder, "accuracies", _accuracies(read))
    shifts = [_shifts(read, one) for one in found if not one.slope]
    _write_table(folder, "confusion_shifts", pa.concat_tables(shifts))
    summary = {
        "firstlight": version("firstlight"),
        "split": read.split,
        "images": len(read.scored.targets),
        "classes": read.scored.num_classes,
        "settings": dict(settings),
        "arms": [
            {"arm": a.name, "factor": a.factor, "strength": a.strength, "seeds": a.seeds,
             "runs": [str(path) for path in a.runs]}
            for a in read.arms
        ],
        "comparisons": [one.summary for one in found],
        "real": None if labels is None else labels.summary,
        "notes": read.notes,
    }  # fmt: skip
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n")


def _write_table(folder: Path, name: str, table: pa.Table) -> None:
    with replacing(folder / f"{name}.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _accuracies(read: ComparedRuns) -> pa.Table:
    """A row for each class in each run."""
    runs = [(arm, path, seed) for arm in read.arms
            for path, seed in zip(arm.runs, arm.seeds, strict=True)]  # fmt: skip
    classes = read.scored.num_classes
    return pa.table({
        "arm": np.repeat([arm.name for arm, _, _ in runs], classes),
        "strength": pa.array(np.repeat(
            np.array([arm.strength for arm, _, _ in runs], np.float64), classes), from_pandas=True),
        "run": np.repeat([str(path) for _, path, _ in runs], classes),
        "seed": np.repeat([seed for _, _, seed in runs], classes),
        "class": np.tile(np.arange(classes, dtype=np.int32), len(runs)),
        "name": read.names * len(runs),
        "accuracy": pa.array(read.scored.accuracy.ravel(), from_pandas=True),
    })  # fmt: skip


def _shifts(read: ComparedRuns, one: Comparison) -> pa.Table:
    """A row for each pair of a true and a wrong class whose share differs from the first arm's."""
    found = one.shifts
    assert found is not None, "of two arms"
    moved = np.flatnonzero(found.before != found.after)
    names = np.array(read.names, dtype=object)
    numbers = {key: pa.array(getattr(found, key)[moved], from_pandas=True)
               for key in ("before", "after", "se", "low", "high")}  # fmt: skip
    return pa.table({
        "comparison": [one.name] * len(moved),
        "target": found.target[moved].astype(np.int32),
        "pred": found.pred[moved].astype(np.int32),
        "target_name": names[found.target[moved]].tolist(),
        "pred_name": names[found.pred[moved]].tolist(),
        **numbers,
    })  # fmt: skip
