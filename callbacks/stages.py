"""One set of methods for the stages train, val and test, whichever of Lightning's hooks calls."""

from typing import Any, Literal

from lightning.pytorch import Callback

Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")


def loaders_of(trainer: Any, stage: Stage) -> Any:
    """The trainer's loaders of a stage, as the user gave them."""
    if stage == "train":
        return trainer.train_dataloader
    return trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders


class StageCallback(Callback):
    """A callback that does the same in every stage: a subclass overrides the first four methods.

    A training epoch may contain validations, so that stages nest. An epoch that a checkpoint
    resumes in its middle is not started again.
    """

    def start(self, stage: Stage) -> None:
        """An epoch of the stage begins."""

    def before_batch(self, stage: Stage) -> None:
        """A step is about to be made."""

    def after_batch(
        self, stage: Stage, trainer: Any, pl_module: Any, batch: Any, index: int
    ) -> None:
        """A step was made with ``batch`` of the stage's loader number ``index``."""

    def finish(self, stage: Stage, trainer: Any, pl_module: Any) -> None:
        """An epoch of the stage ends."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget the epoch before."""
        self.start("train")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Begin to look."""
        self.before_batch("train")

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        self.after_batch("train", trainer, pl_module, batch, 0)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Sum up, log, write."""
        self.finish("train", trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget the epoch before."""
        self.start("val")

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Begin to look."""
        self.before_batch("val")

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self.after_batch("val", trainer, pl_module, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Sum up, log, write; before checkpoints and early stopping look at the metrics."""
        self.finish("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what came before."""
        self.start("test")

    def on_test_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Begin to look."""
        self.before_batch("test")

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self.after_batch("test", trainer, pl_module, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Sum up, log, write."""
        self.finish("test", trainer, pl_module)
