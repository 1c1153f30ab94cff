"""The runs that ``firstlight compare`` sets side by side: read, grouped by arm, and checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firstlight.functional import ScoredRuns
from firstlight.runfolder import RunFolder, RunFolderError

SCORES = ("p_true", "p_pred", "nll")
ALIKE = ("eval_transform", "resolution", "weights", "dataset")
"""What makes runs incomparable to the eye, though their test images are the same."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ by their seed only.

    Attributes:
        name: of the arm.
        factor: what the arms differ by, or None.
        strength: how much of it, or None.
        runs: folders, in the order of the rows of predictions.
        seeds: of the runs.
    """

    name: str
    factor: str | None
    strength: float | None
    runs: list[Path]
    seeds: list[str]


@dataclass(frozen=True)
class ComparedRuns:
    """Predictions of all runs on one test set.

    Attributes:
        arms: the first is what the others are compared with.
        split: which evaluation.
        pred: predicted classes, (runs, N), in the order of arms.
        scored: which of them are right.
        names: of the classes.
        notes: what a reader should know of these runs.
    """

    arms: list[Arm]
    split: str
    pred: NDArray[np.int32]
    scored: ScoredRuns
    names: list[str]
    notes: list[str]


def read_runs(
    runs: Sequence[str | Path],
    given: Mapping[str, Sequence[str | Path]],
    arms: Sequence[str] | None = None,
    strengths: Mapping[str, float] | None = None,
    split: str | None = None,
) -> ComparedRuns:
    """Read run folders, put them into arms, refuse what cannot be compared.

    Args:
        runs: folders whose ``run.json`` says the arm.
        given: folders by arm, whatever their ``run.json`` says.
        arms: names of those to take, the one to compare with first; None for all, by strength
            where every arm has one, else as they come.
        strengths: by arm, in the place of what ``run.json`` says.
        split: of the table ``predictions``; None for the only one that all runs have, ``test``
            where there are several.

    Raises:
        RunFolderError: on a folder or table that cannot be read.
        ValueError: on runs without arm or seed, fewer than two arms, one run twice, different test
            sets or class lists, or predictions that are not numbers.
    """
    folders = {name: [RunFolder.open(path) for path in paths] for name, paths in given.items()}
    for path in runs:
        folder = RunFolder.open(path)
        folders.setdefault(_arm_of(folder), []).append(folder)
    chosen = _in_order([_arm(name, found, strengths) for name, found in folders.items()], arms)
    opened = [folder for arm in chosen for folder in folders[arm.name]]
    _refuse_twice(opened)
    names = _class_names(opened)
    split = _common_split(opened) if split is None else split
    tables = [_predictions(folder, split) for folder in opened]
    _refuse_other_images(opened, tables)
    pred = np.stack([table["pred"].to_numpy() for table in tables])
    targets = tables[0]["target"].to_numpy()
    _refuse_same_predictions(opened, tables)
    most = int(max(pred.max(), targets.max())) + 1
    if names is not None and most > len(names):
        raise ValueError(f"{opened[0].path} predicts class {most - 1}, and its table classes names "
                         f"{len(names)}")  # fmt: skip
    names = [str(c) for c in range(most)] if names is None else names
    members = np.repeat(np.arange(len(chosen)), [len(arm.runs) for arm in chosen])
    scored = ScoredRuns(pred == targets, targets, members, len(names))
    return ComparedRuns(chosen, split, pred, scored, names, _notes(chosen, opened))


def _arm_of(folder: RunFolder) -> str:
    name = folder.run.get("arm")
    if name is None:
        raise ValueError(
            f"{folder.path} does not say which arm it belongs to: train with PerClassMonitor(study="
            "{'arm': NAME, 'factor': FACTOR, 'strength': NUMBER}), or say it here: --arm NAME=RUN,"
            "RUN"
        )
    return str(name)


def _arm(name: str, folders: list[RunFolder], strengths: Mapping[str, float] | None) -> Arm:
    seeds = []
    for folder in folders:
        if folder.run.get("seed") is None:
            raise ValueError(
                f"{folder.path} has no seed in run.json, so that nobody knows whether its run is "
                "independent of the others: call lightning.seed_everything(SEED) before training, "
                'or write the seed that it had into run.json ("seed")'
            )
        seeds.append(str(folder.run["seed"]))
    for key in ("factor", "strength"):
        values = {folder.run.get(key) for folder in folders}
        if len(values) > 1:
            raise ValueError(f"the runs of arm {name!r} differ in their {key}: {_listed(values)}")
    for number, seed in enumerate(seeds):
        if seed in seeds[:number]:
            twins = [str(f.path) for f, s in zip(folders, seeds, strict=True) if s == seed]
            raise ValueError(f"arm {name!r} has seed {seed} more than once, in {', '.join(twins)}: "
                             "runs of one seed are no independent runs")  # fmt: skip
    run = folders[0].run
    strength = (strengths or {}).get(name, run.get("strength"))
    return Arm(
        name,
        run.get("factor"),
        None if strength is None else float(strength),
        [folder.path for folder in folders],
        seeds,
    )


def _in_order(found: list[Arm], wanted: Sequence[str] | None) -> list[Arm]:
    by_name = {arm.name: arm for arm in found}
    if wanted is not None:
        missing = [name for name in wanted if name not in by_name]
        if missing or len(set(wanted)) < len(wanted):
            raise ValueError(f"arms must be different names among {', '.join(by_name)}, got "
                             f"{', '.join(wanted)}")  # fmt: skip
        found = [by_name[name] for name in wanted]
    elif all(arm.strength is not None for arm in found):
        found = sorted(found, key=lambda arm: arm.strength or 0.0)
    if len(found) < 2:
        runs = sum(len(arm.runs) for arm in found)
        raise ValueError(f"a comparison needs two arms or more, got {runs} run(s) in "
                         f"{', '.join(map(repr, by_name)) or 'no arm'}")  # fmt: skip
    return found


def _refuse_twice(folders: list[RunFolder]) -> None:
    seen: dict[str, Path] = {}
    for folder in folders:
        for key in (str(folder.path.resolve()), f"run_id {folder.run.get('run_id')}"):
            if key in seen and key != "run_id None":
                raise ValueError(f"{folder.path} and {seen[key]} are the same run ({key})")
            seen[key] = folder.path


def _class_names(folders: list[RunFolder]) -> list[str] | None:
    """The classes' names, the same in all runs; None where no run has them."""
    lists = [(f, f.read("classes")["name"].to_pylist() or None) for f in folders]
    hashes = [(f, f.run.get("classes_sha256")) for f in folders]
    for known in (lists, hashes):
        told = [(folder, value) for folder, value in known if value is not None]
        for folder, value in told[1:]:
            if value != told[0][1]:
                raise ValueError(f"{told[0][0].path} and {folder.path} have different class lists, "
                                 "so that their predictions do not mean the same")  # fmt: skip
    return next((value for _, value in lists if value is not None), None)


