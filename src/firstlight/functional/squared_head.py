"""Squared-loss heads in closed form, their degrees of freedom, and the leave-one-out midpoint."""

import warnings
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from firstlight.functional.class_weights import (
    OWN,
    ClassWeights,
    RuleUndefinedError,
    mean_of_one,
    name_classes,
)
from firstlight.functional.ranks import ALONE, Ranks
from firstlight.functional.retrained_head import (
    RetrainedHead,
    check_per_class,
    check_present,
    check_ridge,
)
from firstlight.functional.sufficient_statistics import LastLayerStatistics

HIGHEST_LEVERAGE = 0.999
FEW_EXAMPLES = 5
ROUNDS = 1000
RUNAWAY = 1e6
"""Times the ratio of counts that weights may differ before they count as running away."""


class NormalEquations:
    """The factorised normal equations of one weighting and ridge, in standardised features.

    ``J = 1/(2n) sum_i w_i |y_i - W^T x_i - b|^2 + r/2 |W|^2`` over one-hot ``y``, intercept free.

    Args:
        statistics: of the examples.
        weights: (K,), of mean 1 over examples.
        ridge: r, of features scaled to a standard deviation of 1 where ``standardize``.
        standardize: see `LastLayerStatistics.scale`.

    Raises:
        ValueError: where a class has no examples, or the features are linearly dependent and
            nothing penalises that.
    """

    def __init__(
        self, statistics: LastLayerStatistics, weights: Tensor, ridge: float, standardize: bool
    ) -> None:
        check_ridge(ridge)
        self.statistics, self.ridge = statistics, ridge
        self.weights = weights.to(statistics.counts)
        self.scale = statistics.scale(standardize)
        self.n = self.weights @ statistics.counts
        self.mean = statistics.mean(self.weights)
        self.covariance = statistics.covariance(self.weights) / torch.outer(self.scale, self.scale)
        penalised = self.covariance + ridge * torch.eye(len(self.mean)).to(self.mean)
        self.factor, failed = torch.linalg.cholesky_ex(penalised)
        pivots = self.factor.diagonal() ** 2
        if failed or pivots.min() < 1e-12 * penalised.diagonal().max():
            raise ValueError(
                f"{int(statistics.counts.sum())} examples leave some of the {len(self.mean)} "
                "features linearly dependent, so that no single head fits best: pass ridge > 0, or "
                "fewer features"
            )

    def solve(self) -> tuple[Tensor, Tensor, float]:
        """Weight (K, d) and bias (K,) for features as they are, and the largest gradient left."""
        s = self.statistics
        rows = self.weights[:, None] * (s.sums - s.counts[:, None] * self.mean)
        right = rows.T / self.n / self.scale[:, None]
        solution = torch.cholesky_solve(right, self.factor)
        left = self.covariance @ solution + self.ridge * solution - right
        weight = (solution / self.scale[:, None]).T
        share = self.weights * s.counts / self.n
        assert s.shift is not None
        return weight, share - weight @ (self.mean + s.shift), float(left.abs().max())

    def inverse(self) -> Tensor:
        """Inverse (d, d) of the penalised covariance times n, for features as they are."""
        inverse = torch.cholesky_inverse(self.factor) / self.n
        unscaled: Tensor = inverse / torch.outer(self.scale, self.scale)
        return unscaled

    def class_freedom(self) -> Tensor | None:
        """Degrees of freedom (K,) of each class, whose sum is the hat matrix's trace.

        With one moment for each weighting instead of each class: None.
        """
        s = self.statistics
        if not s.by_class:
            return None
        inverse, m = self.inverse(), self.mean
        turned = inverse @ m
        trace = torch.einsum("kij,ij->k", s.moments, inverse)
        trace = trace - 2 * s.sums @ turned + s.counts * (m @ turned)
        freedom: Tensor = self.weights * (s.counts / self.n + trace)
        return freedom

    def leverages(self, features: Tensor, targets: Tensor) -> Tensor:
        """Diagonal (N,) of the hat matrix for examples of the fit."""
        assert self.statistics.shift is not None
        x = (features.to(self.mean) - self.statistics.shift - self.mean) / self.scale
        half = torch.linalg.solve_triangular(self.factor, x.T, upper=False)
        leverages: Tensor = self.weights[targets] * (1 + (half**2).sum(0)) / self.n
        return leverages


