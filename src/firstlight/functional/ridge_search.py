"""The ridge of a squared-loss head by its leave-one-out error, for a whole grid in one pass."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from firstlight.functional.class_weights import ClassWeights, class_weights
from firstlight.functional.head_rules import HeadRule
from firstlight.functional.ranks import ALONE, Ranks
from firstlight.functional.retrained_head import check_ridge
from firstlight.functional.squared_head import NormalEquations
from firstlight.functional.sufficient_statistics import LARGEST, LastLayerStatistics

RIDGES = tuple(10 ** (third / 3) for third in range(-9, 4))
"""From 0.001 to 10, three a decade."""

ROWS = 8192
"""Examples taken to float64 at once."""


@dataclass(frozen=True)
class RidgeSearch:
    """Leave-one-out errors of a grid of ridges.

    Attributes:
        ridge: the one of the least error, the smaller one on a tie.
        ridges: those tried.
        errors: (R,) float64, ``1/n sum_i w_i |y_i - f_-i(x_i)|^2`` of each.
        note: what to know: that the best lies at an end of the grid; otherwise empty.
    """

    ridge: float
    ridges: tuple[float, ...]
    errors: Tensor = field(repr=False)
    note: str


def leave_one_out_ridge(
    statistics: LastLayerStatistics,
    weights: ClassWeights,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    ridges: Sequence[float] = RIDGES,
    standardize: bool = True,
    ranks: Ranks = ALONE,
) -> RidgeSearch:
    """Find the ridge whose squared-loss head errs least on examples that it was not fitted to.

    The error is the fit's own, weighted, over one-hot values; of each example by the head of all
    others at the same ``n r``, which needs no refits: ``y - f_-i = (y - f) / (1 - h)`` with
    leverage h. One eigendecomposition of the features' covariance serves all ridges.

    Leverages stay below 1 with any ridge above 0, and are not clipped as for the midpoint: where
    there are more features than examples that would make the smallest ridge look best. An example
    alone in its class has an error that says little. The standardisation is that of all examples.

    Cost: ``10 d^3`` and a pass over the features, ``N d (d + R K)`` multiply-adds in float64.

    Args:
        statistics: of exactly the examples in ``batches``, complete.
        weights: of the classes.
        batches: (features (N, d), targets (N,)), each example once.
        ridges: to try, above 0.
        standardize: as in the fit.
        ranks: processes that hold a part of the batches each. Collective.

    Raises:
        ValueError: on a ridge that is not above 0, a missing class, or batches that are not the
            statistics' examples.
    """
    for ridge in ridges:
        check_ridge(ridge)
    if not ridges or min(ridges) == 0:
        raise ValueError(f"ridges must be above 0, at least one, not {list(ridges)}")
    grid = tuple(sorted(ridges))
    equations = NormalEquations(statistics, weights.weights, grid[0], standardize)
    counts, mean = statistics.counts, equations.mean
    values, directions = torch.linalg.eigh(equations.covariance)
    shrunk = 1 / (values[:, None] + torch.tensor(grid).to(values))  # (d, R)
    rows = equations.weights[:, None] * (statistics.sums - counts[:, None] * mean)
    right = directions.T @ (rows / equations.n / equations.scale).T  # (d, K)
    share = equations.weights * counts / equations.n
    assert statistics.shift is not None
    centre = mean + statistics.shift
    errors, seen = torch.zeros_like(shrunk[0]), torch.zeros_like(counts)
    for features, targets in batches:
        y = targets.to(counts.device)
        turned = ((features.to(counts) - centre) / equations.scale) @ directions
        seen += torch.bincount(y, minlength=len(counts))
        w, truth = equations.weights[y], one_hot(y, len(counts)).to(counts)
        for r in range(len(grid)):
            h = w * (1 + turned**2 @ shrunk[:, r]) / equations.n
            left = truth - share - turned @ (shrunk[:, r, None] * right)
            missed = left / (1 - h)[:, None]
            errors[r] += w @ (missed**2).sum(1)
    errors, seen = ranks.sum(errors) / equations.n, ranks.sum(seen)
    if not torch.equal(seen, counts):
        raise ValueError(
            f"the batches hold {int(seen.sum())} examples, the statistics {int(counts.sum())} (or "
            "of other classes): leave one out needs the fit's own examples, each once"
        )
    best = int(errors.argmin())
    at_end = len(grid) > 1 and best in (0, len(grid) - 1)
    note = f"the ridge of least leave-one-out error, {grid[best]:.3g}, is an end of the grid"
    return RidgeSearch(grid[best], grid, errors.cpu(), note if at_end else "")


def search_ridges(
    features: Tensor,
    targets: Tensor,
    rules: Mapping[str, HeadRule],
    num_classes: int,
    *,
    ridges: Sequence[float] = RIDGES,
    ranks: Ranks = ALONE,
) -> dict[str, RidgeSearch]:
    """Find the ridge of every rule of squared loss; see `leave_one_out_ridge`.

    Of ``equal_error``, whose weights depend on the ridge, it is that of inverse class frequencies,
    from which they start. The midpoint moves intercepts afterwards and has no part in it.

    Cost: a pass over the features for their second moments, and one for each weighting.

    Args:
        features: floating, (N, d), of this rank; never copied whole.
        targets: integers in [0, K), (N,).
        rules: by name; those of logistic loss are passed over.
        num_classes: K.
        ridges: to try, above 0.
        ranks: processes that hold a part of the examples each. Collective.

    Raises:
        ValueError: as `leave_one_out_ridge`.
    """
    counts = ranks.sum(torch.bincount(targets, minlength=num_classes).double()).cpu()
    wanted = {
        name: class_weights(
            counts,
            "inverse_frequency" if rule.weights == "equal_error" else rule.weights,
            beta=rule.beta,
            custom=rule.custom,
        )
        for name, rule in rules.items()
        if rule.loss == "squared"
    }
    if not wanted:
        return {}
    width, rows = features.shape[1], torch.stack([w.weights for w in wanted.values()])
    large = 8 * num_classes * width**2 > LARGEST
    # Standard deviations are of all examples alike, which need no weighting of their own.
    statistics = LastLayerStatistics(width, num_classes, rows if large else None, features.device)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        return zip(torch.split(features, ROWS), torch.split(targets, ROWS), strict=True)

    for x, y in batches():
        statistics.update(x, y)
    statistics.reduce(ranks)
    found: dict[tuple[float, ...], RidgeSearch] = {}
    for weights in wanted.values():
        key = tuple(weights.weights.tolist())
        if key not in found:
            found[key] = leave_one_out_ridge(
                statistics, weights, batches(), ridges=ridges, ranks=ranks
            )
    return {name: found[tuple(w.weights.tolist())] for name, w in wanted.items()}
