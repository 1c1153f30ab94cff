"""How much an example of each class counts in a loss, by rule, and where the rule comes from."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

WeightRule = Literal[
    "auto",
    "none",
    "inverse_frequency",
    "square_root",
    "effective_number",
    "equal_error",
    "custom",
]
Objective = Literal["balanced", "worst_class"]
FreedomSource = Literal["dimension", "variance", "fit"]

PUBLISHED = "published"
REBUILT = "published result, formula rebuilt by this project"
OWN = "this project's own derivation"

SHAKY = 0.9
"""Share of the rarest class that ``df/K`` may reach before the equal-error formula is doubted."""
CLIPPED = 0.1
"""Share of a class's examples that the formula keeps at least where it is clipped."""


class RuleUndefinedError(ValueError):
    """A weighting rule has no answer for these data; the message says why and what to do."""


@dataclass(frozen=True)
class ClassWeights:
    """Weights of the classes in a loss, with what stands behind them.

    Attributes:
        weights: (K,) float64, above 0. The mean over *examples* is 1: ``sum_k n_k w_k = n``.
        rule: the rule used ("auto" resolved).
        provenance: "published", "published result, formula rebuilt by this project", "this
            project's own derivation", or "given".
        degrees_of_freedom: df that the rule took account of; None where it takes none.
        note: what to know about these weights, "" for nothing; also issued as a warning.
    """

    weights: Tensor
    rule: str
    provenance: str
    degrees_of_freedom: float | None = None
    note: str = field(default="", compare=False)

    def per_class(self) -> Tensor:
        """The same weights scaled to a mean of 1 over *classes*, as arXiv 1901.05555 does."""
        return self.weights / self.weights.mean()


def class_weights(
    counts: Sequence[int] | Tensor,
    rule: WeightRule = "auto",
    *,
    objective: Objective = "balanced",
    beta: float = 0.9999,
    degrees_of_freedom: float | None = None,
    freedom_from: FreedomSource = "dimension",
    undefined: Literal["refuse", "clip"] = "refuse",
    custom: Sequence[float] | Tensor | None = None,
) -> ClassWeights:
    """Weigh the K classes of a loss by their numbers of examples, ``n_k``.

    Up to scale:

    - ``none``: 1.
    - ``inverse_frequency``: ``1/n_k``, scikit-learn's "balanced". Published.
    - ``square_root``: ``n_k**-0.5``. Published (used in several works).
    - ``effective_number``: ``(1-beta) / (1-beta**n_k)`` (Cui et al., arXiv 1901.05555). Published.
    - ``equal_error``: ``1 / (n_k - df/K)``. For two classes, ``w+/w- = (n- - d/2)/(n+ - d/2)``, the
      ratio at which a squared-loss head on Gaussian classes errs equally on both (arXiv 2506.20025;
      formula rebuilt from the paper's prose and checked by simulation: compare before quoting).
      More than two classes, and df taken from a ridge fit: this project's own derivation, checked
      by simulation. It assumes one covariance for all classes and holds for the *squared* loss.
    - ``custom``: the given ones.
    - ``auto``: for ``objective="balanced"`` ``square_root``, for ``"worst_class"``
      ``inverse_frequency``; both meant with the leave-one-out midpoint intercept of
      `retrain_last_layer`. This project's own recommendation, from simulations.

    The trap: ``equal_error`` makes errors equal, not small. In every case tried the least balanced
    error lay at or below the ratio of the counts, and the least worst-class error can too.

    Args:
        counts: examples of each class in the data that the loss sees, (K,), each at least 1.
        rule: see above.
        objective: what ``auto`` serves: mean accuracy over classes, or the worst class's.
        beta: of the effective number, in [0, 1); 0 weighs all alike.
        degrees_of_freedom: df of ``equal_error``: number of features (``"dimension"``), number of
            principal components that hold 99 % of the variance (``"variance"``, see
            `effective_dimension`; the paper's heuristic), or the trace of a fit's hat matrix
            (``"fit"``). Self-consistent weights of a fit: `equal_leverage_weights`.
        freedom_from: which of these; it decides the provenance.
        undefined: where ``n_k <= df/K`` the rule has no answer (the paper's ratio goes to
            infinity): refuse, or clip ``n_k - df/K`` at a tenth of ``n_k``, warned of.
        custom: (K,), above 0, for the rule of that name.

    Raises:
        RuleUndefinedError: where ``equal_error`` is undefined, naming the classes.
        ValueError: on bad arguments, or a class without examples.

    Example:
        20 features for 100 examples, of which 20 are rare: a ratio of 7, not of 4.

        >>> common, rare = class_weights([80, 20], "equal_error", degrees_of_freedom=20).weights
        >>> round(float(rare / common), 6)
        7.0
    """
    n = check_counts(counts)
    if rule not in get_args(WeightRule):
        raise ValueError(f"rule must be one of {', '.join(get_args(WeightRule))}, not {rule!r}")
    if objective not in get_args(Objective):
        raise ValueError(f"objective must be 'balanced' or 'worst_class', not {objective!r}")
    if (custom is not None) != (rule == "custom"):
        raise ValueError(f"custom weights go with rule='custom', and only there, not {rule!r}")
    note, df = "", None
    provenance = OWN if rule == "auto" else PUBLISHED
    if rule == "auto":
        rule = "square_root" if objective == "balanced" else "inverse_frequency"
    if custom is not None:
        raw = _custom(custom, len(n))
        provenance = "given"
    elif rule == "equal_error":
        raw, note = _equal_error(n, degrees_of_freedom, undefined)
        df = degrees_of_freedom
        provenance = _provenance(len(n), freedom_from)
    elif rule == "effective_number":
        if not 0 <= beta < 1:
            raise ValueError(f"beta must lie in [0, 1), not {beta}")
        log_beta = torch.tensor(beta, dtype=torch.float64).log()
        raw = (1 - beta) / -torch.expm1(n * log_beta)
    else:
        raw = n ** {"none": 0.0, "square_root": -0.5, "inverse_frequency": -1.0}[rule]
    if note:
        warnings.warn(note, stacklevel=2)
    return ClassWeights(mean_of_one(raw, n), rule, provenance, df, note)


