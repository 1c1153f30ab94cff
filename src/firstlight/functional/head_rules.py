"""The rules by which a last layer can be refitted, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from firstlight.functional.class_weights import FreedomSource, WeightRule


@dataclass(frozen=True)
class HeadRule:
    """One way to fit a last layer.

    Attributes:
        loss: ``"logistic"`` or ``"squared"``.
        weights: rule of `class_weights`. ``"equal_error"`` is for squared loss.
        freedom: where its degrees of freedom come from: ``"fit"`` (weights at which all classes
            have the same, `equal_leverage_weights`), ``"variance"`` or ``"dimension"``.
        tau: logit adjustment (arXiv 2007.07314): the loss sees ``logits + tau log pi``; by a free
            intercept the same as taking it from the bias afterwards. Logistic only.
        gamma: vector scaling (arXiv 2103.01550): the loss sees logits times
            ``(n_k / n_max)**gamma``. Logistic only. The trap: it is made for networks that fit
            every example. Where a linear head cannot, the fit undoes the scale, and raw logits of
            rare classes come out too large by its inverse (CIFAR-10-LT: mean accuracy 19 %, against
            57 % by logit adjustment).
        midpoint: `leave_one_out_midpoint`. Squared only.
        beta: of the effective number.
        custom: weights, for the rule of that name.

    Raises:
        ValueError: on a combination that means nothing.
    """

    loss: Literal["logistic", "squared"] = "logistic"
    weights: WeightRule = "none"
    freedom: FreedomSource = "fit"
    tau: float = 0.0
    gamma: float = 0.0
    midpoint: bool = False
    beta: float = 0.9999
    custom: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.loss not in ("logistic", "squared"):
            raise ValueError(f"loss must be 'logistic' or 'squared', not {self.loss!r}")
        if self.weights not in get_args(WeightRule):
            raise ValueError(f"weights must be one of {get_args(WeightRule)}, not {self.weights!r}")
        if self.loss == "squared" and (self.tau or self.gamma):
            raise ValueError(
                "tau and gamma correct log-posteriors, and squared-loss scores are none: use "
                "loss='logistic', or the midpoint"
            )
        if self.loss == "logistic" and (self.midpoint or self.weights == "equal_error"):
            raise ValueError(
                "the midpoint and equal_error weights are derived for squared loss: use "
                "loss='squared', or logit adjustment (tau=1)"
            )


RULES: Mapping[str, HeadRule] = MappingProxyType(
    {
        "unweighted": HeadRule(),
        "inverse_frequency": HeadRule(weights="inverse_frequency"),
        "square_root": HeadRule(weights="square_root"),
        "effective_number": HeadRule(weights="effective_number"),
        "logit_adjustment": HeadRule(tau=1.0),
        "vector_scaling": HeadRule(tau=1.0, gamma=0.3),
        "equal_error": HeadRule("squared", "equal_error"),
        "balanced_midpoint": HeadRule("squared", "square_root", midpoint=True),
        "worst_class_midpoint": HeadRule("squared", "inverse_frequency", midpoint=True),
    }
)
"""Rules by name; the last two are what ``class_weights(rule="auto")`` stands for."""

Rules = list[str] | tuple[str, ...] | Mapping[str, HeadRule]


def named_rules(rules: str | HeadRule | Rules) -> dict[str, HeadRule]:
    """Resolve names to rules; a rule without a name is called "custom".

    Raises:
        ValueError: on an unknown name, or none at all.
    """
    if isinstance(rules, HeadRule):
        return {"custom": rules}
    if isinstance(rules, Mapping):
        named = dict(rules)
    else:
        names = [rules] if isinstance(rules, str) else list(rules)
        unknown = [name for name in names if name not in RULES]
        if unknown:
            raise ValueError(f"unknown rule {unknown[0]!r}; there are {', '.join(RULES)}")
        named = {name: RULES[name] for name in names}
    if not named:
        raise ValueError("rules is empty: name at least one")
    return named
