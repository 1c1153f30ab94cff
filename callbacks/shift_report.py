"""What PerClassMonitor shows of several test sets: side by side, by section, by class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from firstlight.callbacks.classes import Classes
from firstlight.callbacks.evaluation import Evaluation
from firstlight.callbacks.records import RunRecords, console, log_scalars
from firstlight.functional.shifts import (
    Counts,
    SetAccuracy,
    by_corruption,
    class_changes,
    mean_corruption_error,
    section_counts,
    set_accuracy,
)

SHOWN = 3
"""How many of the classes that lose most are named."""


@dataclass(frozen=True)
class Row:
    """One set, or one section of it, beside the own set.

    Attributes:
        name: the set's split.
        section: "" for the whole set.
        n: examples by class, (C,).
        correct: those that are right, (C,).
        accuracy: their summary.
        by_class: change of each class's accuracy against the own set.
        change: its mean over the classes that both have.
    """

    name: str
    section: str
    n: Counts
    correct: Counts
    accuracy: SetAccuracy
    by_class: Any
    change: float


@dataclass(frozen=True)
class Compared:
    """A set with its sections.

    Attributes:
        whole: all of it.
        sections: its parts, none where it has no sections or they cannot be told apart.
        mce: its mean corruption error, where the data set has a baseline.
        baseline: error by corruption of that baseline.
        scored: number of classes among which the largest logit was sought; None: all.
    """

    whole: Row
    sections: list[Row] = field(default_factory=list)
    mce: float | None = None
    baseline: dict[str, float] = field(default_factory=dict)
    scored: int | None = None


def report_shifts(
    trainer: Any, evaluations: Sequence[Evaluation], classes: Classes, records: RunRecords
) -> None:
    """Log, write and print several sets of one stage beside the first of them.

    Scalars of each further set: ``<set>/shift/change``, and with sections ``worst_section`` and,
    where there is a baseline, ``mce``. Tables ``shifts`` and ``shift_classes`` have every section.

    Args:
        trainer: for loggers.
        evaluations: finished and collected, of one stage, the own set first.
        classes: for names.
        records: the run folder.
    """
    first = evaluations[0]
    compared = [_compare(one, first) for one in evaluations]
    scalars = {}
    for one in compared[1:]:
        prefix = f"{one.whole.name}/shift"
        scalars[f"{prefix}/change"] = one.whole.change
        if one.sections:
            scalars[f"{prefix}/worst_section"] = min(r.accuracy.top1 for r in one.sections)
        if one.mce is not None:
            scalars[f"{prefix}/mce"] = one.mce
    log_scalars(trainer, scalars)
    if records.folder is not None:
        _write(records.folder, first, [r for c in compared for r in (c.whole, *c.sections)])
    if trainer.is_global_zero:
        _show(compared, classes)


def _compare(evaluation: Evaluation, own: Evaluation) -> Compared:
    n, correct = _counts(evaluation)
    whole = _row(evaluation.split, "", n, correct, own)
    data, table = evaluation.dataset, evaluation.table
    names: list[str] = getattr(data, "sections", None) or []
    sections: list[Row] = []
    mce, baseline = None, getattr(data, "baseline_errors", None) or {}
    if data is not None and len(names) > 1 and evaluation.in_order and table:
        numbers = np.asarray(data.section_numbers)[table["idx"]]
        parts = section_counts(table["target"], table["pred"], numbers, (len(names), len(n)))
        sections = [
            _row(evaluation.split, name, part_n, part_correct, own)
            for name, part_n, part_correct in zip(names, *parts, strict=True)
            if part_n.any()  # a run of limited batches sees a part
        ]
        top1 = [row.accuracy.top1 for row in sections]
        arranged = by_corruption([row.section for row in sections], top1)
        mce = mean_corruption_error(arranged, baseline) if baseline else None
    scored = evaluation.scored_classes
    return Compared(whole, sections, mce, baseline, None if scored is None else len(scored))


def _counts(evaluation: Evaluation) -> tuple[Counts, Counts]:
    n, correct = (evaluation.result[key].numpy().astype(np.int64) for key in ("n", "correct"))
    return n, correct


def _row(name: str, section: str, n: Counts, correct: Counts, own: Evaluation) -> Row:
    by_class, change = class_changes(n, correct, *_counts(own))
    return Row(name, section, n, correct, set_accuracy(n, correct), by_class, change)


def _write(folder: Any, first: Evaluation, rows: list[Row]) -> None:
    place = {"step": first.step, "epoch": first.epoch, "split": first.split}
    names = ("set", "section")
    columns = {
        name: [getattr(r, n) for r in rows]
        for name, n in zip(names, ("name", "section"), strict=True)
    }
    summary = {key: [getattr(r.accuracy, key) for r in rows] for key in SetAccuracy._fields}
    folder.write("shifts", {**columns, **summary, "change": [r.change for r in rows]}, **place)
    classes = len(rows[0].n)
    folder.write(
        "shift_classes",
        {
            **{name: np.repeat(values, classes).tolist() for name, values in columns.items()},
            "class": np.tile(np.arange(classes), len(rows)),
            "n": np.concatenate([r.n for r in rows]),
            "correct": np.concatenate([r.correct for r in rows]),
        },
        **place,
    )


def _show(compared: list[Compared], classes: Classes) -> None:
    own = compared[0].whole.name
    table = _table(f"{own} and further sets, side by side")
    left = ("set", "worst class", "lose most (points)")
    for title in ("set", "n", "acc. %", "mean %", "change", "worst class", "lose most (points)"):
        last = title == "lose most (points)"
        table.add_column(title, justify="left" if title in left else "right", no_wrap=not last)
    for one in compared:
        row, accuracy = one.whole, one.whole.accuracy
        is_own = row.name == own
        table.add_row(
            row.name.removeprefix(f"{own}/"),
            f"{accuracy.n:,}",
            _percent(accuracy.top1),
            _percent(accuracy.macro),
            "" if is_own else _points(row.change),
            f"{classes.names[accuracy.worst_class]} {_percent(accuracy.worst)}",
            "" if is_own else _losers(row, classes),
        )
    restricted = [
        f"{c.whole.name.removeprefix(f'{own}/')}: the largest logit among its {c.scored} classes."
        for c in compared
        if c.scored is not None
    ]
    table.caption = " ".join(
        [f"mean: over classes; change: of that mean from {own}, over the classes that both have.",
         *restricted]
    )  # fmt: skip
    console.print(table)
    for one in compared:
        if one.sections:
            _show_sections(one, own)


def _show_sections(one: Compared, own: str) -> None:
    top1 = by_corruption([r.section for r in one.sections], [r.accuracy.top1 for r in one.sections])
    levels = sorted({level for by_level in top1.values() for level in by_level})
    name = one.whole.name.removeprefix(f"{own}/")
    table = _table(f"{name}: accuracy % by section" + (" and severity" if levels != [""] else ""))
    table.add_column("section")
    for level in levels:
        table.add_column(level or "acc. %", justify="right")
    wide = len(levels) > 1
    if wide:
        table.add_column("mean", justify="right")
    if one.baseline:
        table.add_column("error / baseline's", justify="right")
    for corruption, by_level in top1.items():
        mean = float(np.mean(list(by_level.values())))
        cells = [_percent(by_level[lv]) if lv in by_level else "" for lv in levels]
        cells += [_percent(mean)] if wide else []
        if corruption in one.baseline:
            cells.append(f"{(1 - mean) / one.baseline[corruption]:.2f}")
        table.add_row(corruption, *cells)
    means = [np.mean(list(by_level.values())) for by_level in top1.values()]
    table.caption = f"mean of the {len(means)}: {_percent(float(np.mean(means)))}" + (
        "" if one.mce is None else f"; mCE {100 * one.mce:.1f} %"
    )
    console.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _losers(row: Row, classes: Classes) -> str:
    order = np.argsort(row.by_class, kind="stable")[:SHOWN]  # NaN sorts last
    lost = [c for c in order if row.by_class[c] < 0]
    return ", ".join(f"{classes.names[c]} {_points(row.by_class[c])}" for c in lost)


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.1f}"


def _points(change: float) -> str:
    return "" if np.isnan(change) else f"{100 * change:+.1f}"
