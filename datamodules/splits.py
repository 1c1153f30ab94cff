"""Which examples are trained on, selected on, held out and tested on."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from firstlight.functional.long_tail import stratified_split
from firstlight.functional.seeding import fold_in

Protocols = Literal["honest", "legacy"]

_VAL, _HOLDOUT, _TEST, _PROBE = 1, 2, 3, 4  # keys that make the seeds of the cuts independent


class Divisible(Protocol):
    """A labelled data set of which a part can be taken."""

    targets: list[int]
    classes: list[str]

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> Self:
        """Return the examples at ``index``, in that order."""
        ...


T = TypeVar("T", bound=Divisible)


@dataclasses.dataclass(frozen=True)
class Sources(Generic[T]):
    """What was found: training examples, and the validation and test sets if there are any.

    ``notes`` are what the user should know about how they were found.
    """

    train: T
    val: T | None
    test: T | None
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Splits(Generic[T]):
    """What a run uses.

    Attributes:
        train: examples trained on.
        val: examples for selection; None if there are none.
        holdout: training examples never trained on, nor selected on; None if there are none.
        test: examples to report on; None if there are none.
        probe: a fixed random part of ``train``.
        full_class_counts: examples per class before ``val`` and ``holdout`` were cut.
        fingerprint: hash of which training examples are trained on.
        notes: what the user should know about the cuts.
    """

    train: T
    val: T | None
    holdout: T | None
    test: T | None
    probe: T
    full_class_counts: list[int]
    fingerprint: str
    notes: list[str]


def slice_fractions(
    protocol: Protocols, val: float | None, holdout: float | None
) -> tuple[float, float]:
    """Settle the shares of validation and hold-out: 0.1 each if honest, none if legacy.

    Raises:
        ValueError: for shares outside [0, 1) or that leave nothing to train on, an unknown
            protocol, or a validation slice under ``legacy``.
    """
    if protocol not in ("honest", "legacy"):
        raise ValueError(f"protocol is 'honest' or 'legacy', got {protocol!r}")
    if protocol == "legacy" and val:
        raise ValueError(
            f"protocol='legacy' validates on the test set, so val={val} would be cut from training "
            "for nothing: leave out val, or use protocol='honest'"
        )
    default = 0.1 if protocol == "honest" else 0.0
    val, holdout = default if val is None else val, default if holdout is None else holdout
    for name, value in (("val", val), ("holdout", holdout)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is a share of the training data in [0, 1), got {value}")
    if val + holdout >= 1:
        raise ValueError(f"val={val} and holdout={holdout} leave nothing to train on")
    return val, holdout


def take_test(data: T, fraction: float) -> tuple[T, T | None]:
    """Divide a data set without splits into (training, test), stratified.

    The cut depends on nothing but the examples: with a run's seed, what one run trains on would be
    tested on by another. The test set is None where no class gives an example to it.
    """
    rest, test = stratified_split(data.targets, fraction, fold_in(0, _TEST))
    return (data.subset(rest), data.subset(test)) if len(test) else (data, None)


def cut_splits(
    sources: Sources[T], protocol: Protocols, val: float, holdout: float, seed: int, probe_size: int
) -> Splits[T]:
    """Cut validation and hold-out from the training data, stratified and disjoint.

    A real validation set is used where there is one, and no slice cut for it. No class gives its
    last training example: one with two examples gives one to validation and none to the hold-out,
    one with a single example gives none to either.
    """
    pool = sources.train
    targets = torch.tensor(pool.targets, dtype=torch.int64)
    train = torch.arange(len(pool))
    parts: dict[str, T | None] = {"val": sources.val, "holdout": None}
    notes = list(sources.notes)
    if protocol == "legacy":
        parts["val"], val = sources.test if sources.test is not None else sources.val, 0.0
    elif sources.val is not None:
        val = 0.0
    for name, share, key in (("val", val, _VAL), ("holdout", holdout / (1 - val), _HOLDOUT)):
        if share > 0:
            rest, taken = stratified_split(targets[train], share, fold_in(seed, key))
            parts[name] = pool.subset(train[taken])
            notes += _note_of_missing(name, targets[train[taken]], pool.classes)
            train = train[rest]
    trained = pool.subset(train)
    return Splits(
        train=trained,
        val=parts["val"],
        holdout=parts["holdout"],
        test=sources.test,
        probe=_draw_probe(trained, probe_size, seed),
        full_class_counts=class_counts(pool.targets, len(pool.classes)),
        fingerprint=_fingerprint(targets, train),
        notes=notes,
    )


def class_counts(targets: Sequence[int], num_classes: int) -> list[int]:
    """Examples per class, zeros included."""
    counts: list[int] = np.bincount(np.asarray(targets, np.int64), minlength=num_classes).tolist()
    return counts


def _note_of_missing(name: str, taken: Tensor, classes: list[str]) -> list[str]:
    absent = [classes[c] for c, n in enumerate(class_counts(taken.tolist(), len(classes))) if not n]
    if not absent:
        return []
    shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
    return [f"{len(absent)} classes are too small to give an example to {name}: {shown}"]


def _draw_probe(train: T, size: int, seed: int) -> T:
    generator = torch.Generator().manual_seed(fold_in(seed, _PROBE))
    return train.subset(torch.randperm(len(train), generator=generator)[:size])


def _fingerprint(targets: Tensor, train: Tensor) -> str:
    digest = hashlib.sha256(targets.numpy().astype("<i8").tobytes())
    digest.update(train.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def warn_of_protocol(protocol: Protocols) -> None:
    """Say what ``legacy`` does to a test score."""
    if protocol == "legacy":
        rank_zero_warn(
            "protocol='legacy': validation is the test set, so whatever is selected on it "
            "(best epoch, early stopping, tuning) reports too high a test score. Compare such "
            "numbers with legacy numbers only."
        )


def warn_of_other_examples(saved: Mapping[str, Any], fingerprint: str, seed: int) -> None:
    """Warn where a checkpoint's ``train`` fingerprint and ``seed`` are of other examples."""
    if saved["train"] not in (None, fingerprint):
        rank_zero_warn(
            "The checkpoint was trained on other examples than this DataModule trains on (its "
            f"seed was {saved['seed']}, now {seed}): some may have moved into "
            "validation or hold-out, whose numbers are then too high. Give the same seed, "
            "fractions and imbalance."
        )
