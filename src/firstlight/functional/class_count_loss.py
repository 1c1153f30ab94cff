"""Cross-entropy that knows how many examples each class has: the base of the long-tail losses."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.functional.class_weights import check_counts


@dataclass(frozen=True)
class LossTerms:
    """What a loss does to logits ``z`` and labels, each (K,) float64 or None for nothing.

    ``z' = scale * z + offset - margin * onehot(y)``; the label keeps ``1 - smoothing[y]`` and
    spreads the rest over all classes; class k weighs ``weight``.
    """

    scale: Tensor | None = None
    offset: Tensor | None = None
    margin: Tensor | None = None
    smoothing: Tensor | None = None
    weight: Tensor | None = None


def focal_terms(log_p: Tensor, gamma: float) -> Tensor:
    """``-(1 - p)^gamma log p`` of log-probabilities, without a NaN gradient at p = 1."""
    # A power below 1 has an infinite slope at 0.
    least = torch.finfo(log_p.dtype).tiny
    return -log_p * (-log_p.expm1()).clamp(min=least) ** gamma if gamma else -log_p


class ClassCountLoss(nn.Module):
    """Mean cross-entropy with terms that follow from class counts.

    Counts come with the constructor or, before the first batch, by ``set_class_counts``: a run's
    ``setup`` gives them those of the data trained on. The arguments are kept as plain values under
    their own names, from which the same loss is rebuilt; the state dict is empty.

    Called with logits (N, K) and labels (N,), or probabilities (N, K) where images are mixed;
    returns a scalar. Computed in float32, float64 for float64 logits. Predictions are made from
    the logits themselves, not from what the loss makes of them, unless a subclass says otherwise.

    Args:
        class_counts: training examples of each class, (K,), each at least 1; None: set later.
        focus: exponent of the focal factor ``(1 - p_y)**focus``; 0 for none.
        deferred: share of training, in [0, 1], during which weights are left out at first; above 0
            the loss has to be told of progress by ``set_progress``.
        until: share of training after which weights are left out; below 1 likewise.
        normalise: divide the weighted sum by the batch's weights (as
            ``torch.nn.CrossEntropyLoss`` and published runs do) or by its count of examples.

    Raises:
        ValueError: on bad arguments.
    """

    def __init__(
        self,
        class_counts: Sequence[int] | None = None,
        focus: float = 0.0,
        deferred: float = 0.0,
        normalise: Literal["weights", "count"] = "weights",
        until: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= deferred <= 1:
            raise ValueError(f"deferred is a share of training in [0, 1], not {deferred}")
        if not deferred < until <= 1 and not deferred == until == 1:
            raise ValueError(
                f"until is a share of training above deferred={deferred}, at most 1, not {until}: "
                "weights act from the one to the other"
            )
        if not 0 <= focus < float("inf"):
            raise ValueError(f"the focal exponent must be finite, 0 or above, not {focus}")
        if normalise not in ("weights", "count"):
            raise ValueError(f"normalise must be 'weights' or 'count', not {normalise!r}")
        self.deferred, self.until, self.normalise = deferred, until, normalise
        self._focus = focus
        self._progress: float | None = None
        self._terms: LossTerms | None = None
        self._placed: dict[tuple[torch.device, torch.dtype], LossTerms] = {}
        self.class_counts: list[int] | None = None
        if class_counts is not None:
            self.set_class_counts(class_counts)

    def set_class_counts(self, class_counts: Sequence[int] | Tensor) -> None:
        """Say how many training examples each class has; (K,), each at least 1.

        Raises:
            ValueError: on a class without examples, by name.
        """
        n = check_counts(class_counts)
        self._terms, self._placed = self.terms(n), {}
        self.class_counts = [int(count) for count in n]

    def set_progress(self, share: float) -> None:
        """Say which share of training is done, in [0, 1], at the beginning of each epoch."""
        if not 0 <= share <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], not {share}")
        self._progress = share

    def terms(self, counts: Tensor) -> LossTerms:
        """What follows from counts (K,) float64; a subclass's own."""
        raise NotImplementedError  # every subclass has its own; this class is no loss by itself

    @property
    def prepared(self) -> LossTerms:
        """The terms of the counts given; prior correction reads offset and weight from them.

        Raises:
            RuntimeError: before counts are given.
        """
        if self._terms is None:
            raise RuntimeError(
                f"{type(self).__name__} does not know its class counts yet: pass class_counts, or "
                "call set_class_counts in the LightningModule's setup with the DataModule's"
            )
        return self._terms

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the batch's mean loss.

        Raises:
            ValueError: where the logits have another number of classes than the counts.
            RuntimeError: without counts, or without progress where weights are deferred.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        terms = self._on(logits)
        self._check(logits)
        given = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1])
        labels = given.to(logits)
        if terms.margin is not None and targets.ndim == 2:
            raise ValueError(
                f"{type(self).__name__} has a margin for the true class, and mixed labels have no "
                "single one: turn MixUp and CutMix off"
            )
        z = logits
        if terms.scale is not None:
            z = z * terms.scale
        if terms.margin is not None:
            z = z - labels * terms.margin
        if terms.offset is not None:
            z = z + terms.offset
        if terms.smoothing is not None:
            share = (labels @ terms.smoothing)[:, None]
            labels = labels * (1 - share) + share / logits.shape[1]
        log_p = z.log_softmax(1)
        each = focal_terms(log_p, self._focus)
        if terms.weight is None or not self._weighs():
            return (labels * each).sum() / len(labels)
        weighted = labels * terms.weight
        mass = weighted.sum() if self.normalise == "weights" else len(labels)
        return (weighted * each).sum() / mass

    def _check(self, logits: Tensor) -> None:
        classes = 0 if self.class_counts is None else len(self.class_counts)
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(
                f"{type(self).__name__} has counts of {classes} classes, the logits are "
                f"{tuple(logits.shape)}"
            )

    def _weighs(self) -> bool:
        if not self.deferred and self.until == 1:
            return True
        if self._progress is None:
            if self.training:
                raise RuntimeError(
                    f"deferred={self.deferred}, until={self.until} need to know how far training "
                    "is: call set_progress(epoch / max_epochs) when an epoch begins"
                )
            return True
        # Epoch 160 of 200 has progress .8 exactly in the paper's schedule, not in floating point.
        ended = self.until < 1 and self._progress >= self.until - 1e-9
        return self._progress >= self.deferred - 1e-9 and not ended

    def _on(self, logits: Tensor) -> LossTerms:
        place = logits.device, logits.dtype
        if place not in self._placed:
            terms = self.prepared
            moved = {f.name: getattr(terms, f.name) for f in fields(terms)}
            moved = {n: None if v is None else v.to(*place) for n, v in moved.items()}
            self._placed[place] = LossTerms(**moved)
        return self._placed[place]