def _common_split(folders: list[RunFolder]) -> str:
    each = [set(folder.splits("predictions")) for folder in folders]
    for folder, splits in zip(folders, each, strict=True):
        if not splits:
            raise RunFolderError(
                f"{folder.path} holds no predictions: train or test it with PerClassMonitor"
            )
    common = set.intersection(*each)
    if len(common) == 1 or "test" in common:
        return "test" if "test" in common else common.pop()
    if common:
        raise ValueError(f"say which split: all runs have {_listed(common)}")
    there = [f"{f.path} has {_listed(s)}" for f, s in zip(folders, each, strict=True)]
    raise ValueError(f"the runs have no split in common: {'; '.join(there)}")


def _predictions(folder: RunFolder, split: str) -> pa.Table:
    table = folder.read_last("predictions", split, ["idx", "target", "pred", *SCORES])
    if not table.num_rows:
        raise ValueError(f"{folder.path} has no prediction of {split!r}")
    if any(table[name].null_count for name in ("idx", "target", "pred")):
        raise ValueError(f"{folder.path} has empty cells among its predictions of {split!r}")
    for name in SCORES:
        bad = int(np.isnan(table[name].to_numpy()).sum()) if not table[name].null_count else 0
        if bad:
            raise ValueError(
                f"{folder.path}: {name} is NaN for {bad:,} of {table.num_rows:,} predictions of "
                f"{split!r}: the run diverged, or its outputs are damaged; leave it out, and say so"
            )
    return table


def _refuse_other_images(folders: list[RunFolder], tables: list[pa.Table]) -> None:
    first = tables[0]
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        if table.num_rows != first.num_rows:
            how = f"{first.num_rows:,} images and {table.num_rows:,}"
        elif not table["idx"].equals(first["idx"]) or not table["target"].equals(first["target"]):
            how = "as many images, and others or in another order"
        else:
            continue
        raise ValueError(f"{folders[0].path} and {folder.path} have different test sets: {how}")


def _refuse_same_predictions(folders: list[RunFolder], tables: list[pa.Table]) -> None:
    seen: dict[bytes, Path] = {}
    for folder, table in zip(folders, tables, strict=True):
        key = b"".join(table[name].to_numpy().tobytes() for name in ("pred", "p_true"))
        if key in seen:
            raise ValueError(f"{folder.path} and {seen[key]} hold the same predictions "
                             "to the last digit: a copy, or the same seed")  # fmt: skip
        seen[key] = folder.path


def _notes(arms: list[Arm], folders: list[RunFolder]) -> list[str]:
    notes = []
    runs = iter(folders)
    for arm in arms:
        recipes = {next(runs).run.get("recipe_hash") for _ in arm.runs} - {None}
        if len(recipes) > 1:
            notes.append(f"The runs of arm {arm.name!r} have {len(recipes)} different recipes "
                         "(recipe_hash): more than the seed differs between them.")  # fmt: skip
    for key in ALIKE:
        values = {str(folder.run.get(key)) for folder in folders} - {"None"}
        if len(values) > 1:
            notes.append(f"The runs differ in {key}: {_listed(values)}. What an arm does cannot be "
                         "told from what that does.")  # fmt: skip
    unfinished = [str(f.path) for f in folders if f.run.get("status") not in ("finished", None)]
    if unfinished:
        notes.append(f"Not marked as finished: {', '.join(unfinished)}.")
    factors = {arm.factor for arm in arms} - {None}
    if len(factors) > 1:
        notes.append(f"The arms differ in more than one factor: {_listed(factors)}.")
    return notes


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, values)))
