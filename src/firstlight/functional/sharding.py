"""Which examples of a data set a rank has seen, when samplers repeat some to fill their ranks."""

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


def example_positions(sampler: object, start: int, count: int) -> Tensor:
    """Global positions of a rank's examples ``start .. start + count - 1``, repeats marked by -1.

    ``torch.utils.data.DistributedSampler`` with ``drop_last=False`` repeats the first examples
    until every rank has the same number. Example ``j`` of rank ``r`` among ``W`` has the global
    position ``j * W + r``; a position beyond the data set is a repeat, and whoever counts it counts
    an example twice. Any other sampler is taken to visit its examples once, in one process.

    Args:
        sampler: the loader's sampler; anything but a ``DistributedSampler`` means one shard.
        start: how many examples of this rank came before, in this epoch.
        count: how many examples to place.

    Returns:
        int64 of shape (count,): the position in the sampler's order (equal to the data set's index
        where the sampler does not shuffle), or -1 for a repeated example.

    Example:
        >>> from torch.utils.data import DistributedSampler
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
        >>> example_positions(sampler, 0, 3)
        tensor([ 1,  3, -1])
    """
    order = torch.arange(start, start + count)
    if not isinstance(sampler, DistributedSampler):
        return order
    positions = order * sampler.num_replicas + sampler.rank
    total = len(sampler.dataset)  # type: ignore[arg-type]  # a sampler's data set is sized
    return positions.masked_fill(positions >= total, -1)
