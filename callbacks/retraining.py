"""Fitting a classifier's last layer anew by several rules, comparing them, and keeping one."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from firstlight.callbacks.extraction import Features
from firstlight.callbacks.linear_head import Head
from firstlight.functional import (
    ClassifierScores,
    RetrainedHead,
    RetrainedHeads,
    retrain_last_layer,
    score_classifier,
    search_ridges,
)
from firstlight.functional.class_weights import name_classes
from firstlight.functional.head_rules import RULES, named_rules
from firstlight.functional.ranks import Ranks
from firstlight.functional.retrained_head import check_ridge

Ridge = float | Literal["loo"]
USUAL_RIDGE = 0.01
DEFAULT_RULES = ("unweighted", "inverse_frequency", "equal_error", "logit_adjustment")
BEFORE = "before"
CHUNK = 1 << 22
"""Most logits held at once."""


class NotRetrainedError(ValueError):
    """What keeps a head from being fitted and may be known only when training is over."""


@dataclass(frozen=True)
class Retraining:
    """What came of fitting one head by several rules.

    Attributes:
        head: where it is.
        heads: by rule, and why some have none.
        scores: by rule, and of the head as it was under ``"before"``, on the evaluation data.
        fitted: examples that were fitted to, on all ranks.
        counts: of each class among them, (K,).
        notes: sentences that the user should read.
    """

    head: Head
    heads: RetrainedHeads
    scores: dict[str, ClassifierScores]
    fitted: int
    counts: Tensor = field(repr=False)
    notes: tuple[str, ...]


def check_rules(rule: str | None, rules: Iterable[str]) -> tuple[str, ...]:
    """Return the rules to fit, ``rule`` among them.

    Raises:
        ValueError: on an unknown rule, or none.
    """
    if isinstance(rules, str):
        raise ValueError(f"rules is a list of names, not the text {rules!r}")
    names = tuple(dict.fromkeys([*rules, *([] if rule is None else [rule])]))
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise ValueError(f"unknown rule {unknown[0]!r}; there are {', '.join(RULES)}")
    if not names:
        raise ValueError("rules is empty: name at least one")
    return names


def check_ridge_choice(ridge: object) -> None:
    """Raise ValueError on a ridge that is neither ``"loo"`` nor a number of 0 or more."""
    if ridge == "loo":
        return
    if not isinstance(ridge, int | float) or isinstance(ridge, bool):
        raise ValueError(f"ridge must be a number, or 'loo', not {ridge!r}")
    check_ridge(ridge)


def fit_and_compare(
    module: nn.Module,
    head: Head,
    fitted: Features,
    evaluated: Features,
    rules: tuple[str, ...],
    ridge: Ridge,
) -> Retraining:
    """Fit a head by each rule, and score all of them beside the one that is there. Collective.

    Nothing changes in the module. The heads are the same on every rank, bit for bit.

    Args:
        module: holds the head.
        head: see `find_head`.
        fitted: this rank's examples to fit to.
        evaluated: those to score on.
        rules: names of `RULES`.
        ridge: see `retrain_last_layer`; ``"loo"``: of squared-loss rules that of least
            leave-one-out error (`search_ridges`), of logistic ones .01.

    Raises:
        NotRetrainedError: on a class without examples to fit to, on every rank.
        ValueError: where there is no example to score on.
    """
    ranks, classes = Ranks.current(), head.num_classes
    counts = ranks.sum(torch.bincount(fitted.targets, minlength=classes).double()).cpu()
    if missing := (counts < 1).nonzero()[:, 0].tolist():
        raise NotRetrainedError(f"{name_classes(missing)} no examples to fit to")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, chosen = _fitted(fitted, rules, classes, ridge, ranks)
    heads = {
        name: ranks.gather({ranks.rank: one})[0] if ranks.world > 1 else one
        for name, one in found.heads.items()
    }
    notes = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    notes += chosen
    notes += [f"{name}: {note}" for name, one in heads.items() for note in one.notes
              if note not in notes]  # fmt: skip
    layer, device = head.layer(module), evaluated.features.device
    rows = max(64, CHUNK // classes)

    def scored(weight: Tensor, bias: Tensor, loss: str = "logistic") -> ClassifierScores:
        logits = evaluated.logits(weight.to(device), bias.to(device), rows)
        return score_classifier(
            logits, classes, probabilities=loss != "squared", device=device, ranks=ranks
        )

    scores = {BEFORE: scored(layer.weight.detach(), layer.bias.detach())}
    scores |= {name: scored(one.weight, one.bias, one.loss) for name, one in heads.items()}
    return Retraining(
        head,
        RetrainedHeads(heads, found.undefined),
        scores,
        int(counts.sum()),
        counts,
        tuple(dict.fromkeys(notes)),
    )


def _fitted(
    fitted: Features, rules: tuple[str, ...], num_classes: int, ridge: Ridge, ranks: Ranks
) -> tuple[RetrainedHeads, list[str]]:
    """Heads in the order of the rules, and what is to say of ridges that were searched."""
    x, y, notes = fitted.features, fitted.targets, []
    ridges = dict.fromkeys(rules, USUAL_RIDGE if ridge == "loo" else ridge)
    if ridge == "loo":
        searched = search_ridges(x, y, named_rules(rules), num_classes, ranks=ranks)
        ridges |= {rule: one.ridge for rule, one in searched.items()}
        for rule, one in searched.items():
            notes.append(f"{rule}: {one.note or f'ridge {one.ridge:.3g} by leave-one-out error'}")
    found = RetrainedHeads({}, {})
    for value in dict.fromkeys(ridges.values()):
        names = [rule for rule in rules if ridges[rule] == value]
        part = retrain_last_layer(x, y, names, num_classes=num_classes, ridge=value, ranks=ranks)
        found.heads.update(part.heads)
        found.undefined.update(part.undefined)
    heads = {rule: found.heads[rule] for rule in rules if rule in found.heads}
    return RetrainedHeads(heads, found.undefined), notes


def put_in(module: nn.Module, head: Head, new: RetrainedHead) -> dict[str, Tensor]:
    """Write a fitted head into the module; return the old ``weight`` and ``bias``."""
    layer = head.layer(module)
    old = {"weight": layer.weight.detach().clone(), "bias": layer.bias.detach().clone()}
    with torch.inference_mode(False), torch.no_grad():
        layer.weight.copy_(new.weight)
        layer.bias.copy_(new.bias)
    return old


def outcomes(found: Retraining, kept: str | None) -> list[str]:
    """What came of each rule, in a line each."""
    scored = [
        f"{rule}: worst {s.worst:.4f}, mean {s.macro:.4f}, all {s.micro:.4f}"
        + (", kept" if rule == kept else "")
        for rule, s in found.scores.items()
    ]
    return scored + [f"{rule}: {why}" for rule, why in found.heads.undefined.items()]


MEASURES = ("worst", "macro", "micro", "ece", "ece_scaled", "temperature", "brier")


def by_measure(scores: dict[str, ClassifierScores]) -> dict[str, float]:
    """Scalars ``<rule>/<measure>`` of ``MEASURES``, those that are numbers."""
    found = {f"{n}/{m}": float(getattr(s, m)) for n, s in scores.items() for m in MEASURES}
    return {key: value for key, value in found.items() if value == value}
