"""Moderated t: few runs, many classes, variances that lend one another strength."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, polygamma
from scipy.stats import t as student

from firstlight.functional.scored_runs import Floats, contrast

MODERATED_FROM = 50
"""Least number of classes whose variances are moderated: the prior is fitted to them."""


@dataclass(frozen=True)
class VariancePrior:
    """Scaled inverse chi-square prior of the classes' variances.

    Attributes:
        d0: its degrees of freedom, from 0 (nothing is lent) to infinity (all are equal).
        u0: its variance at every class, (C,); NaN at ``d0 = 0``.
        posterior: variances after moderation, (C,).
    """

    d0: float
    u0: Floats
    posterior: Floats


@dataclass(frozen=True)
class ModeratedT:
    """Effects and their moderated t; every array is (C,), NaN for a class without images.

    Attributes:
        effect: ``sum_a w_a mean_a``, in [-1, 1] for two arms.
        se: its standard error over seeds.
        t: ``effect / se``.
        p: two-sided, of each class by itself.
        df: degrees of freedom of all of them, ``min(d0 + d, C d)``; 0 with one run an arm, where
            ``se``, ``t`` and ``p`` are NaN.
        d0: those of the prior.
        u0: the prior's variance of one image, (C,).
    """

    effect: Floats
    se: Floats
    t: Floats
    p: Floats
    df: float
    d0: float
    u0: Floats


def moderate_variances(u: ArrayLike, d: int, trend: ArrayLike | None = None) -> VariancePrior:
    """Shrink variances of d degrees of freedom towards what they have in common.

    Smyth 2004 (Stat. Appl. Genet. Mol. Biol. 3(1):3), by moments of ``e = ln u - psi(d/2) +
    ln(d/2)``: with ``v = var(e) - psi'(d/2)``, ``psi'(d0/2) = v`` and ``ln u0 = mean(e) + psi(d0/2)
    - ln(d0/2)``. The posterior is ``(d0 u0 + d u) / (d0 + d)``. Where v is not positive, ``d0`` is
    infinite and ``u0`` the mean of u, as in limma (the paper: ``exp(mean(e))``, with a trend here
    too), which is the best estimate of a variance that all share.

    Args:
        u: variances, positive, (C,), at least 2 (4 with a trend).
        d: degrees of freedom of each, at least 1.
        trend: covariate (C,); ``mean(e)`` is then a quadratic in it, fitted by least squares, and
            the variance of e is around that, over C - 3.

    Raises:
        ValueError: on a variance that is not positive, or too few of them.
    """
    u = np.asarray(u, np.float64)
    least = 2 if trend is None else 4
    if d < 1 or len(u) < least or not (u > 0).all():
        raise ValueError(f"a prior needs d >= 1 and {least} positive variances or more, got d = {d}"
                         f" and {len(u)} of them, the least {u.min(initial=np.inf):g}")  # fmt: skip
    e = np.log(u) - digamma(d / 2) + np.log(d / 2)
    columns = np.ones((len(u), 1)) if trend is None else _quadratic(np.asarray(trend, np.float64))
    fit = columns @ np.linalg.lstsq(columns, e, rcond=None)[0]
    v = ((e - fit) ** 2).sum() / (len(u) - columns.shape[1]) - polygamma(1, d / 2)
    if v <= 0:
        u0 = np.exp(fit) if trend is not None else np.full(len(u), u.mean())
        return VariancePrior(np.inf, u0, u0)
    d0 = 2 * _inverse_trigamma(float(v))
    u0 = np.exp(fit + digamma(d0 / 2) - np.log(d0 / 2))
    return VariancePrior(d0, u0, (d0 * u0 + d * u) / (d0 + d))


def _quadratic(covariate: Floats) -> Floats:
    centred = covariate - covariate.mean()
    scaled = centred / (centred.std() or 1)
    return np.vander(scaled, 3)


def _inverse_trigamma(v: float) -> float:
    """Solve psi'(y) = v by Newton's method on 1/psi', which is convex (Smyth's appendix)."""
    y = 0.5 + 1 / v
    for _ in range(50):
        value = polygamma(1, y)
        step = value * (1 - value / v) / polygamma(2, y)
        y += step
        if abs(step) < 1e-12 * y:
            break
    return float(y)


def moderated_t(
    accuracy: ArrayLike,
    n: ArrayLike,
    arms: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    centred: bool = False,
    moderate: bool | None = None,
    trend: bool = False,
) -> ModeratedT:
    """Test every class for an effect of the arm, with the seeds as the only source of noise.

    With ``d = sum_a (R_a - 1)`` and the variance s^2 of runs around their arm's mean, what is
    moderated is ``u = n max(s^2, 1/(12 n^2))``: n makes classes of different size comparable, and
    the floor is the variance of rounding to whole images, without which a class where no run
    differs would look infinitely certain. ``se^2 = (u/n) sum_a w_a^2 / R_a``.

    Args:
        accuracy: of every run on every class, (runs, C); NaN where n is 0.
        n: images of every class, (C,).
        arms: of the runs, integers 0 to A - 1, (runs,).
        weights: of the arms, (A,), summing to 0; None for the second less the first of two.
        centred: subtract each run's mean over classes before all else: "differs from the average
            change" in the place of "changes".
        moderate: fit a prior; None from 50 classes on. Below that it rejects too often (6.4 % at
            level 5 % for 10 classes and 3 runs, where plain t has 4.9 %).
        trend: let the prior's variance depend on ``ln(x (1 - x))`` of the class's mean accuracy x:
            more power at 3 runs and unequal accuracies (.68 to .83), at a higher rate of false
            discoveries (.03 to .07).

    Raises:
        ValueError: on weights that are no contrast, or fewer classes than a prior needs.
    """
    effect, se, prior, df = effects_and_errors(
        accuracy, n, arms, weights, centred=centred, moderate=moderate, trend=trend
    )
    t = effect / se
    p = 2 * student.sf(np.abs(t), df) if df else t
    return ModeratedT(effect, se, t, p, df, prior.d0, prior.u0)


def effects_and_errors(
    accuracy: ArrayLike,
    n: ArrayLike,
    arms: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    centred: bool = False,
    moderate: bool | None = None,
    trend: bool = False,
) -> tuple[Floats, Floats, VariancePrior, float]:
    """What `moderated_t` needs before it asks for p-values; its arguments.

    Returns:
        Effects, standard errors, prior (all (C,), NaN for a class without images) and degrees of
        freedom.
    """
    x, n, arms = np.asarray(accuracy, np.float64), np.asarray(n, np.float64), np.asarray(arms)
    replicas = np.bincount(arms)
    w = contrast(weights, len(replicas))
    present = n > 0
    mean = x[:, present].mean(0)
    x, images = x[:, present], n[present]
    if centred:
        x = x - x.mean(1, keepdims=True)
    means = np.stack([x[arms == arm].mean(0) for arm in range(len(replicas))])
    effect, d = _spread(w @ means, present), int(replicas.sum() - len(replicas))
    if d == 0:
        unknown = np.full(len(n), np.nan)
        return effect, unknown, VariancePrior(np.nan, unknown, unknown), 0.0
    squares = ((x - means[arms]) ** 2).sum(0) / d
    u = images * np.maximum(squares, 1 / (12 * images**2))
    if len(u) >= MODERATED_FROM if moderate is None else moderate:
        spread = np.log(np.maximum(mean * (1 - mean), 1 / (4 * images))) if trend else None
        prior = moderate_variances(u, d, spread)
    else:
        prior = VariancePrior(0.0, np.full(len(u), np.nan), u)
    se = np.sqrt(prior.posterior / images * (w**2 / replicas).sum())
    whole = VariancePrior(prior.d0, _spread(prior.u0, present), _spread(prior.posterior, present))
    return effect, _spread(se, present), whole, float(min(prior.d0 + d, len(u) * d))


def _spread(values: Floats, present: NDArray[np.bool_]) -> Floats:
    """Put the values of the classes that have images in their places, NaN elsewhere."""
    whole = np.full(len(present), np.nan)
    whole[present] = values
    return whole
