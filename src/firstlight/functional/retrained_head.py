"""A last layer fitted anew, and the checks of what it is fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from firstlight.functional.class_weights import name_classes


@dataclass(frozen=True)
class RetrainedHead:
    """A linear map from features to K scores, and how it came about.

    Attributes:
        weight: (K, d) float64, for features as they are (any standardisation is folded back).
        bias: (K,) float64.
        rule: what it is, in words.
        loss: "squared" (scores are no log-posteriors: no prior correction, no calibration error),
            "logistic", or "none" for a closed-form rule without a loss.
        class_weights: (K,) float64 used in the loss, of mean 1 over examples.
        ridge: r of the penalty ``r/2 |W|^2`` on the mean loss.
        degrees_of_freedom: (K,) float64, each class's part of the trace of the hat matrix, for
            squared loss; None where it was not computed.
        converged: whether ``gradient_norm`` is within the tolerance asked for and a minimum
            exists.
        gradient_norm: largest absolute component of the objective's gradient at this head, in the
            coordinates in which the ridge acts; recomputed in float64 at the end.
        iterations: of the solver; 0 for a closed form.
        evaluations: passes over the features that it took, two matrix products each.
        provenance: "published" and so on, see `ClassWeights`; of weights and rule together.
        notes: what to know; each was also a warning.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    rule: str
    loss: str
    class_weights: Tensor = field(repr=False)
    ridge: float
    degrees_of_freedom: Tensor | None = field(default=None, repr=False)
    converged: bool = True
    gradient_norm: float = 0.0
    iterations: int = 0
    evaluations: int = 0
    provenance: str = ""
    notes: tuple[str, ...] = ()

    def logits(self, features: Tensor) -> Tensor:
        """Scores (N, K) of features (N, d), in their floating type (half precision as float32)."""
        work = features if features.dtype == torch.float64 else features.float()
        return torch.nn.functional.linear(work, self.weight.to(work), self.bias.to(work))

    def shifted(self, offset: Tensor, rule: str) -> "RetrainedHead":
        """The same head with (K,) ``offset`` added to its bias, under another name."""
        return replace(self, bias=self.bias + offset.to(self.bias), rule=rule)


def check_examples(features: Tensor, targets: Tensor, num_classes: int, first: int = 0) -> None:
    """Raise ValueError unless features are finite (N, d) and targets are (N,) in [0, K).

    Args:
        features: floating point.
        targets: int64.
        num_classes: K.
        first: number of the first example, for the message.
    """
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            f"expected features (N, d) and targets (N,), got shapes {tuple(features.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if not features.is_floating_point() or targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            f"expected floating features and integer targets, got {features.dtype} and "
            f"{targets.dtype}"
        )
    if not len(targets):
        return
    # One pass for the usual case; only a sum that is not finite is looked at closely.
    kind = torch.float64 if features.dtype == torch.float64 else torch.float32
    suspect = not features.sum(0, dtype=kind).isfinite().all()
    bad = (~features.isfinite()).nonzero() if suspect else features.new_empty(0)
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"features are not finite: example {first + row}, feature {column} is "
            f"{float(features[row, column])}. The backbone put that out: look at this example and "
            "at the precision of the forward pass, or drop it"
        )
    low, high = (int(bound) for bound in targets.aminmax())
    if low < 0 or high >= num_classes:
        wrong = int(((targets < 0) | (targets >= num_classes)).nonzero()[0])
        raise ValueError(
            f"targets must lie in [0, {num_classes}), but example {first + wrong} has "
            f"{int(targets[wrong])}; check the labels, or drop what has none"
        )


def check_present(counts: Tensor) -> None:
    """Raise ValueError where a class of counts (K,) has no examples, naming it."""
    empty = (counts < 1).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"{name_classes(empty)} no examples to retrain on: cut the hold-out so that every "
            "class keeps one, or retrain on more data"
        )


def check_ridge(ridge: float) -> None:
    """Raise ValueError unless ``ridge`` is a finite number of 0 or more."""
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge must be a finite number of 0 or more, not {ridge}")


def check_per_class(
    values: Tensor | Sequence[float], num_classes: int, what: str, *, positive: bool = False
) -> Tensor:
    """Return (K,) values as float64 on the CPU.

    Raises:
        ValueError: on another shape, or values that are not finite (or not above 0 where asked).
    """
    found = torch.as_tensor(values).double().cpu()
    if found.shape != (num_classes,):
        raise ValueError(f"{what} must have shape ({num_classes},), not {tuple(found.shape)}")
    if not found.isfinite().all() or (positive and not (found > 0).all()):
        raise ValueError(
            f"{what} must be finite{' and above 0' if positive else ''}, but are {found.tolist()}"
        )
    return found
