"""What a classifier's last linear map takes in, for every example of a loader, put out once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.callbacks.batches import Adapter, class_targets, read_batch
from firstlight.callbacks.classes import targets_of
from firstlight.callbacks.labelled_sets import LabelledSet, number_of_batches, own_batches
from firstlight.callbacks.linear_head import Head, calls_of, quiet, view_of_batch
from firstlight.functional.ranks import Ranks, gather_or_raise
from firstlight.functional.retrained_head import check_examples
from firstlight.functional.row_store import RowStore

FEW = 50
"""Batches that may be read before training to see which classes are there."""


@dataclass(frozen=True)
class Features:
    """What the head takes for each example, of this rank's share, and its class.

    Attributes:
        features: float32 (N, d) (float64 where the module is), on the module's device; on the CPU,
            mapped from a file, where they are more than a quarter of its free memory.
        targets: int64 (N,), where the features are.
        positions: int64 (N,), there too: each example's place among those of all ranks.
        note: says of such a file what it is; otherwise empty.
    """

    features: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    positions: Tensor = field(repr=False)
    note: str = ""

    def logits(
        self, weight: Tensor, bias: Tensor, rows: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield logits, targets and positions of a head, some rows at a time."""
        w, b = weight.to(self.features), bias.to(self.features)
        whole = (self.features, self.targets, self.positions)
        for x, y, place in zip(*(torch.split(part, rows) for part in whole), strict=True):
            yield nn.functional.linear(x, w, b), y, place


def extract(
    pl_module: Any,
    head: Head,
    loader: Any,
    move: Any,
    who: str,
    adapter: Adapter | None,
    folder: Path,
    tick: Any = None,
) -> Features:
    """Put all examples through the module once and keep what the head takes. Collective.

    In eval mode, in float32, every example once on one rank. Memory: ``4 N d`` bytes on the
    device, ``N`` of this rank's share; where that is more than a quarter of what is free, as much
    in a file, which has no name and goes with the features or with the process.

    Args:
        pl_module: left as it was, also where this fails.
        head: of `find_head`.
        loader: of labelled examples.
        move: brings a batch to the device.
        who: named in errors.
        adapter: see `read_batch`.
        folder: what such a file lies in.
        tick: called after each batch.

    Raises:
        ValueError: on features that are not finite or targets out of range, naming the example, on
            every rank.
        BatchError: as `read_batch`.
        OSError: where there is room for them neither in memory nor in the folder.
    """
    ranks, error = Ranks.current(), None
    device = pl_module.device
    home = torch.device("cpu") if device.type == "mps" else device  # fits take float64
    sharing = 1 if home.type == "cuda" else ranks.world
    none = torch.empty(0, dtype=torch.int64)
    labels, positions = [none.to(home)], [none]
    with (
        RowStore(head.width, home, folder, sharing) as store,
        quiet(pl_module, who, ranks) as module,
        calls_of(module, head.name) as calls,
    ):
        batches = own_batches(loader, move, ranks)
        try:
            for batch, place in batches:
                inputs, targets, _ = read_batch(module, batch, who, adapter)
                view_of_batch(module, batch, who, adapter)(inputs)
                x, y = calls.seen[0][1], class_targets(targets, head.num_classes, who)
                calls.forget()
                where = place(len(y))
                kept = where >= 0
                x, y = x[kept.to(x.device)].to(home), y[kept.to(y.device)].to(home)
                x = x if x.dtype == torch.float64 else x.float()
                check_examples(x, y, head.num_classes, len(store))
                store.append(x)
                labels.append(y)
                positions.append(where[kept])
                if tick is not None:
                    tick()
        except Exception as caught:  # raised on every rank below
            error = caught
        gather_or_raise(ranks, {}, error)
        features = store.collected()
    at = features.device
    return Features(features, torch.cat(labels).to(at), torch.cat(positions).to(at), store.note)


def missing_classes(
    pl_module: Any, head: Head, source: LabelledSet, move: Any, who: str, adapter: Adapter | None
) -> list[int] | None:
    """Classes of which the examples hold none. Collective; the same on every rank.

    The data set is asked; one that does not say is read, where it has at most 50 batches.

    Args:
        pl_module: left as it was.
        head: of `find_head`.
        source: the examples.
        move: brings a batch to the device.
        who: named in errors.
        adapter: see `read_batch`.

    Returns:
        None where it is unknown: more batches than that, or a loader without a length.

    Raises:
        ValueError, BatchError: as `read_batch`, and on targets out of range.
    """
    ranks, told = Ranks.current(), targets_of(source.loader)
    batches = number_of_batches(source.loader)
    own = None if told is None else set(told), batches is not None and batches <= FEW
    every = ranks.gather({ranks.rank: own})
    present: list[set[int]] = [here for here, _ in every if here is not None]
    if len(present) < len(every):
        if not all(few for _, few in every):
            return None
        present = _read_classes(pl_module, head, source.loader, move, who, adapter)
    return sorted(set(range(head.num_classes)).difference(*present))


def _read_classes(
    pl_module: Any, head: Head, loader: Any, move: Any, who: str, adapter: Adapter | None
) -> list[set[int]]:
    """The classes that each rank reads."""
    ranks, error = Ranks.current(), None
    seen: set[int] = set()
    with quiet(pl_module, who, ranks) as module:
        try:
            for batch, _ in own_batches(loader, move, ranks):
                _, targets, _ = read_batch(module, batch, who, adapter)
                seen |= set(class_targets(targets, head.num_classes, who).tolist())
        except Exception as caught:  # raised on every rank below
            error = caught
        return gather_or_raise(ranks, {ranks.rank: seen}, error)
