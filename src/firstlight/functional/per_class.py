"""Counts from which every per-class number can be rebuilt, in memory linear in the classes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

CHUNK = 1 << 18
"""Most logits turned into probabilities at once (1 MiB in float32)."""

COUNTS = ("n", "correct", "pred_count")
"""Rows of the integer state; a fourth, named by ``top_k``, follows where it is asked for."""


class ExampleScores(NamedTuple):
    """What one evaluation keeps of every example; each field has shape (N,).

    Attributes:
        target: int64, the true class.
        pred: int64, the class of the highest logit (the first of them on a tie).
        p_true: probability given to the true class.
        p_pred: probability given to the predicted class, its confidence.
        nll: negative log-likelihood of the true class, natural logarithm.
        brier: sum over classes of (probability - one-hot target) squared, in [0, 2].
        rank_true: int64, see `rank_of_target`; 0 where correct.
    """

    target: Tensor
    pred: Tensor
    p_true: Tensor
    p_pred: Tensor
    nll: Tensor
    brier: Tensor
    rank_true: Tensor


def score_examples(logits: Tensor, targets: Tensor) -> ExampleScores:
    """Score every example by the softmax of its logits.

    Computed in float32 (float64 for float64 logits), in chunks of rows that hold at most ``CHUNK``
    logits, so that memory beyond the logits stays at some MiB however many classes there are.
    ``nll`` is formed from the logits and never overflows for finite ones.

    Args:
        logits: floating, shape (N, C).
        targets: int64 in ``[0, C)``, shape (N,).

    Returns:
        The scores of the N examples, on the device of the logits.

    Raises:
        ValueError: on other shapes, or targets outside ``[0, C)``.
    """
    _check_classes(logits, targets)
    rows = max(1, CHUNK // logits.shape[1])
    if len(targets) <= rows:
        return _score(logits, targets)
    chunks = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    return ExampleScores(*map(torch.cat, zip(*(_score(x, y) for x, y in chunks), strict=True)))


def _score(logits: Tensor, targets: Tensor) -> ExampleScores:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    pred = _argmax(logits)
    top = logits.gather(1, pred[:, None])[:, 0]
    probabilities = logits.softmax(1)
    p_pred = probabilities.gather(1, pred[:, None])[:, 0]
    true = logits.gather(1, targets[:, None])[:, 0]
    # log p_pred = top - logsumexp, hence no second pass over the classes for the latter.
    nll = top - true - p_pred.log()
    p_true = (-nll).exp()
    brier = torch.linalg.vecdot(probabilities, probabilities) - 2 * p_true + 1
    rank = rank_of_target(logits, targets)
    return ExampleScores(targets, pred, p_true, p_pred, nll, brier, rank)


def _argmax(logits: Tensor) -> Tensor:
    """Index of the highest logit; NumPy's is vectorised, torch's takes 5 times as long on a CPU."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(logits.detach().numpy().argmax(1))
    return logits.argmax(1)


def rank_of_target(logits: Tensor, targets: Tensor) -> Tensor:
    """How many classes beat the true one: 0 where it is the highest or shares that place.

    NaN beats and is beaten by everything: an example whose true logit is NaN has rank C, so that a
    diverged network is never right.

    Args:
        logits: floating, (N, C).
        targets: int64 in [0, C), (N,).

    Returns:
        int64 (N,), in [0, C].
    """
    true = logits.gather(1, targets[:, None])
    # "not at most" is "above", except that NaN counts too.
    return torch.count_nonzero((logits <= true).logical_not_(), 1)


