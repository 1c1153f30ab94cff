"""Runs whose seed noise and class effects are known: independent errors around latent chances."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.functional import ScoredRuns
from firstlight.runfolder import RunFolder, fingerprint

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """A test set of C classes of n images, and how a model does on it.

    Attributes:
        classes: C.
        n: images of each class, or one number a class.
        accuracy: mean over classes.
        churn: probability that two runs disagree on an image, on average.
        spread: standard deviation of the accuracy between classes (Beta); 0: all are equal.
    """

    classes: int
    n: int | NDArray[np.int64]
    accuracy: float
    churn: float
    spread: float = 0.0

    @property
    def targets(self) -> NDArray[np.int64]:
        """True class of every image."""
        return np.repeat(np.arange(self.classes), self.n)

    def chances(self, generator: np.random.Generator) -> Floats:
        """Draw each image's probability of being right, Beta(mu s, (1 - mu) s)."""
        mean = self.accuracy
        fraction = self.churn / (2 * mean * (1 - mean))  # s / (s + 1), also of unequal classes
        s = fraction / (1 - fraction)
        means = np.full(self.classes, mean)
        if self.spread:
            size = mean * (1 - mean) / self.spread**2 - 1
            means = generator.beta(mean * size, (1 - mean) * size, self.classes)
            means = np.clip(means, 0.01, 0.99)
        mu = means[self.targets]
        drawn: Floats = generator.beta(mu * s, (1 - mu) * s)
        return drawn


def runs_of(
    cell: Cell,
    chances: list[Floats],
    replicas: int,
    generator: np.random.Generator,
    shock: float = 0.0,
) -> ScoredRuns:
    """Draw runs: one list entry an arm, ``shock`` the SD of what moves a class in a run at once."""
    rows = []
    for p in np.repeat(np.stack(chances), replicas, axis=0):
        moved = p + shock * generator.standard_normal(cell.classes)[cell.targets] if shock else p
        rows.append(generator.random(len(p)) < moved)
    arms = np.repeat(np.arange(len(chances)), replicas)
    return ScoredRuns(np.stack(rows), cell.targets, arms, cell.classes)


def null_runs(cell: Cell, replicas: int, generator: np.random.Generator) -> ScoredRuns:
    """Draw two arms that do not differ."""
    p = cell.chances(generator)
    return runs_of(cell, [p, p], replicas, generator)


def with_effects(
    cell: Cell, chances: Floats, effect: float, each: int, generator: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Move ``each`` classes down and as many up by ``effect`` of accuracy.

    Classes are taken among those of mean chance .15 to .85. Their images, in random order, are set
    to .02 or .98, changes under .3 skipped, until the mean has moved.

    Returns:
        The changed chances, and which classes were to be moved.
    """
    chances, targets = chances.copy(), cell.targets
    means = np.bincount(targets, chances) / np.bincount(targets)
    able = np.flatnonzero((means >= 0.15) & (means <= 0.85))
    chosen = generator.permutation(able)[: 2 * each]
    for rank, c in enumerate(chosen):
        to, images = (0.02, 0.98)[rank >= each], np.flatnonzero(targets == c)
        moved = 0.0
        for i in generator.permutation(images):
            if moved >= effect * len(images):
                break
            change = to - chances[i]
            if change * (-1 if rank < each else 1) >= 0.3:
                chances[i], moved = to, moved + abs(change)
    return chances, np.isin(np.arange(cell.classes), chosen)


def write_runs(
    root: Path,
    runs: ScoredRuns,
    arms: list[dict[str, Any]],
    generator: np.random.Generator,
    split: str = "test",
) -> list[Path]:
    """Write a run folder for each run, as PerClassMonitor does; ``arms`` are values for run.json.

    A wrong image is taken for the next class or the one after.
    """
    paths, targets, classes = [], runs.targets, runs.num_classes
    names = [f"class {c}" for c in range(classes)]
    for number, (right, arm) in enumerate(zip(runs.correct, runs.arms, strict=True)):
        wrong = (targets + generator.integers(1, 3, len(targets))) % classes
        chance = generator.uniform(0.3, 1, len(targets)).astype(np.float32)
        folder = RunFolder.create(
            root / f"run-{number}", run_id=f"{number:012d}", status="finished", seed=number,
            split=split, targets_sha256=fingerprint(targets.tolist()),
            classes_sha256=fingerprint(names), **arms[arm],
        )  # fmt: skip
        folder.write("classes", {"class": range(classes), "name": names})
        columns = {
            "idx": np.arange(len(targets)), "target": targets.astype(np.int32),
            "pred": np.where(right, targets, wrong).astype(np.int32), "p_true": chance,
            "p_pred": chance, "nll": -np.log(chance), "brier": chance,
            "rank_true": np.where(right, 1, 2).astype(np.int32),
        }  # fmt: skip
        folder.write("predictions", columns, step=1000, epoch=9, split=split)
        paths.append(folder.path)
    return paths
