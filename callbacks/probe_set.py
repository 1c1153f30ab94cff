"""The probe set: fixed examples, the same on every rank, that a run is measured on."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from firstlight.callbacks.batches import Adapter, class_targets, network_of, read_batch
from firstlight.callbacks.classifier_view import Bind, ClassifierView
from firstlight.callbacks.records import gather, keyed_random_states
from firstlight.functional.loaders import named_sets
from firstlight.functional.measuring import number_of_examples, take
from firstlight.functional.seeding import keyed_generator

_STREAM = 0x70726F6265
"""Key that tells a probe's random numbers from others of the same seed."""


@dataclass(frozen=True)
class ProbeSet:
    """Examples on the CPU, and where they came from.

    Attributes:
        inputs: a tensor, or any nesting of tensors, with n examples along the first axis.
        targets: (n,) class indices, or probabilities (n, C).
        bind: gives a module's forward.
        fingerprint: sha256 of all numbers.
        source: a phrase that says where they came from.
        notes: sentences that the user should read.
    """

    inputs: Any
    targets: Tensor
    bind: Bind
    fingerprint: str
    source: str
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.targets)


def collect(
    trainer: Any,
    pl_module: Any,
    given: Any,
    size: int,
    seed: int,
    who: str,
    adapter: Adapter | None,
) -> ProbeSet:
    """Gather the probe set: of the argument, the data module, or the training data.

    A data set or the training data gives ``size`` examples drawn without replacement by a generator
    keyed by ``seed``; a loader or tensors give their first ``size``. Batches pass through the hooks
    that move training batches to the device, once; random states are forked and keyed, so that
    random transforms draw the same on every rank and after every resume. Collective.

    Raises:
        ValueError: where there is no example; where ranks hold different ones; where batches cannot
            be joined; where there is nothing to take a probe from.
        BatchError: for batches that are no classifier's.
    """
    if _is_pair(given):  # plain by itself, whatever the training batches are
        adapter = plain_pair
    source, batches, note = _source(trainer, given, size, seed, who)
    device = pl_module.device
    with keyed_random_states(seed, _STREAM, device=device):
        first, inputs, targets = _joined(trainer, pl_module, batches, size, who, adapter)
    notes = [note] if note else []
    if len(targets) < size:
        notes.append(f"asked for {size} probe examples, got {len(targets)}: there are no more.")
    prints = gather(fingerprint_of(inputs, targets))
    if len(set(prints)) > 1:
        raise ValueError(
            f"{who}: the processes hold different probe sets, taken from {source}. A loader given "
            "as probe must not be split between processes (no DistributedSampler), and a random "
            "transform must draw from torch, NumPy or Python's generators"
        )

    def bind(module: Any) -> Any:
        return read_batch(module, first, who, adapter).forward

    return ProbeSet(inputs, targets, bind, prints[0], source, tuple(notes))


def plain_pair(module: Any, batch: Any) -> tuple[Any, Any, Any]:
    """An adapter for (inputs, targets), a mapping of inputs being keyword arguments of forward."""
    inputs, targets = batch
    network = network_of(module, "the probe")
    if isinstance(inputs, Mapping):
        return inputs, targets, lambda x: network(**x)
    return inputs, targets, network


def fingerprint_of(inputs: Any, targets: Tensor) -> str:
    """sha256 of all numbers of a probe set."""
    digest = hashlib.sha256()
    for tensor in [*tree_flatten(inputs)[0], targets]:
        if isinstance(tensor, Tensor):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checked_targets(view: ClassifierView, inputs: Any, targets: Tensor) -> tuple[Tensor, str, int]:
    """Find out what the model gives for some inputs, and bring the targets into shape.

    Returns:
        Targets, class indices (n,) or probabilities (n, C); a note or ""; and the width C.

    Raises:
        BatchError: where the task is no classification.
    """
    rows = slice(0, min(len(targets), 32))
    probabilities, width = view.looks_like_probabilities(take(inputs, rows))
    found = class_targets(targets, width, view.who)
    view.log = probabilities
    note = "forward returns probabilities: their logarithm is taken." if probabilities else ""
    soft = targets.is_floating_point() and targets.ndim == 2
    return targets if soft else found, note, width


