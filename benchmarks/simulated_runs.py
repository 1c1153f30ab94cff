"""Runs whose seed noise and class effects are known: independent errors around latent chances."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.functional import ScoredRuns

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