def effective_dimension(covariance: Tensor, share: float = 0.99) -> int:
    """Number of principal components that hold a share of the variance of the features.

    arXiv 2506.20025 puts it in the place of the number of features, and calls that heuristic.

    Args:
        covariance: symmetric, (d, d), any scale.
        share: in (0, 1].

    Raises:
        ValueError: on a share outside (0, 1], or a covariance that is 0 or not finite.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], not {share}")
    held = torch.linalg.eigvalsh(covariance.double()).flip(0).clamp(min=0).cumsum(0)
    if not held[-1] > 0:
        raise ValueError("the features do not vary: there are no principal components to count")
    # A rounding error below the whole counts as the whole.
    return int((held < share * held[-1] * (1 - 1e-12)).sum()) + 1


def mean_of_one(weights: Tensor, counts: Tensor) -> Tensor:
    """Scale (K,) weights so that their mean over the examples counted, (K,), is 1."""
    return weights * (counts.sum() / (counts * weights).sum())


def check_counts(counts: Sequence[int] | Tensor) -> Tensor:
    """Return class counts as float64 (K,).

    Raises:
        ValueError: unless there are two classes or more, each with an example.
    """
    n = torch.as_tensor(counts).double().cpu()
    if n.ndim != 1 or len(n) < 2:
        raise ValueError(f"counts must be one number for each of K >= 2 classes, not {counts!r}")
    if not (n.isfinite().all() and (n >= 0).all()):
        raise ValueError(f"counts must be finite and not negative, but are {counts!r}")
    empty = (n < 1).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"{name_classes(empty)} no examples: a head cannot learn what it never sees. Cut the "
            "hold-out so that every class keeps one, retrain on more data, or leave the class out"
        )
    return n


def name_classes(classes: Sequence[int]) -> str:
    """``class 3 has``, ``classes 3, 7 and 5 more have``."""
    if len(classes) == 1:
        return f"class {classes[0]} has"
    shown = ", ".join(map(str, classes[:8]))
    more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
    return f"classes {shown}{more} have"


def _provenance(num_classes: int, freedom_from: str) -> str:
    if freedom_from not in get_args(FreedomSource):
        sources = ", ".join(get_args(FreedomSource))
        raise ValueError(f"freedom_from must be one of {sources}, not {freedom_from!r}")
    return OWN if num_classes > 2 or freedom_from == "fit" else REBUILT


def _custom(custom: Sequence[float] | Tensor, num_classes: int) -> Tensor:
    raw = torch.as_tensor(custom).double().cpu()
    if raw.shape != (num_classes,):
        raise ValueError(f"custom weights have shape {tuple(raw.shape)}, not ({num_classes},)")
    bad = (~(raw.isfinite() & (raw > 0))).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"{name_classes(bad)} a custom weight that is no finite number above 0")
    return raw


def _equal_error(n: Tensor, df: float | None, undefined: str) -> tuple[Tensor, str]:
    if df is None or not 0 <= df < float("inf"):
        raise ValueError(
            f"equal_error needs degrees_of_freedom, a number of 0 or more, not {df}: the number of "
            "features, effective_dimension(covariance), or the sum of a fit's degrees_of_freedom"
        )
    if undefined not in ("refuse", "clip"):
        raise ValueError(f"undefined must be 'refuse' or 'clip', not {undefined!r}")
    share = df / len(n)
    left = n - share
    short = (left <= 0).nonzero()[:, 0].tolist()
    if not short:
        note = ""
        if share > SHAKY * float(n.min()):
            note = (
                f"equal_error: {share:.4g} degrees of freedom a class against {n.min():g} examples "
                "of the rarest: the formula is steep there; use equal_leverage_weights, or a ridge"
            )
        return 1 / left, note
    found = (
        f"equal_error is undefined: {name_classes(short)} at most {share:.4g} examples, the "
        f"degrees of freedom a class ({df:.4g} / {len(n)}), and the weight would be infinite"
    )
    if undefined == "refuse":
        raise RuleUndefinedError(
            f"{found}. Give it the degrees of freedom of a fit with a larger ridge, take "
            "inverse_frequency, or pass undefined='clip'"
        )
    floor = CLIPPED * n
    return 1 / torch.maximum(left, floor), f"{found}; clipped at {1 / CLIPPED:g} / n_k"
