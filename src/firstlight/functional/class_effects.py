"""Which classes does an augmentation or a regulariser hurt, beyond what seeds alone would do?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from firstlight.functional.effect_variance import effect_variance
from firstlight.functional.moderated_t import moderated_t
from firstlight.functional.scored_runs import Floats, ScoredRuns, contrast

CLAIMS_FROM = 3
"""Least runs of an arm for q-values: with 2, up to 18 % of the discoveries at 5 % are false."""


@dataclass(frozen=True)
class ClassEffects:
    """What the arm does to every class of this test set; arrays are (C,), NaN without images.

    Attributes:
        effect: change of accuracy, ``sum_a w_a mean_a``; in [-1, 1] for two arms.
        se: its standard error over seeds; NaN, like all that follows from it, with one run an arm.
        t: moderated t.
        p: two-sided.
        q: Benjamini-Hochberg over classes: the rate of false discoveries if this class and those
            with a lower q are reported. NaN where an arm has fewer than 3 runs. Report q *and* the
            size of the effect.
        low: of the confidence interval of the effect, for each class by itself.
        high: likewise.
        shrunk: effects drawn towards their mean by as much as they are noise: the ones to rank by.
        df: degrees of freedom of t.
        d0: those that the prior lends; 0 without moderation.
        u0: the prior's variance of one image.
    """

    effect: Floats
    se: Floats
    t: Floats
    p: Floats
    q: Floats
    low: Floats
    high: Floats
    shrunk: Floats
    df: float
    d0: float
    u0: Floats


def class_effects(
    runs: ScoredRuns,
    weights: ArrayLike | None = None,
    *,
    centred: bool = False,
    moderate: bool | None = None,
    trend: bool = False,
    level: float = 0.95,
) -> ClassEffects:
    """Test every class for an effect on *this test set*: would other seeds show it too?

    Whether other images would show it is another question: `new_image_effects`.

    Args:
        runs: of two arms, or of any number with weights; 5 an arm or more, 3 at the least.
        weights: of the arms, (A,), summing to 0: e.g. `slope_weights`; None for the second arm less
            the first. An arm of weight 0 lends its runs to the variance; `ScoredRuns.of_arms`
            leaves it out.
        centred: test for a difference from the average change, not for a change; see `moderated_t`.
        moderate: share variances between classes; None from 50 classes on.
        trend: let the variance depend on the accuracy; see `moderated_t`.
        level: of the confidence intervals, in (0, 1).

    Raises:
        ValueError: on weights that are no contrast, or a level outside (0, 1).

    Example:
        >>> right = np.random.default_rng(0).random((10, 5000)) < 0.7  # arms that do not differ
        >>> runs = ScoredRuns(right, np.arange(5000) % 100, [0] * 5 + [1] * 5)
        >>> bool((class_effects(runs).q < 0.05).any())
        False
    """
    _check_level(level)
    found = moderated_t(
        runs.accuracy, runs.n, runs.arms, weights, centred=centred, moderate=moderate, trend=trend
    )
    counted = contrast(weights, len(runs.replicas)) != 0
    q = np.full_like(found.p, np.nan)
    if runs.replicas[counted].min() >= CLAIMS_FROM:
        q = benjamini_hochberg(found.p)
    low, high = _interval(found.effect, found.se, found.df, level)
    return ClassEffects(
        found.effect, found.se, found.t, found.p, q, low, high,
        shrink_effects(found.effect, found.se), found.df, found.d0, found.u0,
    )  # fmt: skip


@dataclass(frozen=True)
class NewImageEffects:
    """What holds for other images of the same classes, too; arrays are (C,).

    Attributes:
        se: standard error of the effect over new images and new seeds.
        p: two-sided, of each class by itself.
        q: Benjamini-Hochberg over classes; NaN where an arm has fewer than 3 runs.
        low: of the confidence interval of the effect.
        high: likewise.
    """

    se: Floats
    p: Floats
    q: Floats
    low: Floats
    high: Floats


def new_image_effects(
    runs: ScoredRuns,
    effects: ClassEffects,
    weights: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> NewImageEffects:
    """Test every class for an effect on the *population of its images*, from these few.

    The variance is ``images`` of `effect_variance` with the moderated variance for the seeds, and
    never below the latter, with which new images can only add to it. t has n - 1 degrees of
    freedom (own choice: the images' spread dominates); a class of one image has none, and is NaN.

    Args:
        runs: as given to `class_effects`.
        effects: what it returned, not centred.
        weights: as given to it.
        level: of the confidence intervals, in (0, 1).
    """
    _check_level(level)
    variance = effect_variance(runs, weights, effects.se**2)
    se = np.sqrt(np.maximum(variance.images, variance.seed))
    df = np.maximum(runs.n - 1, 1)
    p = 2 * student.sf(np.abs(effects.effect / se), df)
    q = np.full_like(p, np.nan) if np.isnan(effects.q).all() else benjamini_hochberg(p)
    return NewImageEffects(se, p, q, *_interval(effects.effect, se, df, level))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), not {level}")


def _interval(effect: Floats, se: Floats, df: ArrayLike, level: float) -> tuple[Floats, Floats]:
    half = student.ppf((1 + level) / 2, df) * se
    return effect - half, effect + half


def benjamini_hochberg(p: Floats) -> Floats:
    """Adjust p-values for the rate of false discoveries, NaN staying NaN.

    ``q_(j) = min_{l >= j} min(1, p_(l) C / l)``, over the C that are numbers (Benjamini and
    Hochberg 1995).
    """
    q = np.full_like(p, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def convincing(effect: Floats, q: Floats, least: float, rate: float = 0.05) -> NDArray[np.bool_]:
    """Say which classes to report: q below ``rate`` *and* an effect of at least ``least`` in size.

    With many runs tiny effects have a low q, and the largest effects alone are chance. A class of
    unknown q is not reported.
    """
    found: NDArray[np.bool_] = (q < rate) & (np.abs(effect) >= least)
    return found


def shrink_effects(effect: Floats, se: Floats) -> Floats:
    """Draw effects towards their mean by the share of their variance that is noise.

    ``mean + (effect - mean) tau^2 / (tau^2 + se^2)`` with ``tau^2 = max(0, var(effect) - mean
    se^2)`` over the classes that have a standard error. The worst of many raw effects is worst
    partly by bad luck; a shrunk one is what to expect of it.
    """
    known = np.isfinite(se)
    shrunk = np.full_like(effect, np.nan)
    if known.sum() < 2:
        return shrunk
    values, noise = effect[known], se[known] ** 2
    tau = max(0.0, values.var(ddof=1) - noise.mean())
    mean = values.mean()
    kept = tau / (tau + noise) if tau > 0 else 0.0
    shrunk[known] = mean + (values - mean) * kept
    return shrunk


@dataclass(frozen=True)
class Halves:
    """Classes picked on one half of the seeds, judged on the other.

    Attributes:
        classes: those picked, (k,), the lowest effect first.
        selected: their effects on the half that picked them: too extreme.
        reported: their effects on the other half: unbiased.
    """

    classes: NDArray[np.int64]
    selected: Floats
    reported: Floats


def select_on_half(
    runs: ScoredRuns, weights: ArrayLike | None = None, *, worst: int = 20, seed: int = 0
) -> Halves:
    """Pick the classes of lowest effect on half of each arm's runs; report it on the other half.

    Args:
        runs: two runs an arm or more; of an odd number the half that reports has one more.
        weights: of the arms; None for the second less the first.
        worst: how many classes to pick; for the best, give the negative weights.
        seed: of the halves.

    Raises:
        ValueError: where an arm with a weight has a single run, or on bad weights.
    """
    w = contrast(weights, len(runs.replicas))
    if runs.replicas[w != 0].min() < 2:
        raise ValueError(f"halves need two runs or more in each arm, got {runs.replicas.tolist()}")
    generator, accuracy = np.random.default_rng(seed), runs.accuracy
    effects = np.zeros((2, runs.num_classes))
    for arm in np.flatnonzero(w):
        rows = generator.permutation(np.flatnonzero(runs.arms == arm))
        for half, chosen in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            effects[half] += w[arm] * accuracy[chosen].mean(0)
    picked = np.argsort(effects[0], kind="stable")  # NaN last
    picked = picked[: min(worst, int((runs.n > 0).sum()))]
    return Halves(picked, *effects[:, picked])
