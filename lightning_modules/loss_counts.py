"""What a run tells its loss: how many examples each class has, and how far training is."""

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from firstlight.functional.loaders import offered
from firstlight.lightning_modules.specs import Spec, from_spec


def give_counts(loss: nn.Module, spec: Spec, datamodule: object, num_classes: int) -> Spec:
    """Give a loss the DataModule's ``class_counts``, where it takes counts and has none.

    Such a loss has a method ``set_class_counts``, an attribute and a constructor's argument
    ``class_counts``; one that has counts keeps them, with a warning where the DataModule's differ.

    Args:
        loss: any loss.
        spec: what rebuilds it, see `specs.to_spec`.
        datamodule: the run's, or None.
        num_classes: how many counts there have to be.

    Returns:
        What rebuilds the loss, counts included.

    Raises:
        ValueError: where there are no counts to be had, or as many as there are classes; from the
            loss itself for a class without examples.
    """
    give: Callable[[list[int]], None] | None = getattr(loss, "set_class_counts", None)
    if give is None:
        return spec
    kind = type(loss).__name__
    sampling = offered(datamodule, "sampling") or "instance"
    if sampling != "instance":
        rank_zero_warn(
            f"{kind} corrects for the class counts, and sampling={sampling!r} has done so already: "
            "rare classes are favoured twice. Unless that is meant, take one of the two"
        )
    own, found = getattr(loss, "class_counts", None), offered(datamodule, "class_counts")
    counts = None if found is None else [int(count) for count in found]
    if own is not None:
        if counts is not None and counts != list(own):
            rank_zero_warn(
                f"loss: {kind} keeps the class counts it was given ({_few(own)}), but "
                f"{type(datamodule).__name__} trains on others ({_few(counts)}): leave "
                "class_counts out to follow the data"
            )
        return spec
    if counts is None:
        where = "there is no DataModule"
        if datamodule is not None:
            where = f"{type(datamodule).__name__} offers none"
        raise ValueError(
            f"loss: {kind} needs the training examples of each class, and {where}: pass "
            f"{kind}(class_counts=[...]) (in YAML, init_args: {{class_counts: [...]}}), or a "
            "DataModule with class_counts"
        )
    if len(counts) != num_classes:
        raise ValueError(
            f"loss: {type(datamodule).__name__} offers class_counts of {len(counts)} classes, the "
            f"model has {num_classes}"
        )
    give(counts)
    rank_zero_info(f"{kind}: class counts of {type(datamodule).__name__} ({_few(counts)})")
    given = {**spec, "init_args": {**spec.get("init_args", {}), "class_counts": counts}}
    from_spec(given, what="loss", expected=nn.Module)  # refuses a loss that does not take them
    return given


def _few(counts: Any) -> str:
    return ", ".join(str(count) for count in counts[:4]) + (", ..." if len(counts) > 4 else "")


def epochs_of_run(trainer: Any) -> float | None:
    """How many epochs a run will have, from ``max_epochs`` or ``max_steps``; None: no telling."""
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(float(trainer.max_epochs))
    if trainer.max_steps >= 0 and trainer.num_training_batches != math.inf:
        updates = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        ends.append(trainer.max_steps / max(1, updates))
    return min(ends, default=None)


def tell_progress(loss: nn.Module, trainer: Any) -> None:
    """Tell a loss with ``set_progress`` which share of the epochs is done.

    It follows from the epoch alone, so that a resumed run tells the same.

    Raises:
        ValueError: where the run has no end and the loss has weights for a share of it only
            (``deferred``, ``until``).
    """
    tell: Callable[[float], None] | None = getattr(loss, "set_progress", None)
    if tell is None:
        return
    epochs = epochs_of_run(trainer)
    if epochs is not None:
        tell(min(1.0, trainer.current_epoch / epochs) if epochs else 1.0)
    elif 0 < getattr(loss, "deferred", 0) < 1 or getattr(loss, "until", 1) < 1:
        raise ValueError(
            f"loss: {type(loss).__name__} has weights from deferred={loss.deferred} of training "
            f"until {getattr(loss, 'until', 1)}, but this run has no end that could be told: give "
            "the trainer max_epochs"
        )
