"""What a DataModule knows that a model needs."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl

from firstlight.functional.loaders import offered


@runtime_checkable
class Buildable(Protocol):
    """A module that can make its model once the number of classes is known."""

    is_built: bool

    def build(self, num_classes: int) -> None:
        """Make the model."""


class BuildModel(pl.Callback):
    """Builds the model from the DataModule's number of classes.

    It has to be the first callback: the DataModule is set up before all callbacks, and what other
    callbacks do in ``setup`` (copying the weights, choosing blocks) needs a model.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Build the model unless that is done.

        Raises:
            ValueError: when nothing says how many classes there are.
        """
        if not isinstance(pl_module, Buildable) or pl_module.is_built:
            return
        classes = offered(getattr(trainer, "datamodule", None), "num_classes")
        if classes is None:
            raise ValueError(
                "num_classes is not given and no DataModule offers it: pass num_classes to "
                f"{type(pl_module).__name__}, or a DataModule with num_classes to the trainer"
            )
        pl_module.build(int(classes))


def preprocessing_of(datamodule: object) -> dict[str, Any]:
    """How a DataModule prepares images, as plain values: all it tells, or mean and std alone."""
    told = offered(datamodule, "preprocessing")
    if dataclasses.is_dataclass(told) and not isinstance(told, type):
        values = dataclasses.asdict(told)
    else:
        values = {name: offered(datamodule, name) for name in ("mean", "std")}
    plain = {k: list(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
    return {name: value for name, value in plain.items() if value is not None}
