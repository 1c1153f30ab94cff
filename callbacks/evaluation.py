"""One pass over one loader, example by example: what PerClassMonitor keeps until it writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

from firstlight.callbacks.batches import (
    ADAPTER_HINT,
    Adapter,
    BatchError,
    LogitsTap,
    as_logits,
    choose_logits,
    class_targets,
    read_batch,
)
from firstlight.callbacks.records import gather
from firstlight.functional import ExampleScores, PerClassCounts, example_positions, score_examples
from firstlight.functional.shifts import restrict_logits, scored_classes

WHO = "PerClassMonitor"


class Evaluation:
    """Counts and scores of one pass over one loader, on one rank until `finish`.

    Args:
        split: its name in tables and keys.
        loader: gives the sampler, which says which examples are repeats, and the data set.
        num_classes: width of the logits, where known beforehand.
        ignore_index: targets that mean "no label".
        first: whether it is the stage's first set.
        who: named in errors.

    Attributes:
        in_order: whether positions are indices of the data set.
        scored_classes: among which the largest logit is sought, where the data set says so.
        result: columns of the counts, over all ranks, after `finish`.
        table: columns of the table ``predictions``, over all ranks, after `collect`.
    """

    def __init__(
        self,
        split: str,
        loader: Any,
        num_classes: int | None,
        ignore_index: int | None,
        first: bool = True,
        who: str = WHO,
    ) -> None:
        self.split, self.who = split, who
        self.first = first
        self.dataset = getattr(loader, "dataset", None)
        self._sampler = sampler_of(loader)
        self.scored_classes = scored_classes(loader)
        self._expected = num_classes
        self._ignore_index = ignore_index
        self.in_order = _visits_in_order(self._sampler, self.dataset)
        self.metric: PerClassCounts | None = None
        self._kept = KeptScores()
        self._seen = 0
        self.result: dict[str, Tensor] = {}
        self.table: dict[str, NDArray[Any]] = {}
        self.step = self.epoch = 0

    def update(
        self, pl_module: Any, batch: Any, tap: LogitsTap, adapter: Adapter | None
    ) -> list[str]:
        """Count a batch by the logits that ``tap`` caught.

        Returns:
            Sentences that the user should read once.
        """
        inputs, targets, forward = read_batch(pl_module, batch, self.who, adapter)
        rows = len(targets) if isinstance(targets, Tensor) and targets.ndim else 0
        outputs = tap.take(rows)
        width = self.metric.num_classes if self.metric else self._expected
        try:
            chosen, notes = choose_logits(outputs, width, self.who)
        except BatchError:
            if forward is pl_module:  # no adapter says which of them is meant
                raise
            chosen, notes = None, []
        if chosen is not None:
            logits = chosen.logits
        else:
            logits = _second_forward(pl_module, forward, inputs, targets, self.who)
            notes.append(
                "the step's own forward did not show which output is the logits (N, C), so every "
                "batch is put through the model a second time."
            )
        if width is not None and logits.shape[1] != width:
            raise ValueError(
                f"{self.who}: the logits have {logits.shape[1]} classes, the data {width}. Is the "
                "head of the right size? (num_classes of the data module, or class_names)"
            )
        if isinstance(targets, Tensor) and targets.is_floating_point() and targets.ndim == 2:
            notes.append("targets are probabilities; examples count for their heaviest class.")
        self._count(logits, class_targets(targets, logits.shape[1], self.who).to(logits.device))
        return notes

    def _count(self, logits: Tensor, targets: Tensor) -> None:
        positions = example_positions(self._sampler, self._seen, len(targets))
        self._seen += len(targets)
        kept = positions >= 0
        if self._ignore_index is not None:
            kept &= (targets != self._ignore_index).cpu()
        if not kept.all():
            on_device = kept.to(logits.device)
            logits, targets, positions = logits[on_device], targets[on_device], positions[kept]
        self.metric = counting(self.metric, logits.shape[1], logits.device)
        scores = score_examples(restrict_logits(logits, self.scored_classes), targets)
        self.metric.update(scores)
        self._kept.append(scores, positions.to(logits.device))

    def state(self) -> dict[str, Any]:
        """What a checkpoint in mid-epoch keeps, summed over ranks. Collective."""
        assert self.metric is not None
        with self.metric.sync_context():
            sums = {k: getattr(self.metric, k).clone().cpu() for k in self.metric.metric_state}
        return {"sums": sums, "seen": self._seen}

    def restore(self, state: dict[str, Any], first_rank: bool) -> None:
        """Go on from `state`; its sums are all ranks', so that only the first takes them."""
        self._seen = state["seen"]
        if first_rank:
            self.metric = PerClassCounts(state["sums"]["counts"].shape[1])
            for key, value in state["sums"].items():
                setattr(self.metric, key, value)

    def finish(self, step: int, epoch: int) -> None:
        """Sum over ranks. Collective."""
        if self.metric is None:
            raise RuntimeError("agree() gives every evaluation a metric before finish()")
        self.result = self.metric.compute()
        self.step, self.epoch = step, epoch

    def collect(self) -> None:
        """Join the predictions of all ranks in ``table``, in the order of positions. Collective."""
        columns = self._kept.columns()
        ranks = [rank for rank in gather(columns) if len(rank["idx"])]
        merged = {name: np.concatenate([r[name] for r in ranks]) for name in columns if ranks}
        if merged:
            order = np.argsort(merged["idx"], kind="stable")
            self.table = {name: values[order] for name, values in merged.items()}

    def paths(self) -> list[str] | None:
        """File of each example of ``table``, where the data set knows files."""
        files = getattr(self.dataset, "paths", None)
        if files is None and (samples := getattr(self.dataset, "samples", None)) is not None:
            files = [sample[0] for sample in samples]
        return None if files is None else [str(files[i]) for i in self.table["idx"]]