def _check_classes(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (N, C) and targets (N,), got shapes {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if len(targets) == 0:
        return
    low, high = (int(bound) for bound in targets.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"targets must lie in [0, {logits.shape[1]}), the logits' width, but range from {low} "
            f"to {high}; check the labels, or set ignore_index for targets that mean 'no label'"
        )


class PerClassCounts(Metric):
    """Per-class counts and sums of one evaluation, exact under any batching and any ranks.

    ``compute()`` returns a dict of (C,) CPU tensors. int64: ``n`` (targets equal to c), ``correct``
    (those predicted as c), ``pred_count`` (predictions equal to c), and ``top<k>`` (targets with
    fewer than k logits strictly above the true one: ties count as correct). With
    ``calibration_bins`` also, in float64: ``confidence``, ``nll`` and ``brier``, means over the
    examples whose *true* class is c (NaN where there are none), and ``ece``, the calibration error
    over the examples *predicted* as c (NaN where there are none): the mean absolute difference
    between confidence and accuracy over equal-width confidence bins, weighted by their examples.
    Conditioning on the prediction (top-label calibration, Gupta and Ramdas, arXiv 2107.08353) is
    what makes it 0 for a calibrated classifier; conditioned on the true class it would not be.

    Memory is ``8 * num_classes * (4 + 3 + 3 * calibration_bins)`` bytes; metrics that build a
    confusion matrix at every update need ``8 * num_classes ** 2``. One pass over the logits without
    ``top_k`` and ``calibration_bins``, about four with both. Synchronises with a GPU once an update
    (the check of the targets), and across ranks once a state, in ``compute``.

    Args:
        num_classes: C, at least 2.
        top_k: k of the row ``top<k>``, or None to leave it out.
        calibration_bins: number of confidence bins, or None to keep integer counts only.
        ignore_index: examples with this target are dropped.
        kwargs: passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: on a bad argument; in ``update`` as `score_examples` does, nothing counted.

    Example:
        >>> counts = PerClassCounts(4, top_k=None, calibration_bins=None)
        >>> logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2]), 4).float()
        >>> counts.update(logits, torch.tensor([0, 0, 1, 1]))
        >>> counts.compute()["correct"].tolist()
        [2, 1, 0, 0]
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        num_classes: int,
        top_k: int | None = 5,
        calibration_bins: int | None = 15,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}")
        for name, value in {"top_k": top_k, "calibration_bins": calibration_bins}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None, not {value}")
        self.num_classes = num_classes
        self.top_k = top_k
        self.calibration_bins = calibration_bins
        self.ignore_index = ignore_index
        rows = len(COUNTS) + (top_k is not None)
        self.add_state(
            "counts", torch.zeros(rows, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )
        if calibration_bins is not None:
            # confidence, nll, brier by true class; examples, correct, confidence by bin and
            # predicted class. MPS has no float64.
            sums = torch.zeros(3 + 3 * calibration_bins, num_classes, dtype=torch.float64)
            self.add_state("sums", sums, dist_reduce_fx="sum")

    def update(self, logits: Tensor | ExampleScores, targets: Tensor | None = None) -> None:
        """Count a batch: logits (N, C) with int64 targets (N,), or examples already scored.

        Where the metric lives on another device than the batch (on MPS, which has no float64, it
        has to live on the CPU), only the scores are moved.
        """
        if isinstance(logits, ExampleScores):
            return self._add(logits)
        if targets is None:
            raise ValueError("targets are missing: pass logits and targets, or ExampleScores")
        if self.ignore_index is not None:
            kept = targets != self.ignore_index
            logits, targets = logits[kept], targets[kept]
        if logits.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"expected logits of width {self.num_classes}, got shape {tuple(logits.shape)}; "
                "is the head of the right size?"
            )
        if self.calibration_bins is not None:
            return self._add(score_examples(logits, targets))
        _check_classes(logits, targets)
        rank = None if self.top_k is None else rank_of_target(logits, targets)
        pred = _argmax(logits)
        # A row of NaN has no highest logit and is never right; scores tell it by the rank.
        known = ~logits.gather(1, pred[:, None])[:, 0].isnan()
        return self._count(targets, pred, (pred == targets) & known, rank)

    def _add(self, scores: ExampleScores) -> None:
        if scores.target.device != self.counts.device:
            scores = ExampleScores(*(field.to(self.counts.device) for field in scores))
        right = (scores.pred == scores.target) & (scores.rank_true == 0)
        self._count(scores.target, scores.pred, right, scores.rank_true)
        bins, classes = self.calibration_bins, self.num_classes
        if bins is None or len(scores.target) == 0:
            return
        by_true = torch.stack([scores.p_pred, scores.nll, scores.brier])
        self.sums[:3].index_add_(1, scores.target, by_true.to(self.sums.dtype))
        confidence = scores.p_pred.to(self.sums.dtype)
        bin_of = (confidence * bins).long().clamp_(0, bins - 1)
        by_bin = torch.stack([torch.ones_like(confidence), right.to(self.sums.dtype), confidence])
        flat = self.sums[3:].view(3, bins * classes)
        flat.index_add_(1, bin_of * classes + scores.pred, by_bin)

    def _count(self, target: Tensor, pred: Tensor, right: Tensor, rank: Tensor | None) -> None:
        self._add_row(0, target)
        self._add_row(1, target[right])
        self._add_row(2, pred)
        if self.top_k is not None and rank is not None:
            # The rank of NaN is C, within no top k, however few classes there are.
            self._add_row(3, target[rank < min(self.top_k, self.num_classes)])

    def _add_row(self, row: int, classes: Tensor) -> None:
        if classes.device.type == "cpu":
            self.counts[row] += torch.bincount(classes, minlength=self.num_classes)
        else:  # bincount synchronises with the host there
            self.counts[row].index_add_(0, classes, torch.ones_like(classes))

    def compute(self) -> dict[str, Tensor]:
        """Return the columns named in the class's docstring, each (C,) on the CPU."""
        names = COUNTS if self.top_k is None else (*COUNTS, f"top{self.top_k}")
        columns = dict(zip(names, self.counts.cpu(), strict=True))
        if self.calibration_bins is None:
            return columns
        sums = self.sums.cpu().double()
        means = sums[:3] / columns["n"]
        columns |= dict(zip(("confidence", "nll", "brier"), means, strict=True))
        _, hits, confidence = sums[3:].view(3, self.calibration_bins, self.num_classes)
        columns["ece"] = (confidence - hits).abs().sum(0) / columns["pred_count"]
        return columns
