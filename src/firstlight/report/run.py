"""What the report says of one run."""

from collections.abc import Callable
from typing import Any

import numpy as np

from firstlight.figures.before_after import draw_before_after
from firstlight.figures.comparison import draw
from firstlight.figures.early_training import draw_early_training
from firstlight.figures.evaluations import (
    Classes,
    Counts,
    Pair,
    main_split,
    read_classes,
    read_evaluations,
    read_pairs,
)
from firstlight.figures.findings import points
from firstlight.figures.measurements import measured_tables
from firstlight.figures.per_class import draw_per_class
from firstlight.figures.picture import NothingToDrawError
from firstlight.figures.training_curves import draw_training_curves
from firstlight.functional import SHOTS
from firstlight.report.errors import class_table, confusion_section, percent, worst_section
from firstlight.report.page import Page, Section, Table
from firstlight.runfolder import RunFolder, RunFolderError

OFTEN = 12
"""Events of a kind from which only those of its last step are listed."""

MEASURED = {
    "fisher_trace": "this run recorded no Fisher trace: add FisherTraceMonitor, or measure its "
    "checkpoints: firstlight measure CHECKPOINTS",
    "sharpness": "this run recorded no sharpness: add SharpnessMonitor, or measure its checkpoints",
}
"""What is said where a table is missing."""


def run_page(folder: RunFolder) -> Page:
    """Read a run folder into a page; tables that are missing or damaged are named in it."""
    damaged: list[str] = []

    def read(what: Callable[[], Section]) -> Section | None:
        try:
            return what()
        except (RunFolderError, NothingToDrawError) as error:
            damaged.append(str(error))
            return None

    try:
        evaluations = read_evaluations(folder)
    except RunFolderError as error:
        damaged.append(str(error))
        evaluations = {}
    sections: list[Section | None] = []
    tiles: list[tuple[str, str]] = []
    finding = "This run recorded no evaluation of its classes"
    missing = [f"{finding}: train or test it with PerClassMonitor."]
    if evaluations:
        counts = evaluations[main_split(evaluations)][-1]
        try:
            classes = read_classes(folder, len(counts.n))
        except RunFolderError as error:
            damaged.append(str(error))
            classes = Classes.unnamed(len(counts.n))
        finding, tiles, missing = _finding(counts, classes), _tiles(counts, classes), []
        sections += [
            Section(
                "Every class",
                pictures=[draw_per_class(counts, classes)],
                tables=[class_table(counts, classes)],
            ),
            read(lambda: worst_section(folder, counts, classes)),
            read(lambda: confusion_section(folder, counts, classes)),
            read(lambda: _before_after(read_pairs(folder, evaluations), classes)),
        ]
    sections += [
        read(lambda: _training(folder)),
        read(lambda: _events(folder)),
        _config(folder),
    ]
    if missing or damaged:
        sections.append(Section("Not in this report", missing=[*missing, *damaged]))
    return Page("Run", _name(folder), finding, _notes(folder, damaged), tiles, _facts(folder),
                [section for section in sections if section is not None])  # fmt: skip


def _name(folder: RunFolder) -> str:
    run = folder.run
    told = [run.get("arm"), None if run.get("seed") is None else f"seed {run['seed']}"]
    return ", ".join([*(str(one) for one in told if one), str(run.get("run_id") or folder.path)])


def _finding(counts: Counts, classes: Classes) -> str:
    """The one sentence: how good, and who pays for it."""
    summary = counts.summary(classes)
    worst = int(summary["worst_class"])
    said = (f"{percent(summary['micro'])} of {int(counts.n.sum()):,} {_words(counts.split)} images "
            f"are right, {int(counts.correct[worst]):,} of {int(counts.n[worst]):,} of the worst "
            f"class, {classes.names[worst]}")  # fmt: skip
    if np.isfinite(summary["many"]) and np.isfinite(summary["few"]):
        said += (f"; {percent(summary['many'])} in classes with many training images, "
                 f"{percent(summary['few'])} in those with few")  # fmt: skip
    return said


def _words(split: str) -> str:
    return {"val": "validation", "train": "training"}.get(split, split)


def _tiles(counts: Counts, classes: Classes) -> list[tuple[str, str]]:
    summary = counts.summary(classes)
    images, worst = f"{int(counts.n.sum()):,} {_words(counts.split)} images", summary["worst_class"]
    tiles = [
        (percent(summary["micro"]), f"of {images}"),
        (percent(summary["macro"]), "mean over classes"),
        (percent(summary["min"]), f"worst class, {classes.names[int(worst)]}"),
    ]
    if len(counts.n) >= 100:
        tiles.append((percent(summary["worst_1pct"]), "mean of the worst 1 % of classes"))
    for name in SHOTS:
        if np.isfinite(summary[name]):
            size = classes.shots.count(name)
            words = f"{name} shots, {size:,} class" + ("" if size == 1 else "es")
            tiles.append((percent(summary[name]), words))
    return tiles


