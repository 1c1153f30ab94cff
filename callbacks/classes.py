"""What is known about the classes of a run: names, training counts, shot groups, and from where."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import Subset

from firstlight.functional import shot_groups
from firstlight.functional.loaders import named_sets, offered


class Classes(NamedTuple):
    """Names and training counts of C classes.

    Attributes:
        names: one a class.
        train_counts: examples trained on, or None where unknown.
        full_counts: examples before a hold-out was cut, which make the shot groups; None likewise.
        shots: group of each class, None where there is none.
        sources: sentences on where all this came from.
    """

    names: tuple[str, ...]
    train_counts: tuple[int, ...] | None
    full_counts: tuple[int, ...] | None
    shots: tuple[str | None, ...]
    sources: tuple[str, ...]


def dataset_of(loader: Any) -> Any:
    """The data set beneath a loader and any number of ``Subset``, or None."""
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def targets_of(loader: Any) -> list[int] | None:
    """The class of every example of a loader, by torchvision's ``targets``, through ``Subset``."""
    dataset, chain = getattr(loader, "dataset", None), []
    while isinstance(dataset, Subset):
        chain.append(dataset.indices)
        dataset = dataset.dataset
    targets = getattr(dataset, "targets", None)
    if targets is None:
        return None
    for indices in reversed(chain):
        targets = [targets[i] for i in indices]
    return [int(target) for target in targets]


def check_lengths(
    num_classes: int, names: Sequence[str] | None, counts: Sequence[int] | None
) -> None:
    """Raise ValueError where an argument does not have one entry a class."""
    for label, given in {"class_names": names, "class_counts": counts}.items():
        if given is not None and len(given) != num_classes:
            raise ValueError(
                f"{label} has {len(given)} entries, but the logits have {num_classes} classes"
            )


def find_classes(
    trainer: Any,
    num_classes: int,
    names: Sequence[str] | None,
    counts: Sequence[int] | None,
    thresholds: tuple[int, int],
) -> Classes:
    """Look for names and counts: the arguments, the data module, torchvision's data sets.

    Raises:
        ValueError: where an argument does not have one entry a class.
    """
    check_lengths(num_classes, names, counts)
    datamodule = trainer.datamodule
    train = [loader for _, loader in named_sets("train", trainer.train_dataloader)]
    sources: list[str] = []

    def seek(label: str, *places: tuple[str, Any]) -> tuple[Any, ...] | None:
        for source, found in places:
            if found is not None and len(found) == num_classes:
                sources.append(f"{label} from {source}")
                return tuple(found)
            if found is not None:
                sources.append(f"{source} has {len(found)} {label}, not {num_classes}: left aside")
        sources.append(f"{label} unknown")
        return None

    evaluated = [
        dataset_of(loader)
        for loaders in (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders)
        for _, loader in named_sets("", loaders)
    ]
    found = next((c for d in evaluated if (c := getattr(d, "classes", None)) is not None), None)
    names = seek(
        "class names",
        ("the argument class_names", names),
        ("the data module", offered(datamodule, "class_names")),
        ("the data set's classes", found),
    )
    targets = targets_of(train[0]) if train else None
    tally = Counter(targets or [])
    own = None if targets is None else [tally[c] for c in range(num_classes)]
    trained = offered(datamodule, "class_counts")
    full = offered(datamodule, "full_class_counts")
    full_counts = seek(
        "training counts",
        ("the argument class_counts", counts),
        ("the data module", full if full is not None else trained),
        ("the training set's targets", own),
    )
    groups = shot_groups(full_counts, thresholds) if full_counts is not None else None
    if groups is not None:
        sources.append(groups.rule)
    return Classes(
        names=names or tuple(map(str, range(num_classes))),
        train_counts=full_counts if counts is not None or trained is None else tuple(trained),
        full_counts=full_counts,
        shots=groups.groups if groups is not None else (None,) * num_classes,
        sources=tuple(sources),
    )
