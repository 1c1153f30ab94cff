"""The module and the data of a run, made again from its checkpoint and configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from lightning.pytorch import LightningModule

from firstlight import datamodules
from firstlight.checkpoints import (
    CheckpointError,
    Weights,
    choose_weights,
    imported,
    read_checkpoint,
    trusting,
)
from firstlight.functional.loaders import offered
from firstlight.lightning_modules import ImageClassifier
from firstlight.lightning_modules.image_classifier import CHECKPOINT_KEY


@dataclass(frozen=True)
class Restored:
    """A module as it was at a checkpoint.

    Attributes:
        module: on the CPU, in train mode, without a trainer.
        content: the checkpoint.
        weights: "ema" or "raw", whichever it has.
    """

    module: LightningModule
    content: Mapping[str, Any]
    weights: str


def restore_module(
    path: Path,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights: Weights = "auto",
    trust: Sequence[str] = (),
) -> Restored:
    """Rebuild the LightningModule of a checkpoint from its saved hyper-parameters.

    Args:
        path: the checkpoint.
        model: import path of the class; None for firstlight's own.
        model_args: arguments of its constructor that the checkpoint does not hold, or others.
        weights: as for `choose_weights`.
        trust: as for `read_checkpoint`.

    Raises:
        CheckpointError: where the class is not known, cannot be made from the hyper-parameters, or
            does not fit the weights.
    """
    content = read_checkpoint(path, trust)
    state, kind = choose_weights(content, weights, path)
    if model is None and CHECKPOINT_KEY not in content:
        raise CheckpointError(
            f"{path} is not of firstlight's ImageClassifier: say by --model which LightningModule "
            "it is of, such as --model my_package.MyModule"
        )
    found = ImageClassifier if model is None else imported(model)
    if not hasattr(found, "load_from_checkpoint"):
        raise CheckpointError(f"--model {model}: {found!r} is not a LightningModule class")
    with trusting(trust):
        try:
            module = found.load_from_checkpoint(
                path, map_location="cpu", weights_only=True, **(model_args or {})
            )
            module.load_state_dict(state)
        except Exception as error:  # a constructor of the user's raises anything
            raise CheckpointError(_why_not_rebuilt(path, found, content, error)) from error
    return Restored(module, content, kind)


def _why_not_rebuilt(path: Path, kind: Any, content: Mapping[str, Any], error: Exception) -> str:
    said = " ".join(str(error).split())
    start = f"{path} cannot be loaded into {kind.__name__}: {said[:400]}"
    needed = [
        name
        for name, one in signature(kind).parameters.items()
        if one.default is Parameter.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    missing = [name for name in needed if name not in content.get("hyper_parameters", {})]
    if isinstance(error, TypeError) and missing:
        return (
            f"{start}. The checkpoint does not hold the argument {missing[0]!r}: call "
            "self.save_hyperparameters() in the constructor before training, or give it now: "
            f"--model_args '{{{missing[0]}: VALUE}}'"
        )
    return start


def find_config(checkpoint: Path, content: Mapping[str, Any]) -> Path | None:
    """Return the configuration of the run that wrote a checkpoint, or None.

    It is that of the run folder which the run's monitors name in the checkpoint; else
    ``config.yaml`` beside the checkpoint or its folder ``checkpoints``, as LightningCLI leaves it;
    else that of a run folder there.

    Raises:
        CheckpointError: where run folders there tell of different data.
    """
    states = content.get("callbacks", {}).values()
    named = [state.get("run_dir") for state in states if isinstance(state, Mapping)]
    files = [Path(folder, "config.yaml") for folder in named if isinstance(folder, str)]
    beside = [checkpoint.parent]
    if checkpoint.parent.name == "checkpoints":
        beside.append(checkpoint.parent.parent)
    files += [folder / "config.yaml" for folder in beside]
    for file in files:
        if _data_section(file) is not None:
            return file
    runs = [run.with_name("config.yaml") for one in beside for run in one.glob("*/run.json")]
    found = [file for file in sorted(runs) if _data_section(file) is not None]
    if any(_data_section(file) != _data_section(found[0]) for file in found):
        raise CheckpointError(
            f"{found[0]} and other run folders beside {checkpoint} tell of different data: say by "
            "--data which config.yaml is this run's"
        )
    return found[0] if found else None


def _data_section(file: Path) -> Mapping[str, Any] | None:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError):
        return None
    data = content.get("data") if isinstance(content, Mapping) else None
    return data if isinstance(data, Mapping) and "class_path" in data else None


def restore_data(
    data: str | None, data_args: Mapping[str, Any] | None, checkpoint: Path, content: Any
) -> tuple[Any, str]:
    """Rebuild what a run was trained on, ready for ``fit``.

    The class and its arguments are those of ``data``, by default those of the run's configuration,
    or firstlight's own class that the checkpoint names. What the checkpoint keeps of its
    DataModule's arguments goes before the configuration, and ``data_args`` before both.

    Args:
        data: import path of a LightningDataModule, or of a function that returns one, a loader or
            a data set; a bare name of ``firstlight.datamodules``; a YAML file with ``data:``.
        data_args: arguments for it.
        checkpoint: its path.
        content: its contents.

    Returns:
        The DataModule, loader or data set, and where that was said.

    Raises:
        CheckpointError: where nothing says what the data were.
        FileNotFoundError: where the YAML file does not exist.
    """
    file = find_config(checkpoint, content) if data is None else None
    if data is not None and data.endswith((".yaml", ".yml")):
        file = Path(data)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file} (--data)")
    section = None if file is None else _data_section(file)
    if file is not None and section is None:
        raise CheckpointError(f"{file} says nothing of the data: it has no data: class_path:")
    own = next((one for one in datamodules.__all__ if one in content), None)
    name = (data or own) if section is None else section["class_path"]
    if name is None:
        raise CheckpointError(
            f"nothing says what {checkpoint} was trained on: there is no config.yaml with a data: "
            "section beside it. Pass --data, a LightningDataModule such as "
            "--data my_package.MyData (with --data_args '{root: DIR}'), or a run's config.yaml"
        )
    make = getattr(datamodules, name) if name in datamodules.__all__ else imported(name)
    arguments = dict((section or {}).get("init_args") or {})
    if getattr(make, "__qualname__", None) in content:  # Lightning keeps its state by that name
        saved = content.get("datamodule_hyper_parameters", {})
        arguments |= {key: value for key, value in saved.items() if not key.startswith("_")}
    made = _made(make, arguments | dict(data_args or {}), name)
    if hasattr(made, "train_dataloader"):
        made.prepare_data()
        made.setup("fit")
        if type(made).__qualname__ in content:
            made.load_state_dict(content[type(made).__qualname__])
    return made, str(file or ("--data" if data else checkpoint))


def _made(make: Any, arguments: Mapping[str, Any], name: str) -> Any:
    try:
        return make(**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"{name} cannot be made with {dict(arguments)}: {error}. Give its arguments by "
            "--data_args '{name: value}'"
        ) from error


def check_classes(module: Any, data: Any) -> None:
    """Refuse data of another number of classes than the module's, where both are known.

    Raises:
        CheckpointError: naming both numbers.
    """
    ours = dict(getattr(module, "hparams", {})).get("num_classes")
    theirs = offered(data, "num_classes")
    if None not in (ours, theirs) and ours != theirs:
        raise CheckpointError(
            f"the checkpoint's model has {ours} classes, {type(data).__name__} has {theirs}: pass "
            "the data that it was trained on (--data)"
        )


class Offline:
    """As much of a trainer as the gathering of a probe set asks for: no run goes on.

    Args:
        module: the LightningModule, on the CPU.
        data: a LightningDataModule, or anything else for none.
    """

    def __init__(self, module: Any, data: Any) -> None:
        self.datamodule = data if hasattr(data, "train_dataloader") else None
        own = getattr(self.datamodule, "probe_dataloader", None)
        self.train_dataloader = None
        if self.datamodule is not None and not callable(own):
            self.train_dataloader = self.datamodule.train_dataloader()
        self.strategy = SimpleNamespace(batch_to_device=self._moved)
        self._module = module

    def _moved(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        """Pass a batch through the hooks by which a trainer moves it, the DataModule's first."""
        device = device or self._module.device
        hooks: dict[str, tuple[Any, ...]] = {
            "on_before_batch_transfer": (dataloader_idx,),
            "transfer_batch_to_device": (device, dataloader_idx),
            "on_after_batch_transfer": (dataloader_idx,),
        }
        for name, arguments in hooks.items():
            owner = self.datamodule if self._overrides(name) else self._module
            batch = getattr(owner, name)(batch, *arguments)
        return batch

    def _overrides(self, hook: str) -> bool:
        kinds = type(self.datamodule).__mro__
        owner = next((kind for kind in kinds if hook in vars(kind)), None)
        return owner is not None and owner.__name__ != "DataHooks"


class OfflineRun(Offline):
    """`Offline` with the training and validation loaders of the data."""

    def __init__(self, module: Any, data: Any) -> None:
        super().__init__(module, data)
        self.val_dataloaders = self.test_dataloaders = None
        if self.datamodule is not None:
            self.train_dataloader = self.datamodule.train_dataloader()
        if self.datamodule is not None and self._overrides("val_dataloader"):
            self.val_dataloaders = self.datamodule.val_dataloader()
