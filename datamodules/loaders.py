"""Loaders that resume exactly: their position is saved with a run, their randomness is keyed."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from firstlight.datamodules.samplers import ShuffledSampler
from firstlight.functional.seeding import keyed_generator


class Labelled(Protocol):
    """A map-style data set in torchvision's manner: items, integer targets, class names."""

    targets: list[int]
    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class Pipeline(Protocol):
    """Makes a batch of network inputs from indices of a data set on its device."""

    device: torch.device

    def __call__(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return inputs for the examples at ``index``; draw from ``generator`` only."""
        ...


class _Position:
    """Where in which epoch a loader stands, and where the next iteration is to start.

    A point that was loaded holds for the epoch it was saved in: a checkpoint of an epoch's last
    batch is resumed in the next epoch, which then starts at its first batch, however many batches
    of an epoch the trainer uses.
    """

    def __init__(self) -> None:
        self.epoch, self.batch = 0, 0
        self._loaded: tuple[int, int] | None = None

    def state(self, length: int) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch % max(length, 1), "batches": length}

    def load(self, state: dict[str, int], length: int) -> None:
        if state["batches"] != length:
            rank_zero_warn(
                f"The checkpoint's epochs had {state['batches']} batches, now they have {length}: "
                "the rest of the interrupted epoch will not be the examples that were left. Resume "
                "with the same data, batch_size and number of processes for an exact continuation."
            )
        self.epoch, self.batch = state["epoch"], state["batch"] % max(length, 1)
        self._loaded = self.epoch, self.batch

    def begin(self, epoch: int) -> int:
        """Start an iteration in ``epoch``; return the number of its first batch."""
        loaded, self._loaded = self._loaded, None
        first = loaded[1] if loaded is not None and loaded[0] == epoch else 0
        self.epoch, self.batch = epoch, first
        return first


class Finish(Protocol):
    """Makes network inputs of a collated batch, on the training device, drawing nothing."""

    device: torch.device

    def __call__(self, *collated: Any) -> Tensor:
        """Return the inputs."""
        ...


def _begin_epoch(sampler: object) -> int:
    return sampler.settle_epoch() if isinstance(sampler, ShuffledSampler) else 0


class ResidentLoader:
    """Batches of a data set that lives on the training device.

    Iterating is lazy: order and position are settled when the first batch is asked for, because
    Lightning makes the iterator before it announces the epoch. The random numbers of batch ``b`` in
    epoch ``e`` on rank ``r`` come from a generator keyed by (seed, e, b, r) alone.

    Attributes:
        dataset: items are (uint8 image (C, H, W), int target), with ``targets`` and ``classes``.
        sampler: decides order and share; `ShuffledSampler` to train.
        batch_size: examples per batch on this rank.

    Args:
        dataset: see above.
        pipeline: makes the inputs of a batch from indices.
        sampler: see above.
        batch_size: see above.
        seed: key of the augmentations.
        drop_last: leave out an incomplete last batch.
    """

    batch_sampler = None  # Lightning reads it to find out whether a loader shuffles
    num_workers = 0

    def __init__(
        self,
        dataset: Labelled,
        pipeline: Pipeline,
        sampler: Sampler[int],
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.dataset, self.sampler, self.batch_size = dataset, sampler, batch_size
        self.drop_last = drop_last
        self._pipeline, self._seed = pipeline, seed
        self._targets = torch.tensor(dataset.targets, dtype=torch.int64).to(pipeline.device)
        self._position = _Position()

    def __len__(self) -> int:
        examples = len(self.sampler)  # type: ignore[arg-type]  # ours are sized
        return examples // self.batch_size if self.drop_last else -(-examples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, rank = _begin_epoch(self.sampler), getattr(self.sampler, "rank", 0)
        first = self._position.begin(epoch)
        order = torch.tensor(list(self.sampler), dtype=torch.int64)
        for number in range(first, len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            index = index.to(self._pipeline.device, non_blocking=True)
            generator = keyed_generator(self._seed, epoch, number, rank)
            self._position.batch = number + 1
            yield self._pipeline(index, generator), self._targets[index]

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of the next batch; called by Lightning whenever it saves a checkpoint.

        The number is taken modulo the epoch's length: at the end it is 0.
        """
        return self._position.state(len(self))

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next iteration continue where ``state_dict`` was taken, if in that epoch."""
        self._position.load(state_dict, len(self))
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.set_epoch(state_dict["epoch"])


class ResumableDataLoader(DataLoader[Any]):
    """A ``DataLoader`` over files that resumes in mid-epoch without loading what it skips.

    Like `ResidentLoader` it settles epoch and position at the first batch. The epoch is handed to
    the data set (``set_epoch``), which keys its augmentations by (seed, epoch, index), so that they
    do not depend on workers. The global random state is not touched.

    Args:
        dataset: map-style; its ``set_epoch`` is called if it has one.
        sampler: `ShuffledSampler` to train, or any fixed order.
        finish: makes the inputs of each batch ``(collated, targets)``, in this process and on its
            device, to which the targets are moved too. None: batches are yielded as collated.
        **kwargs: as for ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: Sampler[int],
        finish: Finish | None = None,
        **kwargs: Any,
    ) -> None:
        # without a generator of its own, DataLoader draws a seed from torch's global one
        kwargs.setdefault("generator", torch.Generator())
        super().__init__(dataset, sampler=sampler, **kwargs)
        self.finish = finish
        self._position = _Position()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, to be lazy
        epoch = _begin_epoch(self.sampler)
        first = self._position.begin(epoch)
        if isinstance(self.sampler, ShuffledSampler):
            self.sampler.start = first * (self.batch_size or 1)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        for batch in super().__iter__():
            self._position.batch += 1
            if self.finish is not None:
                collated, targets = batch
                device = self.finish.device
                batch = self.finish(*collated), targets.to(device, non_blocking=True)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of the next batch, as in `ResidentLoader`."""
        return self._position.state(len(self))

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next iteration continue where ``state_dict`` was taken, if in that epoch."""
        self._position.load(state_dict, len(self))
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.set_epoch(state_dict["epoch"])
