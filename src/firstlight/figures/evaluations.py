"""What a run folder says of every class at every evaluation, as arrays over classes."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.functional import SHOTS, summarise_classes
from firstlight.runfolder import RunFolder, RunFolderError

Floats = NDArray[np.float64]

HEADS = ("prior_uncorrected", "prior_corrected")
"""Ends of the splits that `PriorCorrection` writes."""


@dataclass(frozen=True)
class Classes:
    """A run's classes; what is not known is None.

    Attributes:
        names: their indices where they have none.
        counts: images of the full training set, or of the one trained on.
        shots: each one's group.
    """

    names: list[str]
    counts: Floats | None
    shots: list[str | None]

    @classmethod
    def unnamed(cls, count: int) -> "Classes":
        """So many classes of which nothing is known."""
        return cls([str(c) for c in range(count)], None, [None] * count)


@dataclass(frozen=True)
class Counts:
    """One evaluation, class by class.

    Attributes:
        split: its name.
        step: optimiser updates before it.
        epoch: of the run.
        n: examples, (C,).
        correct: of them, (C,).
    """

    split: str
    step: int
    epoch: int
    n: Floats
    correct: Floats

    @property
    def accuracy(self) -> Floats:
        """In [0, 1]; NaN without examples."""
        return np.divide(self.correct, self.n, out=np.full_like(self.n, np.nan), where=self.n > 0)

    def summary(self, classes: Classes) -> dict[str, float]:
        """As `firstlight.functional.summarise_classes` has it."""
        columns = {"n": torch.from_numpy(self.n).long()}
        columns["correct"] = torch.from_numpy(self.correct).long()
        columns["pred_count"] = columns["n"]
        return summarise_classes(columns, classes.shots)


def read_classes(folder: RunFolder, count: int) -> Classes:
    """Return names, counts and groups of ``count`` classes."""
    table = folder.read("classes").to_pydict()
    if len(table["class"]) < count:
        return Classes.unnamed(count)
    names = [str(c) if name is None else name for c, name in enumerate(table["name"])]
    counts = next((np.array(table[key], float) for key in ("full_count", "train_count")
                   if None not in table[key]), None)  # fmt: skip
    return Classes(names, counts, table["shot"])


def read_evaluations(folder: RunFolder) -> dict[str, list[Counts]]:
    """Return every evaluation by split, in the order of steps; those without examples left out."""
    table = folder.read("per_class")
    found: dict[str, list[Counts]] = {}
    columns = {key: table[key].to_numpy(zero_copy_only=False)
               for key in ("split", "step", "epoch", "class", "n", "correct")}  # fmt: skip
    splits = columns["split"].astype(str)
    for split in dict.fromkeys(splits):
        of_split = splits == split
        for step in np.unique(columns["step"][of_split]):
            rows = np.flatnonzero(of_split & (columns["step"] == step))
            rows = rows[np.argsort(columns["class"][rows], kind="stable")]
            n = columns["n"][rows].astype(float)
            if n.any():
                correct = columns["correct"][rows].astype(float)
                epoch = int(columns["epoch"][rows[0]])
                found.setdefault(split, []).append(Counts(split, int(step), epoch, n, correct))
    return found


def main_split(evaluations: dict[str, list[Counts]]) -> str:
    """The split that a run is judged by: test, else validation, else what there is.

    Raises:
        RunFolderError: where there is none.
    """
    plain = [s for s in evaluations if not s.startswith("retrain") and not s.endswith(HEADS)]
    for stage in ("test", "val", "train"):
        of_stage = [split for split in plain if split.split("/")[0] == stage]
        if of_stage:
            return of_stage[0]
    if plain or evaluations:
        return next(iter(plain or evaluations))
    raise RunFolderError("no evaluation of the classes was recorded: train with PerClassMonitor")


def shot_means(accuracy: Floats, shots: list[str | None]) -> dict[str, float]:
    """Mean accuracy of the classes of every group that has one with examples."""
    groups = np.array(shots, dtype=object)
    members = {name: accuracy[(groups == name) & ~np.isnan(accuracy)] for name in SHOTS}
    return {name: float(values.mean()) for name, values in members.items() if len(values)}


@dataclass(frozen=True)
class Pair:
    """Two evaluations of one set of examples, before and after something.

    Attributes:
        name: of files.
        what: was done in between, as the subject of a sentence.
        before: evaluation, and the words for it.
        after: likewise.
    """

    name: str
    what: str
    before: tuple[Counts, str]
    after: tuple[Counts, str]


def read_pairs(folder: RunFolder, evaluations: dict[str, list[Counts]]) -> list[Pair]:
    """Return what the folder has both sides of: a new head, a corrected prior, else two epochs."""
    pairs = [*_retrained(folder, evaluations), *_corrected(evaluations)]
    if pairs:
        return pairs
    for series in evaluations.values():
        if len(series) > 1:
            first, last = series[0], series[-1]
            return [Pair("first_and_last", f"Training, on {first.split}",
                         (first, f"epoch {first.epoch}, step {first.step:,}"),
                         (last, f"epoch {last.epoch}, step {last.step:,}"))]  # fmt: skip
    return []


def _retrained(folder: RunFolder, evaluations: dict[str, list[Counts]]) -> list[Pair]:
    """The head as trained, and the one kept, or else that of the best mean over classes."""
    found = {split.split("/")[-1]: series[-1] for split, series in evaluations.items()
             if split.startswith("retrain")}  # fmt: skip
    rules = [rule for rule in found if rule != "before"]
    if "before" not in found or not rules:
        return []
    reasons = [row["reason"] or "" for row in folder.read("events").to_pylist()
               if row["kind"] == "retrain"]  # fmt: skip
    kept = [text.split(":")[0] for text in reasons if text.endswith(", kept")]
    rule = next((r for r in reversed(kept) if r in rules),
                max(rules, key=lambda r: float(np.nanmean(found[r].accuracy))))  # fmt: skip
    words = f"{rule} (kept)" if rule in kept else f"{rule} (best mean, not kept)"
    return [Pair("retrained", f"A last layer retrained by {rule}", (found["before"], "as trained"),
                 (found[rule], words))]  # fmt: skip


def _corrected(evaluations: dict[str, list[Counts]]) -> list[Pair]:
    """Of the test set, or of another where that was not corrected."""
    pairs = []
    for split, series in evaluations.items():
        before = evaluations.get(split.replace(HEADS[1], HEADS[0]))
        if split.endswith(HEADS[1]) and before is not None:
            where = split.split("/")[0]
            name = {"val": "validation"}.get(where, where)
            pairs.append(Pair(f"prior_corrected-{where}", f"Prior correction, on {name} data",
                              (before[-1], "as trained"), (series[-1], "corrected")))  # fmt: skip
    return [pair for pair in pairs if pair.name.endswith("-test")] or pairs