class KeptScores:
    """Scores of an epoch's examples, in two buffers that double when they are full.

    Small tensors kept one by one would lie between the large temporary ones of each update and
    keep the allocator from using their space again: at 8,142 classes the process grew by 4 MiB a
    batch.
    """

    INTEGERS = ("target", "pred", "rank_true", "idx")
    FLOATS = ("p_true", "p_pred", "nll", "brier")

    def __init__(self) -> None:
        self._integers = torch.empty(len(self.INTEGERS), 0, dtype=torch.int64)
        self._floats = torch.empty(len(self.FLOATS), 0)
        self._count = 0

    def append(self, scores: ExampleScores, positions: Tensor) -> None:
        """Copy a batch's scores, with the examples' positions (N,)."""
        integers = torch.stack([scores.target, scores.pred, scores.rank_true, positions])
        floats = torch.stack([scores.p_true, scores.p_pred, scores.nll, scores.brier])
        end = self._count + integers.shape[1]
        if end > self._integers.shape[1]:
            self._integers = self._grown(self._integers, integers, end)
            self._floats = self._grown(self._floats, floats, end)
        self._integers[:, self._count : end] = integers
        self._floats[:, self._count : end] = floats
        self._count = end

    def _grown(self, old: Tensor, like: Tensor, end: int) -> Tensor:
        new = like.new_empty(len(like), max(2 * end, 4096))
        new[:, : self._count] = old[:, : self._count]
        return new

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns by name, on the CPU, in the order of arrival."""
        parts = ((self.INTEGERS, self._integers), (self.FLOATS, self._floats))
        return {
            name: row.numpy()
            for names, buffer in parts
            for name, row in zip(names, buffer[:, : self._count].cpu(), strict=True)
        }


def agree(running: dict[str, Evaluation], device: torch.device) -> list[Evaluation]:
    """Give all ranks the same evaluations in the same order, those included that a rank missed.

    Collective: a rank that saw no batch of a split still takes part in its sum.
    """
    widths: dict[str, int] = {}
    for rank in gather({s: e.metric.num_classes for s, e in running.items() if e.metric}):
        widths |= rank
    evaluations = []
    for split, width in sorted(widths.items()):
        evaluation = running.get(split) or Evaluation(split, None, width, None)
        evaluation.metric = counting(evaluation.metric, width, device)
        evaluations.append(evaluation)
    return evaluations


def counting(
    metric: PerClassCounts | None, num_classes: int, device: torch.device
) -> PerClassCounts:
    """Return the metric, made if need be, where it can count: MPS has no float64."""
    home = torch.device("cpu") if device.type == "mps" else device
    if metric is None:
        metric = PerClassCounts(num_classes)
        # An update of nothing, since torchmetrics warns of metrics that saw none.
        metric.update(torch.empty(0, num_classes), torch.empty(0, dtype=torch.int64))
    return metric if metric.device == home else metric.to(home)


def sampler_of(loader: Any) -> Any:
    """The loader's sampler, where batches are cut from it as it comes; otherwise None."""
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader, "sampler", None) if type(batches) in (NoneType, BatchSampler) else None


def _visits_in_order(sampler: object, dataset: object) -> bool:
    if isinstance(sampler, DistributedSampler):
        return not sampler.shuffle and sampler.dataset is dataset
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        return False  # each rank visits a share of its own choosing
    return isinstance(sampler, SequentialSampler)


def _second_forward(pl_module: Any, forward: Any, inputs: Any, targets: Any, who: str) -> Tensor:
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), _evaluating(pl_module):
        output = forward(inputs)
    logits = as_logits(output)
    if logits is None or not isinstance(targets, Tensor) or len(logits) != len(targets):
        shape = tuple(getattr(output, "shape", ())) or type(output).__name__
        raise BatchError(
            f"{who} is for classification, but found no logits (N, C) with one row a target: "
            f"forward returned {shape}. {ADAPTER_HINT}"
        )
    return logits


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training
