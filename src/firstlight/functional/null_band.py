"""What the sorted effects of all classes look like when the arm does nothing at all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from firstlight.functional.effect_variance import widening_factor
from firstlight.functional.scored_runs import Floats, ScoredRuns, contrast

CHUNK = 2**22
"""Most counts (draws x classes x values of K) held at once: 32 MiB."""


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
    R_B)`` are right. The law depends on K only, so images of one class and K are drawn together,
    by a multinomial over y. With one run an arm this flips the images on which the two disagree.

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

    Cost: draws x classes x runs^2 binomials for two arms, a second or so for 400 x 1,000 x 10.

    Raises:
        ValueError: on weights that are no contrast, or bad numbers.
    """
    w = contrast(weights, len(runs.replicas))
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"null_band needs draws >= 1 and a level in (0, 1), got {draws}, {level}")
    counts = _images_by_hits(runs)
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // counts.size)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    drawn = np.concatenate([_draw(counts, runs.replicas, w, generator, size) for size in sizes])
    drawn /= counts.sum(1)
    if centred:
        drawn -= drawn.mean(1, keepdims=True)
    phi = widening_factor(runs, w)
    widened = float(np.sqrt(max(1.0, phi))) if widen and np.isfinite(phi) else 1.0
    ranked = np.sort(drawn * widened, axis=1)
    low, median, high = np.quantile(ranked, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
    return NullBand(low, high, median, ranked[:, 0], ranked[:, -1], phi, widened)


def _images_by_hits(runs: ScoredRuns) -> NDArray[np.int64]:
    """Count each class's images by K, the runs that are right: (classes with images, R + 1)."""
    values = int(runs.replicas.sum()) + 1
    cells = runs.targets * values + runs.correct.sum(0)
    counts = np.bincount(cells, minlength=runs.num_classes * values)
    table: NDArray[np.int64] = counts.reshape(runs.num_classes, values)
    return table[table.any(1)]


def _draw(
    counts: NDArray[np.int64],
    replicas: NDArray[np.int64],
    w: Floats,
    generator: np.random.Generator,
    draws: int,
) -> Floats:
    """Draw n times every class's effect, (draws, classes): arm by arm, from the runs left over."""
    state = np.broadcast_to(counts, (draws, *counts.shape))
    effect = np.zeros(state.shape[:2])
    left = int(replicas.sum())
    for weight, size in zip(w[:-1] / replicas[:-1], replicas[:-1], strict=True):
        rest = np.zeros((*state.shape[:2], left - size + 1), np.int64)
        for k in range(left + 1):
            y = np.arange(max(0, k - left + size), min(k, size) + 1)
            law = hypergeom.pmf(y, left, k, size)
            split = generator.multinomial(state[..., k], law / law.sum())
            effect += weight * (split @ y)
            rest[..., k - y] += split
        state, left = rest, left - size
    last: Floats = effect + w[-1] / replicas[-1] * (state @ np.arange(left + 1))
    return last
