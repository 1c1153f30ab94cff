"""Two questions, two variances: would other seeds say the same, would other images?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from firstlight.functional.scored_runs import Floats, ScoredRuns, contrast


@dataclass(frozen=True)
class EffectVariance:
    """Variance of every class's effect ``sum_a w_a mean_a``, in squared accuracy; each (C,).

    NaN for a class without images, and for all where an arm that counts has a single run.

    Attributes:
        seed: of new seeds on this test set, estimated from the spread of the runs' accuracies.
        within: the same if the images' errors were independent of one another within a run.
        images: of new images of the class and new seeds. Unbiased, so that it may be below ``seed``
            or even negative where there are few images; NaN with a single image.
    """

    seed: Floats
    within: Floats
    images: Floats


def effect_variance(
    runs: ScoredRuns, weights: ArrayLike | None = None, seed_variance: ArrayLike | None = None
) -> EffectVariance:
    """Estimate how far new seeds, and new images, would move each class's effect.

    With ``d_i = sum_a w_a p_ai``, the effect on image i, and p_ai the share of arm a's runs that is
    right about it::

        seed   = sum_a w_a^2 s_a^2 / R_a
        within = sum_a w_a^2 sum_i p_ai (1 - p_ai) / ((R_a - 1) n^2)
        images = var_i(d_i) / n + seed - within

    Without the last term seed noise would count twice: ``var_i(d_i)`` holds it already.

    Args:
        runs: two arms, or any number with weights.
        weights: of the arms, (A,), summing to 0; None for the second less the first.
        seed_variance: what to take for ``seed``, e.g. the squared ``se`` of `class_effects`, which
            is steadier; None for the equation's, class by class.

    Raises:
        ValueError: on weights that are no contrast.
    """
    w = contrast(weights, len(runs.replicas))
    n, p, counted = np.where(runs.n > 0, runs.n, np.nan), runs.fractions, np.flatnonzero(w)
    spread, noise = variances_of_arms(runs)
    within: Floats = (w[counted] ** 2) @ noise[counted]
    if seed_variance is None:
        seed: Floats = (w[counted] ** 2) @ spread[counted]
    else:
        seed = np.asarray(seed_variance, np.float64)
    effect = w @ p
    deviation = effect - (runs.by_class(effect) / n)[runs.targets]
    spread_of_images = runs.by_class(deviation**2) / np.where(n > 1, n - 1, np.nan)
    return EffectVariance(seed, within, spread_of_images / n + seed - within)


def variances_of_arms(runs: ScoredRuns) -> tuple[Floats, Floats]:
    """Variances of each arm's mean accuracy over its seeds: as seen, and of independent errors.

    Returns:
        ``s_a^2 / R_a`` and ``sum_i p_ai (1 - p_ai) / ((R_a - 1) n^2)``, (A, C) each; NaN for an arm
        of a single run.
    """
    n = np.where(runs.n > 0, runs.n, np.nan)
    several = np.where(runs.replicas > 1, runs.replicas - 1, np.nan)[:, None]
    x, p = runs.accuracy, runs.fractions
    seed = np.stack([x[runs.arms == arm].var(0) for arm in range(len(p))]) / several
    within = np.stack([runs.by_class(share * (1 - share)) for share in p]) / (several * n**2)
    return seed, within


def widening_factor(runs: ScoredRuns, weights: ArrayLike | None = None) -> float:
    """How much more the runs' accuracies vary than independent errors would: ``phi``.

    ``sum_c seed / sum_c within`` of `effect_variance`. Above 1 where a seed moves images of a class
    together; `null_band` is widened by its root.

    Returns:
        NaN where an arm has a single run; 1 where no run differs.
    """
    variance = effect_variance(runs, weights)
    seed, within = (values[runs.n > 0].sum() for values in (variance.seed, variance.within))
    return 1.0 if within == 0 else float(seed / within)
