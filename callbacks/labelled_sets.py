"""The labelled examples that a callback fits to: held out, of validation, or of training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, IterableDataset, default_collate

from firstlight.callbacks.classes import targets_of
from firstlight.callbacks.evaluation import sampler_of
from firstlight.callbacks.probe_set import fingerprint_of
from firstlight.callbacks.records import gather
from firstlight.functional.loaders import named_sets, offered
from firstlight.functional.ranks import Ranks
from firstlight.functional.sharding import example_positions

Source = Literal["holdout", "val", "train"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class LabelledSet:
    """A loader, and what to know of it.

    Attributes:
        source: which of the three.
        loader: gives batches, of this rank's share or of all.
        name: a phrase.
        notes: sentences that the user should read.
    """

    source: Source
    loader: Any
    name: str
    notes: tuple[str, ...] = ()


def check_source(data: object) -> None:
    """Raise ValueError on another word than ``holdout``, ``val`` and ``train``."""
    if data not in SOURCES:
        raise ValueError(f"data must be one of {', '.join(SOURCES)}, not {data!r}")


def find_set(trainer: Any, data: Source, who: str, option: str = "data") -> LabelledSet:
    """Find the examples; call it in ``setup`` for ``holdout``, later for the others.

    Raises:
        ValueError: where there are none, naming the choices.
    """
    if data == "holdout":
        return _holdout(trainer, who, option)
    if data == "val":
        return _validation(trainer, who, option)
    return _training(trainer, who, option)


def _holdout(trainer: Any, who: str, option: str) -> LabelledSet:
    make = getattr(trainer.datamodule, "holdout_dataloader", None)
    choices = (
        "give the DataModule a holdout_dataloader() of labelled examples that are neither trained "
        f"nor selected on (firstlight's: holdout=0.1), or choose {option}='val' (validation "
        f"metrics are then no longer independent) or {option}='train' (features that the backbone "
        "fitted)"
    )
    if not callable(make):
        where = "there is no DataModule"
        if trainer.datamodule is not None:
            where = f"{type(trainer.datamodule).__name__} has no holdout_dataloader()"
        raise ValueError(f"{who} takes {option}='holdout', but {where}: {choices}")
    try:
        loader = make()
    except (ValueError, RuntimeError) as error:  # of a DataModule that was not set up for it
        raise ValueError(f"{who} takes {option}='holdout', but {error}. Or {choices}") from error
    if loader is None:
        raise ValueError(
            f"{who} takes {option}='holdout', but holdout_dataloader() gave none: {choices}"
        )
    return LabelledSet("holdout", loader, f"{type(trainer.datamodule).__name__}'s hold-out")


def validation_sets(trainer: Any) -> list[tuple[str, Any]]:
    """A trainer's validation loaders, with their names."""
    fitting = trainer.state.fn == "fit"
    if trainer.val_dataloaders is None and fitting and trainer.enable_validation:
        # A fit that finds itself finished, of the last checkpoint, has not asked for them.
        stage, trainer.validating = trainer.state.stage, True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.state.stage = stage
    return named_sets("val", trainer.val_dataloaders)


def _validation(trainer: Any, who: str, option: str) -> LabelledSet:
    loaders = validation_sets(trainer)
    if not loaders:
        raise ValueError(f"{who} takes {option}='val', but there is no validation data: give some")
    note = "fitted to validation data: its metrics are no longer independent, report on others."
    return LabelledSet("val", loaders[0][1], "the validation data", (note,))


def _training(trainer: Any, who: str, option: str) -> LabelledSet:
    note = (
        "features of training data are fitted too well, those of rare classes most of all: a "
        "hold-out is better."
    )
    plain = getattr(trainer.datamodule, "plain_train_dataloader", None)
    if callable(plain):
        return LabelledSet("train", plain(), "the training data, not augmented", (note,))
    loaders = named_sets("train", trainer.train_dataloader)
    dataset = getattr(loaders[0][1], "dataset", None) if loaders else None
    if dataset is None or isinstance(dataset, IterableDataset):
        raise ValueError(
            f"{who} takes {option}='train', but the training data are no data set that can be read "
            "a second time: give the DataModule a plain_train_dataloader(), or a hold-out"
        )
    given = loaders[0][1]
    loader: Any = DataLoader(
        dataset,
        batch_size=getattr(given, "batch_size", None) or 128,
        collate_fn=getattr(given, "collate_fn", None) or default_collate,
        num_workers=getattr(given, "num_workers", 0),
    )
    augmented = (
        "training data are taken as the data set gives them: if they are augmented, so are the "
        "features. A DataModule's plain_train_dataloader() gives them as they are."
    )
    return LabelledSet("train", loader, "the training data", (note, augmented))


def nearest_loader(trainer: Any) -> Any:
    """A loader of examples as the module takes them, the first at hand; None: there is none."""
    for loaders in (trainer.val_dataloaders, trainer.test_dataloaders, trainer.train_dataloader):
        if found := named_sets("", loaders):
            return found[0][1]
    return None


def number_of_batches(loader: Any) -> int | None:
    """Length of a loader, where it has one."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # of an iterable data set
        return None


def own_batches(
    loader: Any, move: Callable[[Any], Any], ranks: Ranks
) -> Iterator[tuple[Any, Callable[[int], Tensor]]]:
    """Yield this rank's batches, and for each what gives its examples' positions among all ranks'.

    It is called with their number; an example that a sampler repeats has the position -1.

    A loader that gives every rank the same batches is dealt out, every rank its own.

    Args:
        loader: of labelled examples.
        move: brings a batch to the device.
        ranks: the processes. Collective, at the beginning only.
    """
    sampler, seen = sampler_of(loader), 0
    error, batch, number = None, None, 0
    try:
        iterator = iter(loader)
        batch = next(iterator, None)
    except Exception as caught:  # other ranks are asked below all the same
        error = caught
    dealt = ranks.world > 1 and _is_same(batch)
    if error is not None:
        raise error
    while batch is not None:
        if not dealt or number % ranks.world == ranks.rank:
            yield move(batch), partial(example_positions, sampler, seen)
        number, seen = number + 1, seen + _rows(batch)
        batch = next(iterator, None)


def _is_same(batch: Any) -> bool:
    """Whether all ranks hold the same first batch. Collective."""
    here = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, batch)
    own = None if batch is None else fingerprint_of(here, torch.empty(0))
    prints = gather(own)
    return own is not None and len(set(prints)) == 1


def _rows(batch: Any) -> int:
    return next((len(x) for x in tree_flatten(batch)[0] if isinstance(x, Tensor) and x.ndim), 0)


def training_counts(trainer: Any, num_classes: int) -> Tensor | None:
    """Training examples of each class (K,), of the DataModule or the data set; None: unknown."""
    found = offered(trainer.datamodule, "class_counts")
    if found is None:
        loaders = named_sets("train", trainer.train_dataloader)
        targets = targets_of(loaders[0][1]) if loaders else None
        if targets is None:
            return None
        found = torch.bincount(torch.tensor(targets), minlength=num_classes).tolist()
    counts = torch.tensor([float(count) for count in found], dtype=torch.float64)
    return counts if len(counts) == num_classes and bool((counts > 0).all()) else None
