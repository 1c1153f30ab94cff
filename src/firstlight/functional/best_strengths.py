"""Which strength is best for every class, and what chance alone would make of that."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.functional.dealing import Counts, common_odds, deal, dealt_on_average
from firstlight.functional.effect_variance import variances_of_arms
from firstlight.functional.null_band import CHUNK
from firstlight.functional.scored_runs import Floats, ScoredRuns

SLACK = 1e-9
"""Accuracies, multiples of 1 / (R n), that differ by no more are equal."""


@dataclass(frozen=True)
class BestStrengths:
    """The best arm of every class, on this test set.

    Attributes:
        best: of every class, whether an arm's mean accuracy is its highest, (C, A): several are,
            where arms tie; none without images.
        histogram: classes by their best arm, (A,), summing to the classes with images. A class of k
            tied arms counts 1/k in each.
        average_best: the arm of highest accuracy, mean over classes; the first of those that tie.
        regret: of every class, accuracy in that arm less that in its own best, (C,), 0 or below;
            NaN without images.
    """

    best: NDArray[np.bool_]
    histogram: Floats
    average_best: int
    regret: Floats


def best_strengths(runs: ScoredRuns) -> BestStrengths:
    """Find each class's best arm, by mean accuracy over runs, and what the average-best one costs.

    The trap: a class's best of several arms is best partly by luck. With arms that do not differ at
    all the regret is below 0 in nearly every class (11 arms of 10 runs, 50 images a class, unequal
    accuracies, churn .10: -1.4 points on average). Set both beside `best_by_chance`.

    Args:
        runs: an arm for each strength; two or more.

    Raises:
        ValueError: of a single arm.
    """
    _check(runs)
    means = np.stack([runs.accuracy[runs.arms == a].mean(0) for a in range(len(runs.replicas))])
    present = runs.n > 0
    average, highest = means[:, present].mean(1), means.max(0)
    average_best = int(np.flatnonzero(average >= average.max() - SLACK)[0])
    best = (means >= highest - SLACK).T
    shares = best[present] / best[present].sum(1, keepdims=True)
    return BestStrengths(best, shares.sum(0), average_best, means[average_best] - highest)


@dataclass(frozen=True)
class BestByChance:
    """What `best_strengths` finds where strength does the same to all classes.

    Attributes:
        low: of the band of each arm's bar, (A,).
        median: likewise.
        high: likewise.
        p: of all bars together: how often the bar that is furthest from its mean, in standard
            deviations, is as far as that of the runs; at least 1 / (draws + 1).
        regret: of every class, mean over draws, (C,); NaN without images.
        mean_regret: over classes, of every draw, (draws,).
        worst_regret: likewise the lowest.
        phi: how much more runs vary than independent errors, as `widening_factor`, over all arms;
            NaN where an arm has a single run.
    """

    low: Floats
    median: Floats
    high: Floats
    p: float
    regret: Floats
    mean_regret: Floats
    worst_regret: Floats
    phi: float


def best_by_chance(
    runs: ScoredRuns, *, draws: int = 400, level: float = 0.95, seed: int = 0
) -> BestByChance:
    """Draw the histogram of best strengths, and the regret, of classes that are all alike.

    Arms may differ on average: the question is whether *classes* differ in what is best for them.
    Every image keeps K, the number of all runs that are right about it, and every arm the number of
    its right answers; otherwise which runs are right is drawn anew, an arm multiplying the odds of
    being right by the same factor for every image (`firstlight.functional.dealing.deal`), no arm
    doing anything being one case of it. Our own derivation, from Rasch's conditional model: no
    paper is known to us that tests this histogram.

    Draws meet the arms' numbers approximately exactly: the few right answers that an arm has too
    many are handed to those that lack them, on images drawn by the number of pairs of runs that
    could exchange one. Where seeds move a class as a whole, the draws' deviations are widened by
    the root of phi and rounded to whole answers. Where classes do differ, K mixes arms, and the
    band is somewhat too wide.

    Args:
        runs: an arm for each strength; two or more. Arms of fewer runs are best more often by luck,
            which the draws reproduce.
        draws: how many.
        level: of the band of each bar by itself, in (0, 1). Of m draws it covers (m - 1) / (m + 1)
            of it.
        seed: of the draws.

    Cost: as `firstlight.functional.null_band`, and some 0.5 ms a draw and arm on 25,000 images.

    Raises:
        ValueError: of a single arm, or bad numbers.
    """
    _check(runs)
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"best_by_chance needs draws >= 1 and a level in (0, 1), got {draws}, "
                         f"{level}")  # fmt: skip
    present = runs.n > 0
    seeds, within = (float(each[:, present].sum()) for each in variances_of_arms(runs))
    phi = seeds / within if within != 0 else 1.0
    dealer = _Dealer(runs, np.sqrt(max(1.0, phi)) if np.isfinite(phi) else 1.0)
    found, generator = best_strengths(runs), np.random.default_rng(seed)
    histograms, regrets = np.zeros((draws, len(runs.replicas))), np.zeros(len(dealer.n))
    mean, worst = np.zeros((2, draws))
    step = max(1, CHUNK // max(1, dealer.size))
    for start in range(0, draws, step):
        rows = slice(start, min(start + step, draws))
        means = dealer.accuracies(generator, rows.stop - rows.start)
        highest = means.max(0)
        tied = means >= highest - SLACK
        histograms[rows] = (tied / tied.sum(0)).sum(2).T
        regret = means[found.average_best] - highest
        regrets += regret.sum(0)
        mean[rows], worst[rows] = regret.mean(1), regret.min(1)
    low, median, high = np.quantile(histograms, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
    by_class = np.full(runs.num_classes, np.nan)
    by_class[present] = regrets / draws
    p = _furthest(histograms, found.histogram)
    return BestByChance(low, median, high, p, by_class, mean, worst, phi)


def _furthest(draws: Floats, found: Floats) -> float:
    """How often the furthest bar of a draw is as far from its mean as that found."""
    spread = np.maximum(draws.std(0), SLACK)
    far, of_draws = (np.abs((each - draws.mean(0)) / spread).max(-1) for each in (found, draws))
    return float((1 + (of_draws >= far - SLACK).sum()) / (1 + len(draws)))


class _Dealer:
    """Draws the arms' accuracies on classes that are all alike."""

    def __init__(self, runs: ScoredRuns, widen: float) -> None:
        self.n, self.replicas, self.widen = runs.n[runs.n > 0], runs.replicas, widen
        hits = runs.correct.sum(0)
        undecided = np.flatnonzero((hits > 0) & (hits < len(runs.arms)))
        images = undecided[np.argsort(runs.targets[undecided], kind="stable")]
        found, self.starts = np.unique(runs.targets[images], return_index=True)
        self.places = np.searchsorted(np.flatnonzero(runs.n > 0), found)
        self.hits, self.totals = hits[images], runs.hits[:, images].sum(1)
        self.odds = common_odds(self.hits, self.totals, self.replicas.tolist())
        expected = dealt_on_average(self.replicas.tolist(), self.odds)[:, self.hits]
        self.expected = self._by_class(expected)

    @property
    def size(self) -> int:
        """Numbers held of each draw."""
        return len(self.hits) * len(self.replicas)

    def accuracies(self, generator: np.random.Generator, draws: int) -> Floats:
        """Of each arm on the classes with images, less what all runs have, (A, draws, classes)."""
        dealt = deal(self.hits, self.replicas.tolist(), self.odds, generator, draws)
        answers = np.stack(list(dealt), axis=1)
        for one in answers:
            settle(one, self.totals, self.replicas, generator)
        right = self._by_class(answers.swapaxes(0, 1))
        if self.widen > 1:
            expected = self.expected[:, None]
            right = np.rint(expected + self.widen * (right - expected))
        answered: Floats = right / (self.replicas[:, None, None] * self.n)
        return answered

    def _by_class(self, answers: NDArray[np.float64] | Counts) -> Floats:
        """Sum over the images of every class: the last axis."""
        sums = np.zeros((*answers.shape[:-1], len(self.n)))
        if len(self.hits):
            sums[..., self.places] = np.add.reduceat(answers, self.starts, axis=-1)
        return sums


def settle(
    answers: Counts, totals: Counts, replicas: Counts, generator: np.random.Generator
) -> None:
    """Hand over right answers, in place, until every arm has its number of them.

    Args:
        answers: right runs of each arm on every image, (A, images); no image's sum is changed.
        totals: what the arms' sums shall be, (A,).
        replicas: runs of every arm, the most that it can have right about an image.
        generator: of the images.
    """
    surplus = answers.sum(1) - totals
    for _ in range(4 * len(totals)):
        giver, taker = int(surplus.argmax()), int(surplus.argmin())
        if surplus[giver] == 0:
            return
        pairs = answers[giver] * (replicas[taker] - answers[taker])
        able = np.flatnonzero(pairs)
        count = min(int(surplus[giver]), -int(surplus[taker]), len(able))
        if count == 0:
            return
        arrival = generator.exponential(size=len(able)) / pairs[able]
        chosen = able[np.argpartition(arrival, count - 1)[:count]]
        answers[giver, chosen] -= 1
        answers[taker, chosen] += 1
        surplus[giver], surplus[taker] = surplus[giver] - count, surplus[taker] + count


def _check(runs: ScoredRuns) -> None:
    if len(runs.replicas) < 2:
        raise ValueError("a best strength needs two arms or more, got one")
