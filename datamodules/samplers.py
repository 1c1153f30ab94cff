"""Orders of examples that depend on (seed, epoch, rank) and on nothing else."""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DistributedSampler, Sampler, SequentialSampler

from firstlight.functional.seeding import keyed_generator


class ShuffledSampler(DistributedSampler[int]):
    """Shuffle a data set by (seed, epoch) and give every rank its share.

    It is a ``DistributedSampler`` in one process too, so that Lightning uses it as it is under
    every strategy. All ranks draw the same order; rank r of W takes positions r, r + W, ...; the
    first examples of the order are repeated until ranks have equally many.

    Attributes:
        start: how many of this rank's examples to leave out, for a loader that resumes.

    Args:
        dataset: anything with a length.
        seed: any integer.
        num_replicas: number of ranks W.
        rank: this rank.
        current_epoch: asked for the epoch when an iteration begins; without it, or where it
            answers None, ``set_epoch`` holds. Lightning announces one epoch too many when it
            resumes a run with ``max_steps`` from a checkpoint of an epoch's end.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        current_epoch: Callable[[], int | None] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed=seed)  # type: ignore[arg-type]  # only its length is used
        self.start = 0
        self._current_epoch = current_epoch

    def settle_epoch(self) -> int:
        """Return the epoch that is about to begin, and shuffle for it."""
        current = None if self._current_epoch is None else self._current_epoch()
        if current is not None:
            self.set_epoch(current)
        return self.epoch

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)  # type: ignore[arg-type]  # sized, see the constructor
        order = torch.randperm(count, generator=keyed_generator(self.seed, self.epoch))
        padded = order.repeat(-(-self.total_size // count))[: self.total_size]
        return iter(padded[self.rank :: self.num_replicas][self.start :].tolist())


class FixedOrderSampler(DistributedSampler[int], SequentialSampler):
    """A rank's share of a data set in its own order, repeats at the end as in torch's class.

    Being a ``SequentialSampler`` too tells Lightning that nothing is shuffled. Whoever counts finds
    the repeats by `firstlight.functional.example_positions`.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]  # only its length is used
        self.data_source = dataset


def fixed_order(dataset: Any, num_replicas: int, rank: int) -> Sampler[int]:
    """Return the evaluation order: plainly sequential in one process, a rank's share in several."""
    if num_replicas == 1:
        return SequentialSampler(dataset)
    return FixedOrderSampler(dataset, num_replicas, rank)
