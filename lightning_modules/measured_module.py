"""A LightningModule that measures loss and accuracies of its stages exactly."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from firstlight.lightning_modules.batches import unpack
from firstlight.lightning_modules.epoch_metrics import StageMetrics


class MeasuredModule(pl.LightningModule):
    """Log ``<stage>/loss|top1|top5|macro_accuracy`` at the end of every epoch, from sums.

    A subclass calls ``measure`` once it knows the number of classes, and ``unpack`` and ``record``
    in its steps.
    """

    loss: nn.Module
    _resumed: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._checked: set[tuple[str, int]] = set()

    def setup(self, stage: str) -> None:
        """Have the labels of the first batches looked at again."""
        self._checked.clear()

    def measure(self, num_classes: int) -> None:
        """Make the accumulators of all stages."""
        self._metrics = nn.ModuleDict(
            {f"{s}_metrics": StageMetrics(s, num_classes) for s in ("train", "val", "test")}
        )

    def _stage(self, stage: str) -> StageMetrics:
        return self._metrics[f"{stage}_metrics"]  # type: ignore[return-value]

    def unpack(self, stage: str, index: int, batch: Any) -> tuple[Tensor, Tensor]:
        """Return images (N, ...) and labels (N,) of a batch; raises as `batches.unpack`.

        Labels of the first batch of each data set are checked on every device: out of range on a
        GPU they would surface as a device-side assertion. Later ones are checked on the CPU only.

        Args:
            stage: ``train``, ``val`` or ``test``.
            index: the place of the data set among the stage's.
            batch: what its loader gave.
        """
        is_first = (stage, index) not in self._checked
        self._checked.add((stage, index))
        return unpack(batch, self._stage(stage).num_classes, check=is_first)

    @torch.no_grad()
    def record(
        self,
        stage: str,
        index: int,
        logits: Tensor,
        targets: Tensor,
        wanted: Tensor | None = None,
        loss: Tensor | None = None,
    ) -> None:
        """Add a batch to a stage's data set, examples that the sampler repeats left out.

        Args:
            stage: ``train``, ``val`` or ``test``.
            index: the place of the data set among the stage's.
            logits: (N, C).
            targets: int64 (N,), what predictions are compared with.
            wanted: what the loss compares with, (N,) or (N, C); None: ``targets``.
            loss: the batch's mean loss, if known; computed where repeats have to be left out.
        """
        wanted = targets if wanted is None else wanted
        kept = self._stage(stage).kept(index, len(targets))
        if kept is not None:
            kept = kept.to(targets.device)
            logits, targets, wanted, loss = logits[kept], targets[kept], wanted[kept], None
        if len(targets):
            loss = self.loss(logits, wanted) if loss is None else loss
            self._stage(stage).update(index, logits, targets, loss)

    def _begin(self, stage: str, loaders: Any) -> None:
        self._stage(stage).start(loaders, self.device)

    def _finish(self, stage: str) -> None:
        for key, value in self._stage(stage).finish().items():
            shown = stage != "train" and key in (f"{stage}/loss", f"{stage}/top1")
            self.log(key, value, prog_bar=shown, sync_dist=True, add_dataloader_idx=False)

    def training_sums(self) -> dict[str, Any] | None:
        """The unfinished epoch's sums over all ranks, plain values and tensors: for a checkpoint.

        Every rank has to call it.
        """
        stage = self._stage("train")
        if not stage.seen:
            return None
        sums = stage.sets[0].sums()  # type: ignore[operator]
        return {"epoch": self.current_epoch, "seen": stage.seen[0], "sums": sums}

    def resume_sums(self, saved: dict[str, Any] | None) -> None:
        """Continue the sums of a checkpoint's unfinished epoch when training starts."""
        self._resumed = saved

    def on_train_start(self) -> None:
        """Begin the metrics, or continue those of an interrupted epoch.

        A checkpoint of an epoch's last batch resumes in the next epoch, without that one's start.
        """
        self._begin("train", self.trainer.train_dataloader)
        saved, self._resumed = self._resumed, None
        if saved is None or saved["epoch"] != self.current_epoch:
            return
        stage = self._stage("train")
        stage.seen = [saved["seen"]]
        if self.global_rank == 0:
            stage.sets[0].restore(saved["sums"])  # type: ignore[operator]

    def on_train_epoch_start(self) -> None:
        """Begin the metrics."""
        self._begin("train", self.trainer.train_dataloader)

    def on_train_epoch_end(self) -> None:
        """Log the training metrics."""
        self._finish("train")

    def on_validation_epoch_start(self) -> None:
        """Begin the metrics."""
        self._begin("val", self.trainer.val_dataloaders)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Begin the metrics."""
        self._begin("test", self.trainer.test_dataloaders)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._finish("test")
