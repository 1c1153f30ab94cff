"""Loss, top-1, top-5 and macro accuracy of an epoch, from sums over its examples."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torchmetrics import Metric

from firstlight.functional.loaders import named_sets
from firstlight.functional.per_class import ExampleScores, PerClassCounts, rank_of_target
from firstlight.functional.sharding import example_positions
from firstlight.functional.shifts import restrict_logits, scored_classes

PENDING_BATCHES = 64
"""Batches whose predictions wait on the device, so that counting does not synchronise each step."""

TOP_K = 5


class LossSum(Metric):
    """Sum of losses over examples, in float64."""

    full_state_update = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, weights: Tensor) -> None:
        """Add mean losses of batches, (B,), weighted by their numbers of examples, (B,)."""
        self.total += torch.dot(losses.to(self.total), weights.to(self.total))

    def compute(self) -> Tensor:
        """Return the sum over all ranks."""
        return self.total


class EpochMetrics(nn.Module):
    """Accumulate an epoch's metrics exactly, over any batch sizes and ranks.

    Args:
        num_classes: C, at least 2.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.counts = PerClassCounts(num_classes, top_k=TOP_K, calibration_bins=None)
        self.loss = LossSum()
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch; an example whose true logit is NaN is right under no metric.

        Args:
            logits: (N, C).
            targets: int64 in [0, C), (N,).
            loss: mean over the batch, a scalar; it counts N times.
        """
        if len(targets) == 0:
            return
        rank = rank_of_target(logits, targets)
        self._pending.append((targets, logits.argmax(1), rank, loss.detach()))
        if len(self._pending) >= PENDING_BATCHES:
            self._count()

    def _count(self) -> None:
        """Add what waits; an addition of nothing still tells torchmetrics of an update."""
        waiting = zip(*self._pending, strict=True) if self._pending else ((), (), (), ())
        targets, preds, ranks, losses = waiting
        none = torch.zeros(0, dtype=torch.int64, device=self.counts.device)
        target, pred, rank = (torch.cat([none, *part]) for part in (targets, preds, ranks))
        self.counts.update(ExampleScores(target, pred, none, none, none, none, rank))
        weights = torch.tensor([len(part) for part in targets], dtype=torch.float64)
        self.loss.update(torch.stack(losses) if losses else torch.zeros(0), weights)
        self._pending.clear()

    def compute(self) -> dict[str, float]:
        """Return ``loss``, ``top1``, ``top5`` and ``macro_accuracy`` over all ranks.

        Accuracies are shares in [0, 1]. The macro accuracy is the mean over the classes that
        occurred; absent classes do not count. Empty when nothing was added.
        """
        self._count()
        total = float(self.loss.compute())
        columns = {name: column.double() for name, column in self.counts.compute().items()}
        n = columns["n"]
        if n.sum() == 0:
            return {}
        present = n > 0
        return {
            "loss": total / float(n.sum()),
            "top1": float(columns["correct"].sum() / n.sum()),
            "top5": float(columns["top5"].sum() / n.sum()),
            "macro_accuracy": float((columns["correct"] / n)[present].mean()),
        }

    def reset(self) -> None:
        """Forget the epoch."""
        self._pending.clear()
        self.counts.reset()
        self.loss.reset()

    def sums(self) -> dict[str, Tensor]:
        """Everything accumulated, over all ranks, on the CPU: for a checkpoint in mid-epoch."""
        self._count()
        saved: dict[str, Tensor] = {}
        for name, metric in (("counts", self.counts), ("loss", self.loss)):
            with metric.sync_context():
                state = metric.metric_state
                saved |= {f"{name}.{k}": v.clone().cpu() for k, v in state.items()}  # type: ignore[union-attr]
        return saved

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Continue from ``sums``; call it on one rank only, the others start empty."""
        self.reset()
        for name, metric in (("counts", self.counts), ("loss", self.loss)):
            for key in metric.metric_state:
                setattr(metric, key, saved[f"{name}.{key}"].to(metric.device))


class StageMetrics(nn.Module):
    """The metrics of a stage's data sets, examples that a sampler repeats left out.

    Args:
        stage: ``train``, ``val`` or ``test``: the prefix of the keys.
        num_classes: C, at least 2.
    """

    def __init__(self, stage: str, num_classes: int) -> None:
        super().__init__()
        self.stage, self.num_classes = stage, num_classes
        self.sets = nn.ModuleList()
        self.prefixes: list[str] = []
        self.seen: list[int] = []

    def start(self, loaders: Any, device: torch.device) -> None:
        """Begin an epoch over one loader, or several in a list or dict.

        Keys begin with the names that `named_sets` gives.
        """
        named = named_sets(self.stage, loaders)
        self.prefixes = [name for name, _ in named]
        self.seen = [0] * len(named)
        # Held for the epoch only: a sampler leads to its data set.
        self._samplers = [getattr(loader, "sampler", None) for _, loader in named]
        self._scored = [scored_classes(loader) for _, loader in named]
        while len(self.sets) < len(named):
            self.sets.append(EpochMetrics(self.num_classes))
        self.to(device)
        for metrics in self.sets:
            metrics.reset()  # type: ignore[operator]

    def kept(self, index: int, count: int) -> Tensor | None:
        """Which of a set's next ``count`` examples are no repeats: places, or None for all."""
        start = self.seen[index]
        self.seen[index] += count
        sampler = self._samplers[index]
        if not isinstance(sampler, DistributedSampler) or sampler.num_replicas == 1:
            return None
        repeated = example_positions(sampler, start, count) < 0
        return (~repeated).nonzero()[:, 0] if repeated.any() else None

    def update(self, index: int, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch without repeats to a set; see ``EpochMetrics.update``.

        Accuracies are among the classes that the set wants scored; the loss is over all of them.
        """
        logits = restrict_logits(logits, self._scored[index])
        self.sets[index].update(logits, targets, loss)  # type: ignore[operator]

    def finish(self) -> dict[str, float]:
        """Return the metrics of all sets under their full keys, and let the samplers go."""
        self._samplers = [None] * len(self.seen)
        return {
            f"{prefix}/{name}": value
            for prefix, metrics in zip(self.prefixes, self.sets, strict=False)
            for name, value in metrics.compute().items()  # type: ignore[operator]
        }
