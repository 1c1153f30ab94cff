"""What a weighted least-squares head does to two Gaussian classes, in closed form."""

from dataclasses import dataclass
from math import erfc, sqrt


@dataclass(frozen=True)
class TwoClassErrors:
    """Limit of a weighted squared-loss head as examples and features grow together.

    Attributes:
        minority: error rate of the rarer class, in [0, 1].
        majority: error rate of the other one.
        intercept: b.
        alignment: the coefficients' component along the difference of the classes.
        norm: of the coefficients.
        minority_leverage: mean hat-matrix diagonal over the rarer class's examples.
        majority_leverage: over the other's; prior-weighted, the two give ``delta``.
    """

    minority: float
    majority: float
    intercept: float
    alignment: float
    norm: float
    minority_leverage: float
    majority_leverage: float

    @property
    def worst(self) -> float:
        """The larger of the two error rates."""
        return max(self.minority, self.majority)

    @property
    def balanced(self) -> float:
        """Their mean."""
        return (self.minority + self.majority) / 2


def two_class_errors(prior: float, delta: float, separation: float, ratio: float) -> TwoClassErrors:
    """Errors of a head fitted by ``sum_i w_i (1 - y_i (theta x_i + b))**2``, without ridge.

    Setting of arXiv 2506.20025: labels +1 (the rarer) and -1, ``x | y ~ N(y mu, I_d)``. The closed
    form for any ratio of weights is this project's own derivation, checked by simulation; at
    ``ratio = (2(1-prior) - delta) / (2 prior - delta)``, the paper's equal-error ratio, and at 1 it
    equals the paper's special cases.

    Args:
        prior: of the rarer class, in (0, 1).
        delta: features over examples, d/n, in (0, 1).
        separation: norm of mu, above 0.
        ratio: weight of an example of the rarer class over one of the other, above 0.

    Raises:
        ValueError: on values outside these ranges.
    """
    if not (0 < prior < 1 and 0 < delta < 1 and separation > 0 and ratio > 0):
        raise ValueError(
            f"prior={prior} and delta={delta} must lie in (0, 1), separation={separation} and "
            f"ratio={ratio} above 0"
        )
    other, s = 1 - prior, separation
    beta = prior * ratio + other - delta * (1 + ratio)
    scale = (-beta + sqrt(beta**2 + 4 * (1 - delta) * delta * ratio)) / (2 * (1 - delta))
    rare, common = scale / (1 + scale), scale / (ratio + scale)
    tilt = (prior * rare - other * common) / delta
    shrink = 1 / (1 + s**2 * (1 - tilt**2))
    alignment, intercept = s * (1 - tilt**2) * shrink, tilt * shrink
    noise = prior * rare**2 * (1 - tilt) ** 2 + other * common**2 * (1 + tilt) ** 2
    left = delta - prior * rare**2 - other * common**2
    norm = sqrt((delta * alignment**2 + shrink**2 * noise) / left)
    return TwoClassErrors(
        minority=_tail((s * alignment + intercept) / norm),
        majority=_tail((s * alignment - intercept) / norm),
        intercept=intercept,
        alignment=alignment,
        norm=norm,
        minority_leverage=rare,
        majority_leverage=common,
    )


def _tail(z: float) -> float:
    return erfc(z / sqrt(2)) / 2
