"""What a run is: its configuration and identity, as its folder keeps them."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

from firstlight.functional.loaders import offered
from firstlight.runfolder import fingerprint


def describe_run(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """The run's configuration, as far as hyper-parameters tell it, as plain values."""
    datamodule = trainer.datamodule
    settings = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")
    return {
        "model": {"class_path": _path(pl_module), "init_args": _hparams(pl_module)},
        "data": None
        if datamodule is None
        else {"class_path": _path(datamodule), "init_args": _hparams(datamodule)},
        "trainer": {key: _plain(getattr(trainer, key, None)) for key in settings}
        | {"precision": str(trainer.precision), "world_size": trainer.world_size},
    }


def identify_run(trainer: Any, pl_module: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says of a run beside its status: who, on which data, by which recipe."""
    names = offered(trainer.datamodule, "class_names")
    recipe = {
        part: {
            k: v
            for k, v in ((values or {}).get("init_args") or values or {}).items()
            if k != "seed"
        }
        for part, values in config.items()
    }
    images = offered(trainer.datamodule, "preprocessing")
    return {
        "run_id": uuid4().hex[:12],
        "seed": _hparams(pl_module).get("seed", os.environ.get("PL_GLOBAL_SEED")),
        "recipe_hash": fingerprint(recipe),
        "dataset": (config["data"] or {}).get("class_path"),
        "classes_sha256": fingerprint(list(names)) if names is not None else None,
        "resolution": offered(trainer.datamodule, "img_size"),
        "eval_transform": None if images is None else str(images),
        "weights": _weights(trainer),
        "versions": {name: _version(name) for name in ("firstlight", "torch", "lightning", "timm")}
        | {"python": platform.python_version()},
        "commit": _commit(),
    }


def _weights(trainer: Any) -> str:
    """Which weights are evaluated: "ema" where a callback of either package swaps averages in."""
    kinds = {kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__}
    return "ema" if "WeightAveraging" in kinds else "raw"


def _path(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _hparams(thing: Any) -> dict[str, Any]:
    values = {k: _plain(v) for k, v in dict(getattr(thing, "hparams", {})).items()}
    return {k: v for k, v in values.items() if not k.startswith("_")}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # an address is another in every process


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the user's working folder, where git knows one."""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
