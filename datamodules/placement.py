"""Where a DataModule's process stands in a run."""

import lightning.pytorch as pl
import torch


class PlacedDataModule(pl.LightningDataModule):
    """A DataModule that knows device, ranks and epoch, with a trainer and without one."""

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    @property
    def _shard(self) -> tuple[int, int]:
        """Number of processes and rank of this one."""
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0

    def _epoch_of_run(self) -> int | None:
        if self.trainer is None or not self.trainer.training:
            return None
        return self.trainer.current_epoch
