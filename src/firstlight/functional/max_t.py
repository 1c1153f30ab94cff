"""The family-wise check: is the largest |t| of all classes larger than relabelled runs give?"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firstlight.functional.moderated_t import effects_and_errors
from firstlight.functional.scored_runs import Floats, ScoredRuns, contrast


@dataclass(frozen=True)
class MaxT:
    """Permutation p-values that hold for all classes together.

    Attributes:
        p: of every class, (C,): the share of relabelings whose largest |t| reaches this class's.
        largest: the largest |t| of every relabeling, that of the runs as they are first.
        exhaustive: whether these are all relabelings there are.
    """

    p: Floats
    largest: Floats
    exhaustive: bool


def max_t_permutations(
    runs: ScoredRuns,
    weights: ArrayLike | None = None,
    *,
    relabelings: int = 1000,
    centred: bool = False,
    moderate: bool | None = None,
    trend: bool = False,
    seed: int = 0,
) -> MaxT:
    """Permute which run belongs to which arm, and see how large the largest |t| becomes.

    A class with ``p < .05`` is reported wrongly with probability below 5 % over the whole family,
    whatever the classes' dependence. No p is below 1 / relabelings, and where two arms have equally
    many runs not below 2 / relabelings: there are 20 of 3 + 3 runs, 252 of 5 + 5. Large real
    effects inflate the relabelled variances, which makes the check conservative for the others.

    Args:
        runs: two arms, or any number with weights.
        weights: of the arms; None for the second less the first. Runs of an arm of weight 0 are
            relabelled too; `ScoredRuns.of_arms` leaves them out.
        relabelings: all of two arms are taken where they are not more than this; otherwise so many
            are drawn, the true one among them.
        centred: as in `moderated_t`, like ``moderate`` and ``trend``.
        moderate: likewise.
        trend: likewise.
        seed: of drawn relabelings.

    Raises:
        ValueError: with one run an arm, or on bad weights.
    """
    w = contrast(weights, len(runs.replicas))
    if len(runs.arms) == len(runs.replicas):
        raise ValueError("max_t_permutations needs more than one run in some arm")
    accuracy, n = runs.accuracy, runs.n
    everything = len(w) == 2 and comb(len(runs.arms), int(runs.replicas[0])) <= relabelings
    labels = _all_of_two(runs.arms) if everything else _drawn(runs.arms, relabelings, seed)
    sizes = []
    for relabelled in labels:
        effect, se, _, _ = effects_and_errors(
            accuracy, n, relabelled, w, centred=centred, moderate=moderate, trend=trend
        )
        sizes.append(np.abs(effect / se))
    largest = np.nanmax(sizes, axis=1)
    # Relabelings that mirror the true one have its |t| but for rounding.
    reached = largest[:, None] >= sizes[0] * (1 - 1e-9)
    p = np.where(np.isfinite(sizes[0]), reached.mean(0), np.nan)
    return MaxT(p, largest, everything)


def _all_of_two(arms: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the arms as they are, then every other way to give the first arm its number of runs."""
    yield arms
    true = tuple(np.flatnonzero(arms == 0))
    for first in combinations(range(len(arms)), len(true)):
        if first != true:
            labels = np.ones_like(arms)
            labels[list(first)] = 0
            yield labels


def _drawn(arms: NDArray[np.int64], count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    yield arms
    for _ in range(count - 1):
        yield generator.permutation(arms)
