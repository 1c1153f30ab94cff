"""Who measures which part of a probe set, and how the parts come together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that measure together; alone by default.

    Work is dealt out in numbered batches whose randomness is keyed by the number, and the parts are
    put together in the order of the numbers, so that the value is bitwise the same on any number
    of ranks.

    Attributes:
        rank: this process.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """The processes of the initialised default group; alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, items: Sequence[T]) -> Iterable[tuple[int, T]]:
        """Yield this rank's items with their numbers: every ``world``-th."""
        return ((i, items[i]) for i in range(self.rank, len(items), self.world))

    def gather(self, parts: dict[int, T]) -> list[T]:
        """Return all ranks' numbered parts in the order of their numbers, on all. Collective."""
        if self.world > 1:
            every: list[dict[int, T]] = [{} for _ in range(self.world)]
            distributed.all_gather_object(every, parts)
            parts = {number: part for one in every for number, part in one.items()}
        return [parts[number] for number in sorted(parts)]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on its device. Collective."""
        if self.world == 1:
            return value
        # NCCL adds nothing that lies on the CPU.
        home = torch.device("cuda") if distributed.get_backend() == "nccl" else value.device
        moved = value.to(home, copy=True)
        distributed.all_reduce(moved)
        return moved.to(value.device)


ALONE = Ranks()


def gather_or_raise(ranks: Ranks, parts: dict[int, T], error: Exception | None) -> list[T]:
    """Gather, or raise on every rank what one of them met, so that none waits for another.

    Raises:
        Exception: this rank's own error.
        RuntimeError: naming the rank and error of another. Collective.
    """
    failures = ranks.gather({ranks.rank: None if error is None else repr(error)})
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise RuntimeError(f"measuring failed on rank {rank}: {failure}")
    return ranks.gather(parts)
