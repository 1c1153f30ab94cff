"""Orders of examples that depend on (seed, epoch, rank) and on nothing else."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal, get_args

import torch
from torch import Tensor
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

    def _order(self, count: int, generator: torch.Generator) -> Sequence[int]:
        """The epoch's examples, ``count`` of them, the same on every rank."""
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order

    def _share(self, padded: list[int]) -> list[int]:
        """This rank's part of the order."""
        return padded[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)  # type: ignore[arg-type]  # sized, see the constructor
        order = self._order(count, keyed_generator(self.seed, self.epoch))
        padded = (list(order) * -(-self.total_size // count))[: self.total_size]
        return iter(self._share(padded)[self.start :])


class Draw(int):
    """An example's number that also says how often it was drawn before in the same epoch.

    A data set that keys its augmentations by epoch and number (`ImageFiles`) takes ``repeat`` into
    the key: a rare class drawn a hundred times an epoch is not augmented a hundred times alike.
    """

    repeat: int

    def __new__(cls, number: int, repeat: int) -> "Draw":
        """Make the number; to all but ``repeat`` it is a plain int."""
        draw = super().__new__(cls, number)
        draw.repeat = repeat
        return draw

    def __reduce__(self) -> tuple[Any, ...]:
        """How worker processes get it."""
        return Draw, (int(self), self.repeat)


Sampling = Literal["instance", "square_root", "class_balanced"]
EXPONENTS: dict[Sampling, float] = {"instance": 1.0, "square_root": 0.5, "class_balanced": 0.0}
"""Exponent q of ``p_k ~ n_k**q``, the share of class k among the draws (arXiv 1910.09217)."""


class ClassSampler(ShuffledSampler):
    """Draw examples with replacement, class k with a probability in proportion to ``n_k**q``.

    q = 0: every class equally often; 1/2: the square root; 1: as often as it is (Kang et al., arXiv
    1910.09217, eq. 1). Within a class all examples are alike. An epoch has as many draws as there
    are examples. All ranks draw the same sequence and rank r of W takes positions r, r + W, ..., so
    that W ranks together see what one process would; torch's ``WeightedRandomSampler`` on every
    rank would give each its own draws by its own seed, or the same ones to all.

    Yields a `Draw` where an example comes again in the epoch.

    Args:
        targets: class numbers, one an example.
        exponent: q, 0 or above.
        seed: any integer.
        num_replicas: number of ranks W.
        rank: this rank.
        current_epoch: as for `ShuffledSampler`.

    Raises:
        ValueError: on a negative or infinite exponent.
    """

    def __init__(
        self,
        targets: Sequence[int],
        exponent: float,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        current_epoch: Callable[[], int | None] | None = None,
    ) -> None:
        if not 0 <= exponent < float("inf"):
            raise ValueError(f"exponent must be finite, 0 or above, not {exponent}")
        super().__init__(targets, seed, num_replicas, rank, current_epoch)
        labels = torch.as_tensor(targets)
        counts = torch.bincount(labels).double()
        self.weights: Tensor = counts[labels] ** (exponent - 1)

    def _order(self, count: int, generator: torch.Generator) -> Sequence[int]:
        # torch.multinomial takes at most 2**24 examples.
        ends = self.weights.cumsum(0)
        points = torch.rand(count, generator=generator, dtype=torch.float64) * ends[-1]
        drawn = torch.searchsorted(ends, points, right=True).clamp(max=count - 1).tolist()
        before: Counter[int] = Counter()
        order: list[int] = []
        for number in drawn:
            repeat = before[number]
            order.append(Draw(number, repeat) if repeat else number)
            before[number] += 1
        return order


MIXED = 8
"""Chunks whose examples are shuffled together."""


def chunk_order(count: int, generator: torch.Generator) -> Tensor:
    """Draw the order in which an epoch visits ``count`` chunks, int64."""
    return torch.randperm(count, generator=generator)


class ChunkSampler(ShuffledSampler):
    """Visit chunks in random order, the examples of `MIXED` chunks at a time shuffled together.

    The order is drawn as in `ShuffledSampler` by (seed, epoch), the same on every rank; but a rank
    takes a stretch of it, so that W ranks read each chunk about once between them, not W times.
    Where chunks are random samples of the data, so is every stretch.

    Args:
        ends: int64 (C,), the number of examples up to each chunk's end; examples are numbered by
            chunk.
        seed: any integer.
        num_replicas: number of ranks W.
        rank: this rank.
        current_epoch: as for `ShuffledSampler`.
    """

    def __init__(
        self,
        ends: Tensor,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        current_epoch: Callable[[], int | None] | None = None,
    ) -> None:
        super().__init__(range(int(ends[-1])), seed, num_replicas, rank, current_epoch)
        self._ends = ends

    def _order(self, count: int, generator: torch.Generator) -> Sequence[int]:
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._ends[:-1]])
        visits = chunk_order(len(starts), generator)
        order: list[int] = []
        for first in range(0, len(visits), MIXED):
            chunks = visits[first : first + MIXED]
            spans = zip(starts[chunks].tolist(), self._ends[chunks].tolist(), strict=True)
            mixed = torch.cat([torch.arange(start, end) for start, end in spans])
            order += mixed[torch.randperm(len(mixed), generator=generator)].tolist()
        return order

    def _share(self, padded: list[int]) -> list[int]:
        return padded[self.rank * self.num_samples :][: self.num_samples]


def check_sampling(sampling: object) -> None:
    """Raise ValueError on another word than those of `Sampling`."""
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {get_args(Sampling)}, not {sampling!r}")


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


def training_order(
    data: Any,
    sampling: Sampling,
    shuffled: bool,
    seed: int,
    num_replicas: int,
    rank: int,
    current_epoch: Callable[[], int | None],
) -> Sampler[int]:
    """Return the order of training: shuffled, drawn by class, or `fixed_order` on request.

    Args:
        data: has a length and ``targets``.
        sampling: see `Sampling`.
        shuffled: False for the fixed order.
        seed: any integer.
        num_replicas: number of ranks.
        rank: this rank.
        current_epoch: as for `ShuffledSampler`.
    """
    if not shuffled:
        return fixed_order(data, num_replicas, rank)
    how = seed, num_replicas, rank, current_epoch
    if sampling == "instance":
        return ShuffledSampler(data, *how)
    return ClassSampler(data.targets, EXPONENTS[sampling], *how)


def class_draw_weights(sampling: Sampling, counts: Sequence[int]) -> list[float] | None:
    """How often an example of each class is drawn, up to scale; None: every one once.

    Args:
        sampling: see `Sampling`.
        counts: examples by class; one without any has weight 0.
    """
    if sampling == "instance":
        return None
    return [n ** (EXPONENTS[sampling] - 1) if n else 0.0 for n in counts]