def fit_squared_head(
    statistics: LastLayerStatistics,
    weights: ClassWeights,
    *,
    ridge: float = 0.0,
    standardize: bool = True,
    rule: str | None = None,
) -> RetrainedHead:
    """Fit a squared-loss head to one-hot targets, exactly, without another look at the features.

    Minimises ``1/(2n) sum_i w_i |y_i - W^T x_i - b|^2 + r/2 |W|^2`` with a free intercept.

    Cost: one Cholesky factorisation (``d^3/3``) and K right-hand sides.

    Args:
        statistics: of the examples, complete.
        weights: of the classes.
        ridge: r, 0 or more, of standardised features (of the features themselves without
            ``standardize``).
        standardize: scale features to a standard deviation of 1 first; folded back.
        rule: name of the result; default: the weights' rule.

    Returns:
        The head. Its scores are fitted one-hot values, no logits.

    Raises:
        ValueError: on a missing class, a bad ridge, or dependent features without one.
    """
    equations = NormalEquations(statistics, weights.weights, ridge, standardize)
    weight, bias, left = equations.solve()
    freedom = equations.class_freedom()
    return RetrainedHead(
        weight=weight.cpu(),
        bias=bias.cpu(),
        rule=rule or f"squared loss, {weights.rule}",
        loss="squared",
        class_weights=weights.weights,
        ridge=ridge,
        degrees_of_freedom=None if freedom is None else freedom.cpu(),
        converged=left < 1e-8,
        gradient_norm=left,
        evaluations=1,
        provenance=weights.provenance,
        notes=(weights.note,) if weights.note else (),
    )


def equal_leverage_weights(
    statistics: LastLayerStatistics,
    *,
    ridge: float = 0.0,
    standardize: bool = True,
    tolerance: float = 1e-8,
) -> ClassWeights:
    """Weights at which every class has the same degrees of freedom in the fit.

    The multi-class and ridge form of the equal-error ratio (this project's own derivation, checked
    by simulation): at its fixed point ``w_k`` is proportional to ``1/(n_k - df/K)`` in the setting
    of arXiv 2506.20025, and intercepts tend to 1/K. Found by ``w_k <- w_k mean(df) / df_k`` from
    ``1/n_k``, which finds it where iterating the formula fails. It assumes one covariance for all
    classes; where head classes are noisier, ``inverse_frequency`` did better.

    Cost: a factorisation and a product with every class's moments a round, 10 to 75 rounds.

    Args:
        statistics: with moments of every class.
        ridge: as it will be in the fit.
        standardize: as it will be in the fit.
        tolerance: relative spread of the classes' degrees of freedom.

    Raises:
        RuleUndefinedError: where the rounds do not settle.
        ValueError: as `fit_squared_head`, or where the moments are not by class.
    """
    if not statistics.by_class:
        raise ValueError(
            "equal leverages need the moments of every class; accumulate the statistics without "
            "weightings, or take class_weights(counts, 'equal_error', degrees_of_freedom=...)"
        )
    n = statistics.counts
    check_present(n)
    weights = mean_of_one(1 / n, n)
    freedom, spread = n, float("inf")
    for _ in range(ROUNDS):
        if weights.max() > RUNAWAY * weights.min() * n.max() / n.min():
            break
        found = NormalEquations(statistics, weights, ridge, standardize).class_freedom()
        assert found is not None
        freedom = found
        spread = float((freedom.max() - freedom.min()) / freedom.mean())
        if spread < tolerance:
            total = float(freedom.sum())
            return ClassWeights(weights.cpu(), "equal_error", OWN, total)
        weights = mean_of_one(weights * freedom.mean() / freedom, n)
    raise RuleUndefinedError(
        f"no weights give all classes the same degrees of freedom: they "
        f"still spread by {spread:.2g} of their mean, {float(freedom.mean()):.4g}, against "
        f"{int(n.min())} examples of the rarest class. Raise the ridge ({ridge:g}), or take "
        "inverse_frequency"
    )


