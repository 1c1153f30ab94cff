"""What the sorted effects of all classes look like when the arm does nothing at all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firstlight.functional.dealing import deal
from firstlight.functional.effect_variance import widening_factor
from firstlight.functional.scored_runs import Floats, ScoredRuns, contrast

CHUNK = 2**20
"""Most numbers (draws x images) of a kind held at once: 8 MiB."""


@dataclass(frozen=True)
class NullBand:
    """Band of the j-th smallest effect over classes, under no effect; arrays over the classes.

    Attributes:
        low: of the band, increasing, (classes with images,).
        high: likewise.
        median: likewise.
        smallest: of every draw, the smallest effect, (draws,).
        largest: likewise.
        phi: `widening_factor`; NaN with one run an arm.
        widened: what the draws were multiplied by, ``sqrt(max(1, phi))``, or 1.
    """

    low: Floats
    high: Floats
    median: Floats
    smallest: Floats
    largest: Floats
    phi: float
    widened: float

    def beyond(self, effect: Floats) -> NDArray[np.int64]:
        """Say which effects lie outside the band of their rank, (C,) to -1 (below), 0, 1 (above).

        Effects are multiples of 1/n, so that many lie on the band's border, which counts as inside
        whatever rounding does. A class without images (NaN) is inside.
        """
        order = np.argsort(effect, kind="stable")[: len(self.low)]
        ranked, slack = effect[order], 1e-9
        outside = np.zeros(len(effect), np.int64)
        above, below = ranked > self.high + slack, ranked < self.low - slack
        outside[order] = above.astype(np.int64) - below
        return outside


def null_band(
    runs: ScoredRuns,
    weights: ArrayLike | None = None,
    *,
    draws: int = 400,
    level: float = 0.95,
    centred: bool = False,
    widen: bool = True,
    seed: int = 0,
) -> NullBand:
    """Draw the sorted effects that chance alone would give, one band for each rank.

    Every image keeps K, the number of all runs that are right about it; which runs those are is
    drawn anew for each image: of the ``R_B`` runs of arm B, ``y ~ Hypergeometric(R_A + R_B, K,
    R_B)`` are right. With one run an arm this flips the images on which the two disagree.

    The band is too wide where effects are real, since K then mixes both arms, and for a level of 95
    % of every single rank, not of all together. Errors that a run makes on many images of a class
    at once would leave it too narrow; `widening_factor` corrects that on average over classes.

    Args:
        runs: two arms, or any number with weights.
        weights: of the arms, (A,), summing to 0; None for the second less the first. Runs of an arm
            of weight 0 count in K; `ScoredRuns.of_arms` leaves them out.
        draws: how many.
        level: of the band, in (0, 1).
        centred: subtract each draw's mean over classes, for `class_effects` with ``centred``.
        widen: by the root of phi, where there are two runs or more in each arm.
        seed: of the draws.

    Cost: draws x runs x the images on which runs disagree, some 10 ns each; memory: tens of MiB.

    Raises:
        ValueError: on weights that are no contrast, or bad numbers.
    """
    w = contrast(weights, len(runs.replicas))
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"null_band needs draws >= 1 and a level in (0, 1), got {draws}, {level}")
    drawn = _draws(runs, w, draws, np.random.default_rng(seed))
    if centred:
        drawn -= drawn.mean(1, keepdims=True)
    phi = widening_factor(runs, w)
    widened = float(np.sqrt(max(1.0, phi))) if widen and np.isfinite(phi) else 1.0
    ranked = np.sort(drawn * widened, axis=1)
    low, median, high = np.quantile(ranked, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
    return NullBand(low, high, median, ranked[:, 0], ranked[:, -1], phi, widened)


def _draws(runs: ScoredRuns, w: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Draw the effects of the classes that have images, (draws, classes)."""
    n = runs.n
    hits = runs.correct.sum(0)
    # Where all runs are right, or all wrong, no relabeling changes anything.
    images = np.flatnonzero((hits > 0) & (hits < len(runs.arms)))
    images = images[np.argsort(runs.targets[images], kind="stable")]
    classes, starts = np.unique(runs.targets[images], return_index=True)
    effects = np.zeros((draws, runs.num_classes))
    step, alike = max(1, CHUNK // max(1, len(images))), np.ones(len(w))
    for start in range(0, draws if len(images) else 0, step):
        rows = slice(start, min(start + step, draws))
        dealt = deal(hits[images], runs.replicas.tolist(), alike, generator, rows.stop - rows.start)
        for weight, y in zip(w / runs.replicas, dealt, strict=True):
            effects[rows, classes] += weight * np.add.reduceat(y, starts, axis=1)
    relabelled: Floats = effects[:, n > 0] / n[n > 0]
    return relabelled
