"""Right answers dealt anew: which runs could have been right about each image, of as many."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

from firstlight.functional.scored_runs import Floats

Counts = NDArray[np.int64]


def deal(
    hits: Counts, replicas: Sequence[int], odds: Floats, generator: np.random.Generator, draws: int
) -> Iterator[Counts]:
    """Draw how many runs of each arm are right about each image, given how many of all are.

    Given K right runs of all, ``P(y) ~ prod_a C(R_a, y_a) odds_a^y_a`` with ``sum_a y_a = K``:
    Fisher's noncentral hypergeometric law in several dimensions, the central one where all odds are
    alike. It is the law of runs with ``logit P(right) = image + arm``, whatever the images' terms
    (Rasch's model), and needs no estimate of these.

    Args:
        hits: K of every image, from 0 to all runs, (images,).
        replicas: R_a, runs of every arm.
        odds: of being right, by arm, up to a common factor.
        generator: of the draws.
        draws: how many.

    Yields:
        y_a, arm by arm, each (draws, images).
    """
    powers = [_powers(size, value) for size, value in zip(replicas, odds, strict=True)]
    shape, rest = (draws, len(hits)), hits[None]
    for arm, own in enumerate(powers[:-1]):
        uniform, y = generator.random(shape), np.zeros(shape, np.int64)
        for cumulated in _cumulated(own, _product(powers[arm + 1 :])):
            y += uniform >= cumulated[rest]
        yield y
        rest = rest - y
    yield np.broadcast_to(rest, shape)


def dealt_on_average(replicas: Sequence[int], odds: Floats) -> Floats:
    """Mean of what `deal` draws, (A, runs + 1): of each arm, for every K."""
    powers = [_powers(size, value) for size, value in zip(replicas, odds, strict=True)]
    whole, means = _product(powers), np.zeros((len(powers), sum(replicas) + 1))
    for arm, (size, value) in enumerate(zip(replicas, odds, strict=True)):
        others = [*powers[:arm], _powers(size - 1, value), *powers[arm + 1 :]]
        means[arm, 1:] = size * value * _product(others) / whole[1:]
    return means


def common_odds(hits: Counts, totals: Floats, replicas: Sequence[int]) -> Floats:
    """Odds at which the arms' numbers of right answers are, on average, those that they have.

    The conditional maximum of likelihood of Rasch's model (Andersen 1970), an equation for each
    arm, solved by iteration. An arm that is always right, or always wrong, where runs differ has no
    finite odds, and is taken half an answer from there.

    Args:
        hits: K of the images on which runs differ, (images,).
        totals: right answers of each arm's runs on these images, (A,), summing to those of hits.
        replicas: runs of every arm.

    Returns:
        Odds of geometric mean 1, (A,).
    """
    sizes = np.asarray(replicas, np.float64)
    odds, most = np.ones(len(sizes)), sizes * len(hits)
    if not len(hits):
        return odds
    images = np.bincount(hits, minlength=sum(replicas) + 1)
    wanted = np.clip(totals, 0.5, most - 0.5)
    for _ in range(1000):
        dealt = dealt_on_average(replicas, odds) @ images
        # Halved: of two arms of a run each the whole step would go twice as far as it should.
        step = (np.log(wanted / dealt) + np.log((most - dealt) / (most - wanted))) / 2
        odds = np.exp(np.log(odds) + step - (np.log(odds) + step).mean())
        if np.abs(step - step.mean()).max() < 1e-10:
            break
    return odds


def _powers(size: int, value: float) -> Floats:
    """Coefficients of ``(1 + value z)^size``."""
    j = np.arange(size + 1)
    coefficients: Floats = comb(size, j) * float(value) ** j
    return coefficients


def _product(polynomials: Sequence[Floats]) -> Floats:
    whole = np.ones(1)
    for one in polynomials:
        whole = np.convolve(whole, one)
    return whole


def _cumulated(own: Floats, after: Floats) -> Floats:
    """P(y <= j) of an arm, where k of its runs and those of the arms after it are right.

    (size, left + 1): for j below the arm's size and every k.
    """
    size, left = len(own) - 1, len(own) + len(after) - 2
    table = np.zeros((size + 1, left + 1))
    for right, weight in enumerate(own):
        table[right, right : right + len(after)] = weight * after
    cumulated = np.cumsum(table / np.convolve(own, after), axis=0)[:-1]
    j, k = np.arange(size)[:, None], np.arange(left + 1)
    certain: Floats = np.where(j >= np.minimum(k, size), 1.0, cumulated)
    return certain