def _notes(folder: RunFolder, damaged: list[str]) -> list[str]:
    status, notes = folder.run.get("status"), []
    if status == "running":
        notes.append(
            "This run has not ended (its status is running): the numbers are those so far."
        )
    elif status not in ("finished", None):
        notes.append(f"This run did not end by itself (its status is {status}).")
    if any("cannot be read" in text for text in damaged):
        notes.append("Some files of this run cannot be read; they are named at the end.")
    return notes


def _before_after(pairs: list[Pair], classes: Classes) -> Section:
    """Figures of what the folder has both sides of, and the groups' means."""
    if not pairs:
        raise RunFolderError(
            "nothing is shown before and after: one evaluation of one set was recorded. Two come "
            "from validation during training, from LastLayerRetraining or from PriorCorrection"
        )
    tables = []
    for pair in pairs:
        sides = [pair.before, pair.after]
        summaries = [counts.summary(classes) for counts, _ in sides]
        names = {"micro": "all images", "macro": "mean over classes", "min": "worst class",
                 **{shot: f"{shot} shots" for shot in SHOTS}}  # fmt: skip
        rows = [
            [words, *(percent(one[key]) for one in summaries),
             points(summaries[1][key] - summaries[0][key])]
            for key, words in names.items() if np.isfinite(summaries[0][key])
        ]  # fmt: skip
        head = ["", *(words for _, words in sides), "points"]
        tables.append(Table(f"{pair.what}, on {int(pair.before[0].n.sum()):,} images", head, rows,
                            (1, 2, 3)))  # fmt: skip
    if pairs[0].name == "first_and_last":
        lead = ("No retrained head or corrected prior is recorded here: the first and the last "
                "evaluation of the training are compared.")  # fmt: skip
    else:
        lead = "The same images, by the classifier as it was trained and as it was changed."
    return Section("Before and after", lead, [draw_before_after(p, classes) for p in pairs], tables)


def _training(folder: RunFolder) -> Section:
    """Curves of the run, and what was measured of its early part."""
    drawn = draw([lambda: draw_training_curves(folder)])
    pictures, missing = drawn.pictures, list(drawn.missing)
    missing += [text for table, text in MEASURED.items() if not folder.read(table).num_rows]
    if measured_tables(folder):
        pictures.append(draw_early_training(folder))
    return Section("Training", pictures=pictures, missing=missing)


def _events(folder: RunFolder) -> Section:
    """What happened to the run: of what happens often, what did so last."""
    rows = folder.read("events").sort_by("step").to_pylist()
    if not rows:
        return Section("What happened", missing=["no event was recorded (thaw, change of learning "
                                                 "rate, retraining, noise)"])  # fmt: skip
    kept: list[dict[str, Any]] = []
    missing = []
    for kind in dict.fromkeys(row["kind"] or "event" for row in rows):
        of_kind = [row for row in rows if (row["kind"] or "event") == kind]
        last = [row for row in of_kind if row["step"] == of_kind[-1]["step"]]
        chosen = of_kind if len(of_kind) <= OFTEN else last
        if len(chosen) < len(of_kind):
            missing.append(f"{len(of_kind) - len(chosen):,} earlier events of kind {kind!r} are "
                           "not listed; the table events has them")  # fmt: skip
        kept += chosen
    texts = [[f"{row['step']:,}", row["kind"] or "", row["block"] or "", row["reason"] or ""]
             for row in sorted(kept, key=lambda row: row["step"])]  # fmt: skip
    table = Table("In the order of steps", ("step", "what", "part", "why"), texts, (0,))
    return Section("What happened", tables=[table], missing=missing)


def _config(folder: RunFolder) -> Section:
    file = folder.path / "config.yaml"
    if not file.exists():
        return Section("Configuration", missing=["no config.yaml is in the run folder"])
    return Section("Configuration", folded={"config.yaml": file.read_text(errors="replace")})


def _facts(folder: RunFolder) -> dict[str, str]:
    """What ``run.json`` knows."""
    run = folder.run
    names = {
        "run_id": "run", "status": "status", "seed": "seed", "arm": "arm", "factor": "factor",
        "strength": "strength", "dataset": "data", "resolution": "resolution (px)",
        "eval_transform": "evaluation transform", "weights": "weights", "recipe_hash": "recipe",
        "commit": "commit",
    }  # fmt: skip
    facts = {words: str(run[key]) for key, words in names.items() if run.get(key) is not None}
    versions = run.get("versions") or {}
    if versions:
        facts["versions"] = ", ".join(f"{name} {one}" for name, one in versions.items() if one)
    facts["folder"] = str(folder.path)
    return facts
