"""Refit a last layer on cached features, by several rules in one pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, overload

import torch
from torch import Tensor

from firstlight.functional.class_weights import (
    ClassWeights,
    RuleUndefinedError,
    class_weights,
    effective_dimension,
)
from firstlight.functional.head_features import HeadFeatures
from firstlight.functional.head_rules import HeadRule, Rules, named_rules
from firstlight.functional.logistic_head import fit_logistic_head
from firstlight.functional.ranks import ALONE, Ranks
from firstlight.functional.retrained_head import (
    RetrainedHead,
    check_examples,
    check_present,
    check_ridge,
)
from firstlight.functional.squared_head import (
    equal_leverage_weights,
    fit_squared_head,
    leave_one_out_midpoint,
)
from firstlight.functional.sufficient_statistics import LARGEST, LastLayerStatistics

ROWS = 8192
"""Examples taken to float64 at once."""


class RetrainedHeads(NamedTuple):
    """Heads by the names of their rules, and why some have none."""

    heads: dict[str, RetrainedHead]
    undefined: dict[str, str]


@overload
def retrain_last_layer(
    features: Tensor,
    targets: Tensor,
    rules: str | HeadRule = ...,
    *,
    num_classes: int | None = ...,
    ridge: float = ...,
    standardize: bool = ...,
    start: RetrainedHead | None = ...,
    tolerance: float | None = ...,
    max_iterations: int = ...,
    ranks: Ranks = ...,
) -> RetrainedHead: ...


@overload
def retrain_last_layer(
    features: Tensor,
    targets: Tensor,
    rules: Rules,
    *,
    num_classes: int | None = ...,
    ridge: float = ...,
    standardize: bool = ...,
    start: RetrainedHead | None = ...,
    tolerance: float | None = ...,
    max_iterations: int = ...,
    ranks: Ranks = ...,
) -> RetrainedHeads: ...


def retrain_last_layer(
    features: Tensor,
    targets: Tensor,
    rules: str | HeadRule | Rules = "logit_adjustment",
    *,
    num_classes: int | None = None,
    ridge: float = 0.01,
    standardize: bool = True,
    start: RetrainedHead | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
    ranks: Ranks = ALONE,
) -> RetrainedHead | RetrainedHeads:
    """Refit the last layer of a classifier on its features.

    Several rules share what they can: sums of the features (squared loss), their standardised copy
    and spectrum (logistic), and solutions: rules that differ by an offset are one fit, and every
    other starts from the last. Default: the unweighted logistic fit with logit adjustment, which
    had the lowest mean error in this project's small, untuned comparisons on digits.

    Take features from data that the backbone has not been trained on, in eval mode and without
    augmentation: those of its training data are fitted too well, and rare classes' most of all.

    Cost: squared loss ``N d^2`` multiply-adds once, as much again for a midpoint, and ``d^3`` a
    rule; logistic ``2 N d K`` an iteration, a few tens of them. For streaming and other options:
    `LastLayerStatistics`, `fit_squared_head`, `fit_logistic_head`.

    Args:
        features: floating, (N, d), what the last layer takes.
        targets: integers in [0, K), (N,).
        rules: a name of ``RULES`` or a `HeadRule`, for one head; a sequence of names or a mapping
            of names to rules, for several.
        num_classes: K; default: the largest target and 1.
        ridge: r of ``r/2 |W|^2`` beside the mean loss, of standardised features.
        standardize: scale features to a standard deviation of 1; folded back.
        start: a head to begin from, logistic only.
        tolerance: of the gradient, logistic only; see `fit_logistic_head`.
        max_iterations: of one logistic fit.
        ranks: processes that hold a part of the examples each; the same heads on all. Collective.

    Returns:
        One head, or `RetrainedHeads`: heads by name, and the reasons of rules undefined here.

    Raises:
        RuleUndefinedError: for a single rule that has no answer here.
        ValueError: on bad examples or arguments, or a class without examples.
    """
    single = isinstance(rules, str | HeadRule)
    named = named_rules(rules)
    check_ridge(ridge)
    if num_classes is None:
        largest = ranks.gather({ranks.rank: int(targets.max()) if len(targets) else -1})
        num_classes = max(largest) + 1
    check_examples(features, targets, num_classes)
    fits = _Fits(
        features, targets, num_classes, ridge, standardize, start, tolerance, max_iterations, ranks
    )
    fits.announce(list(named.values()))
    found = RetrainedHeads({}, {})
    for name, rule in named.items():
        try:
            head = fits.squared(rule) if rule.loss == "squared" else fits.logistic(rule)
        except RuleUndefinedError as error:
            if single:
                raise
            found.undefined[name] = f"undefined here, because {error}"
            continue
        found.heads[name] = replace(head, rule=name)
    return next(iter(found.heads.values())) if single else found


@dataclass
class _Fits:
    """What the rules of one call share."""

    features: Tensor
    targets: Tensor
    num_classes: int
    ridge: float
    standardize: bool
    start: RetrainedHead | None
    tolerance: float | None
    max_iterations: int
    ranks: Ranks
    _statistics: LastLayerStatistics | None = None
    _data: HeadFeatures | None = None
    _solved: dict[tuple[object, ...], tuple[RetrainedHead, ClassWeights]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        targets = self.targets.to(self.features.device).long()
        self.targets = targets
        counts = torch.bincount(targets, minlength=self.num_classes).double()
        self.counts = self.ranks.sum(counts).cpu()
        check_present(self.counts)

    def announce(self, rules: Sequence[HeadRule]) -> None:
        """Look at the features once for all squared-loss rules that are to come."""
        squared = [rule for rule in rules if rule.loss == "squared"]
        if not squared:
            return
        width = self.features.shape[1]
        rows = None
        if 8 * self.num_classes * width**2 > LARGEST:
            wanted = [torch.ones(self.num_classes).double()]
            wanted += [self._plain(r).weights for r in squared if r.weights != "equal_error"]
            rows = torch.stack(wanted)
        device = self.features.device
        self._statistics = LastLayerStatistics(width, self.num_classes, rows, device)
        for features, targets in self._batches():
            self._statistics.update(features, targets)
        self._statistics.reduce(self.ranks)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = torch.split(self.features, ROWS), torch.split(self.targets, ROWS)
        return zip(*parts, strict=True)

    def _plain(self, rule: HeadRule) -> ClassWeights:
        return class_weights(self.counts, rule.weights, beta=rule.beta, custom=rule.custom)

    def _weights(self, rule: HeadRule, statistics: LastLayerStatistics) -> ClassWeights:
        if rule.weights != "equal_error":
            return self._plain(rule)
        if rule.freedom == "fit":
            if not statistics.by_class:
                raise RuleUndefinedError(
                    "the second moments of every class, which it needs, would take more than 1 "
                    "GiB; take freedom='variance' or 'dimension'"
                )
            return equal_leverage_weights(
                statistics, ridge=self.ridge, standardize=self.standardize
            )
        df = self.features.shape[1]
        if rule.freedom == "variance":
            ones = torch.ones_like(statistics.counts)
            df = effective_dimension(statistics.covariance(ones))
        return class_weights(
            self.counts, "equal_error", degrees_of_freedom=df, freedom_from=rule.freedom
        )

    def squared(self, rule: HeadRule) -> RetrainedHead:
        """Fit a rule of squared loss."""
        statistics = self._statistics
        assert statistics is not None
        head = fit_squared_head(
            statistics,
            self._weights(rule, statistics),
            ridge=self.ridge,
            standardize=self.standardize,
        )
        if not rule.midpoint:
            return head
        return leave_one_out_midpoint(
            head, statistics, self._batches(), standardize=self.standardize, ranks=self.ranks
        )

    def logistic(self, rule: HeadRule) -> RetrainedHead:
        """Fit a rule of logistic loss, or find its fit among those already made."""
        key = (rule.weights, rule.beta, rule.custom, rule.gamma)
        scales = (self.counts / self.counts.max()) ** rule.gamma
        if key not in self._solved:
            self._solved[key] = self._solve(rule, scales)
        head, _ = self._solved[key]
        if not rule.tau:
            return head
        offset = rule.tau * (self.counts / self.counts.sum()).log()
        # The free intercept of the scaled fit holds the offset too.
        return head.shifted(-offset / scales, head.rule)

    def _solve(self, rule: HeadRule, scales: Tensor) -> tuple[RetrainedHead, ClassWeights]:
        weights = self._plain(rule)
        if self._data is None:
            self._data = HeadFeatures(
                self.features,
                self.targets,
                self.num_classes,
                standardize=self.standardize,
                ranks=self.ranks,
            )
        start = self.start
        if self._solved:
            other, before = list(self._solved.values())[-1]
            # Weights act on a well-specified fit as an offset of their logarithm.
            start = other.shifted((weights.weights / before.weights).log() / scales, other.rule)
        head = fit_logistic_head(
            self._data,
            weights,
            ridge=self.ridge,
            scales=scales if rule.gamma else None,
            start=start,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        return head, weights
