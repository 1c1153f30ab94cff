"""What the report says of a run's errors: its worst classes, with examples, and its confusions."""

from pathlib import Path

import numpy as np

from firstlight.figures.confusions import draw_confusions
from firstlight.figures.evaluations import Classes, Counts
from firstlight.functional import confusion_pairs, expected_worst_accuracy, wilson_interval
from firstlight.report.page import Card, Example, Section, Table
from firstlight.runfolder import RunFolder, RunFolderError

WORST = 10
"""Classes shown."""
PAIRS = 12
"""Confusions shown."""
HEAVY = 64 * 1024
"""Bytes from which an image is left out: those that PerClassMonitor saves are smaller."""
LISTED = 20
"""Most classes in the table of all of them; even."""


def percent(value: float) -> str:
    """A fraction in percent; a dash where there is none."""
    return f"{100 * value:.1f} %" if np.isfinite(value) else "-"


class Predictions:
    """The last predictions of one split, or the confusions where there are none.

    Raises:
        RunFolderError: where neither is there, or the file cannot be read.
    """

    def __init__(self, folder: RunFolder, split: str) -> None:
        self.of_image: dict[int, tuple[int, float]] = {}
        if folder.has("predictions", split):
            table = folder.read_last("predictions", split, ["idx", "target", "pred", "p_pred"])
            target, pred = (table[key].to_numpy() for key in ("target", "pred"))
            self.target, self.pred, self.count = confusion_pairs(target, pred)
            sure = table["p_pred"].to_pylist()
            wrong = np.flatnonzero(target != pred)
            idx = table["idx"].to_numpy()
            self.of_image = {int(idx[i]): (int(pred[i]), sure[i]) for i in wrong}
            return
        rows = [row for row in folder.read("confusions").to_pylist() if row["split"] == split]
        if not rows:
            raise RunFolderError(
                f"no predictions of {split} were recorded, so that nobody knows what the classes "
                "are taken for: PerClassMonitor writes them when fit or test ends"
            )
        rows = [row for row in rows if row["step"] == max(r["step"] for r in rows)]
        self.target, self.pred, self.count = (
            np.array([row[key] for row in rows], np.int64) for key in ("target", "pred", "count")
        )


def worst_section(folder: RunFolder, counts: Counts, classes: Classes) -> Section:
    """Cards of the classes of lowest accuracy, and a table of all where they are not too many."""
    accuracy, missing = counts.accuracy, []
    order = [int(c) for c in np.argsort(accuracy, kind="stable") if np.isfinite(accuracy[c])]
    try:
        found: Predictions | None = Predictions(folder, counts.split)
    except RunFolderError as error:
        found, missing = None, [str(error)]
    images, left_out = _examples(folder.path / "examples")
    if not images:
        missing.append("no example images are in the run folder: PerClassMonitor saves them from "
                       "data sets that give images by index")  # fmt: skip
    if left_out:
        missing.append(f"{left_out} example images are not shown: they are no PNG, or larger than "
                       f"{HEAVY // 1024} KiB")  # fmt: skip
    present = counts.n[counts.n > 0]
    micro = counts.correct.sum() / counts.n.sum()
    chance = expected_worst_accuracy(len(present), int(np.median(present)), micro)
    lead = (f"Were all classes equally good, the worst of {len(present):,} would show about "
            f"{percent(chance)} by chance.")  # fmt: skip
    bad = [c for c in order if accuracy[c] < 1][:WORST]
    if not bad:
        return Section("The worst classes", "Every image of every class is right.")
    cards = [_card(c, counts, classes, found, images.get(c, [])) for c in bad]
    return Section("The worst classes", lead, cards=cards, missing=missing)