def leave_one_out_midpoint(
    head: RetrainedHead,
    statistics: LastLayerStatistics,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    standardize: bool = True,
    ranks: Ranks = ALONE,
) -> RetrainedHead:
    """Move a squared-loss head's intercepts to the middle of leave-one-out class means.

    With m[c, k] the mean leave-one-out score k over class c, ``b_j`` moves by ``-(m_jj - mean_k
    m_jk + mean_c m_cj - mean_k m_kk) / 2``, which makes the margins of every pair of classes
    symmetric; for two classes that is minus half the sum of their mean margins. This project's own
    derivation. In the model of arXiv 2506.20025 its worst error, without weights, is at or below
    that of the equal-error ratio.

    Leave-one-out scores are exact: ``(f_i - h_i y_i) / (1 - h_i)`` with leverage ``h_i``. Cost: a
    pass over the features, ``N d^2`` multiply-adds; memory beyond a batch: 3 K numbers.

    Args:
        head: from `fit_squared_head`, with the same statistics.
        statistics: of exactly the examples in ``batches``.
        batches: (features (N, d), targets (N,)), each example once.
        standardize: as in the fit.
        ranks: processes that hold a part of the batches each. Collective.

    Raises:
        ValueError: where the batches are not the statistics' examples, or the loss was another.
    """
    if head.loss != "squared":
        raise ValueError(f"the midpoint is for squared-loss heads, not for a {head.loss} one")
    equations = NormalEquations(statistics, head.class_weights, head.ridge, standardize)
    counts = statistics.counts
    check_per_class(head.bias, len(counts), "the head's bias")
    own, row, column = (torch.zeros_like(counts) for _ in range(3))
    seen = torch.zeros_like(counts)
    weight, bias = head.weight.to(counts), head.bias.to(counts)
    for features, targets in batches:
        x, y = features.to(counts), targets.to(counts.device)
        h = equations.leverages(x, y).clamp(max=HIGHEST_LEVERAGE)[:, None]
        scores = (x @ weight.T + bias - h * one_hot(y, len(counts))) / (1 - h)
        seen += torch.bincount(y, minlength=len(counts))
        own.index_add_(0, y, scores.gather(1, y[:, None])[:, 0])
        row.index_add_(0, y, scores.mean(1))
        column += (1 / counts[y]) @ scores
    seen, own, row, column = (ranks.sum(part) for part in (seen, own, row, column))
    if not torch.equal(seen, counts):
        raise ValueError(
            f"the batches hold {int(seen.sum())} examples, the statistics {int(counts.sum())} (or "
            "of other classes): leave one out needs the fit's own examples, each once"
        )
    own, row, column = own / counts, row / counts, column / len(counts)
    shift = -(own - row + column - own.mean()) / 2
    notes = head.notes
    few = (counts < FEW_EXAMPLES).nonzero()[:, 0].tolist()
    if few:
        note = (
            f"midpoint: {name_classes(few)} fewer than {FEW_EXAMPLES} examples; leave-one-out "
            "scores of so few say little"
        )
        warnings.warn(note, stacklevel=2)
        notes = (*notes, note)
    moved = head.shifted(shift.cpu(), f"{head.rule}, leave-one-out midpoint")
    return replace(moved, notes=notes, provenance=OWN, evaluations=head.evaluations + 1)