def _source(
    trainer: Any, given: Any, size: int, seed: int, who: str
) -> tuple[str, Iterable[Any], str]:
    if given is not None:
        return "the argument probe", _batches_of_argument(given, size, seed, who), ""
    loader = getattr(trainer.datamodule, "probe_dataloader", None)
    if callable(loader):
        name = f"{type(trainer.datamodule).__name__}.probe_dataloader()"
        return name, loader(), ""
    found = [one for _, one in named_sets("train", trainer.train_dataloader)]
    dataset = getattr(found[0], "dataset", None) if found else None
    if dataset is None or isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise ValueError(
            f"{who} found no probe set: there is no data module with probe_dataloader(), and "
            "examples of the training data cannot be picked by number. Pass probe= a loader, a "
            "data set or a pair of tensors (inputs, targets) of fixed training examples"
        )
    note = (
        "the probe set is drawn once from the training data as the loader gives them: if they are "
        "augmented, so is the probe. Pass probe=, or give the data module a probe_dataloader(), "
        "for images without augmentation."
    )
    collate = getattr(found[0], "collate_fn", None) or default_collate
    return "the training data", _drawn(dataset, collate, size, seed), note


def _batches_of_argument(given: Any, size: int, seed: int, who: str) -> Iterable[Any]:
    if _is_pair(given):
        return [given]
    if isinstance(given, IterableDataset):
        return DataLoader(given, batch_size=32)
    if isinstance(given, Dataset):
        return _drawn(given, default_collate, size, seed)
    if isinstance(given, Iterable) and not isinstance(given, str | Iterator):
        return given
    raise ValueError(
        f"{who}: probe must be a loader, a data set, or a pair of tensors (inputs, targets), not "
        f"{type(given).__name__}"
    )


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[1], Tensor)


def _drawn(dataset: Any, collate: Any, size: int, seed: int) -> Iterator[Any]:
    generator = keyed_generator(seed, _STREAM)
    order = torch.randperm(len(dataset), generator=generator)[:size].tolist()
    for start in range(0, len(order), 32):
        yield collate([dataset[index] for index in order[start : start + 32]])


def _joined(
    trainer: Any,
    pl_module: Any,
    batches: Iterable[Any],
    size: int,
    who: str,
    adapter: Adapter | None,
) -> tuple[Any, Any, Tensor]:
    first, parts, count = None, [], 0
    for batch in batches:
        first = batch if first is None else first
        moved = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        inputs, targets, _ = read_batch(pl_module, moved, who, adapter)
        targets = targets if isinstance(targets, Tensor) else torch.as_tensor(targets)
        rows = slice(0, size - count)
        part = tree_map(_on_cpu, (take(inputs, rows), targets[rows]))
        parts.append(part)
        count += len(part[1])
        if count >= size:
            break
    if not count:
        raise ValueError(
            f"{who}: the probe set is empty. Its loader gave no example; pass probe= a loader, a "
            "data set or a pair of tensors (inputs, targets)"
        )
    inputs, targets = _concatenated(parts, who)
    if number_of_examples(inputs) != len(targets):
        raise ValueError(
            f"{who}: the probe set has {number_of_examples(inputs)} inputs, but {len(targets)} "
            "targets"
        )
    return first, inputs, targets


def _on_cpu(x: Any) -> Any:
    return x.detach().cpu() if isinstance(x, Tensor) else x


def _concatenated(parts: list[Any], who: str) -> Any:
    leaves = [tree_flatten(part) for part in parts]
    spec = leaves[0][1]
    try:
        columns = list(zip(*(values for values, _ in leaves), strict=True))
        joined = [torch.cat(c) if isinstance(c[0], Tensor) and c[0].ndim else c[0] for c in columns]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{who}: the batches of the probe set do not fit together ({error}). Pad all of them "
            "to one length, or pass the probe as one batch: probe=(inputs, targets)"
        ) from error
    return tree_unflatten(joined, spec)