def class_table(counts: Counts, classes: Classes) -> Table:
    """Every class, the worst first; of many those at either end."""
    order = [int(c) for c in np.argsort(counts.accuracy, kind="stable") if counts.n[c] > 0]
    caption = "All classes, the worst first"
    if len(order) > LISTED:
        caption = f"The {LISTED // 2} worst of {len(order):,} classes, and the {LISTED // 2} best"
        order = [*order[: LISTED // 2], *order[-LISTED // 2 :]]
    rows = [_row(c, counts, classes) for c in order]
    return Table(caption, ("class", "accuracy", "95 % interval", "images", "in training"), rows,
                 (1, 2, 3, 4))  # fmt: skip


def _examples(folder: Path) -> tuple[dict[int, list[tuple[int, bytes]]], int]:
    """Images by class, with their index, and how many are not fit to be shown."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    left_out = 0
    for file in sorted(folder.glob("*.png")):
        c, _, idx = file.stem.partition("_")
        content = file.read_bytes()
        if (
            not (c.isdecimal() and idx.isdecimal() and content.startswith(b"\x89PNG"))
            or len(content) > HEAVY
        ):
            left_out += 1
        else:
            found.setdefault(int(c), []).append((int(idx), content))
    return found, left_out


def _interval(c: int, counts: Counts) -> str:
    low, high = wilson_interval(counts.correct[[c]], counts.n[[c]])
    return f"{100 * low[0]:.0f}\xa0to\xa0{100 * high[0]:.0f}\xa0%"


def _taken_for(c: int, classes: Classes, found: Predictions | None) -> str:
    if found is None:
        return "unknown"
    rows = np.flatnonzero(found.target == c)
    best = rows[np.argsort(-found.count[rows], kind="stable")][:2]
    return ", ".join(f"{_name(classes, found.pred[r])} ({found.count[r]:,})" for r in best) or "-"


def _name(classes: Classes, c: int) -> str:
    return classes.names[c] if c < len(classes.names) else str(c)


def _row(c: int, counts: Counts, classes: Classes) -> list[str]:
    trained = "unknown" if classes.counts is None else f"{int(classes.counts[c]):,}"
    return [classes.names[c], percent(counts.accuracy[c]), _interval(c, counts),
            f"{int(counts.n[c]):,}", trained]  # fmt: skip


def _card(
    c: int,
    counts: Counts,
    classes: Classes,
    found: Predictions | None,
    images: list[tuple[int, bytes]],
) -> Card:
    right, n = int(counts.correct[c]), int(counts.n[c])
    facts = [f"{percent(counts.accuracy[c])} right, {right:,} of {n:,} ({_interval(c, counts)})"]
    if classes.counts is not None:
        group = f", {classes.shots[c]} shots" if classes.shots[c] else ""
        facts.append(f"{int(classes.counts[c]):,} training images{group}")
    facts.append(f"taken for {_taken_for(c, classes, found)}")
    examples = []
    for idx, content in images:
        words = f"image {idx:,}"
        if found is not None and idx in found.of_image:
            pred, sure = found.of_image[idx]
            words = f"as {_name(classes, pred)}"
            words += f", {100 * sure:.0f} %" if sure is not None and np.isfinite(sure) else ""
        examples.append(Example(content, words))
    return Card(classes.names[c], facts, examples)


def confusion_section(folder: RunFolder, counts: Counts, classes: Classes) -> Section:
    """The most frequent pairs of a true class and a wrong prediction."""
    found = Predictions(folder, counts.split)
    if not len(found.count):
        return Section("Confusions", "No image is classified wrongly.")
    both = {(int(t), int(p)): int(k) for t, p, k in
            zip(found.target, found.pred, found.count, strict=True)}  # fmt: skip
    order = np.argsort(-found.count, kind="stable")[:PAIRS]
    pairs = [
        (target, pred, both[target, pred], both[target, pred] / max(1.0, counts.n[target]))
        for target, pred in zip(
            found.target[order].tolist(), found.pred[order].tolist(), strict=True
        )
    ]
    rows = [
        [_name(classes, target), _name(classes, pred), f"{count:,}", percent(share),
         f"{both.get((pred, target), 0):,}"]
        for target, pred, count, share in pairs
    ]  # fmt: skip
    errors, shown = int(found.count.sum()), int(found.count[order].sum())
    lead = (f"{errors:,} images are classified wrongly; these {len(rows)} pairs of {len(both):,} "
            f"hold {percent(shown / errors)} of them.")  # fmt: skip
    head = ("true class", "taken for", "images", "of the class", "the reverse")
    table = Table("Pairs by number of images", head, rows, (2, 3, 4))
    named = [(_name(classes, t), _name(classes, p), count, share) for t, p, count, share in pairs]
    return Section("Confusions", lead, [draw_confusions(named, counts.split)], [table])
