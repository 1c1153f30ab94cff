"""Weights out of a training checkpoint, in the form that timm loads."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from firstlight.checkpoints import CheckpointError, Weights, choose_weights, read_checkpoint
from firstlight.runfolder import replacing
from firstlight.terminal import console

PREFIX = "model."


def export(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    weights: Weights = "auto",
    overwrite: bool = False,
) -> Path:
    """Write the network of an ``ImageClassifier`` checkpoint as safetensors for timm.

    The file loads by ``timm.create_model(model_name, num_classes=N, checkpoint_path=output)`` (with
    the checkpoint's ``in_chans`` and ``model_kwargs`` where they are not the defaults). Its
    metadata, all text, holds ``model_name``, ``num_classes``, ``in_chans``, ``weights`` ("ema" or
    "raw") and, in JSON where known, ``model_kwargs``, ``class_names``, ``mean`` and ``std``.

    Args:
        checkpoint: a Lightning checkpoint; read with ``weights_only=True``.
        output: where to write; default: beside the checkpoint, with the suffix ``.safetensors``.
        weights: the moving average (``ema``), those being trained (``raw``), or the average where
            there is one (``auto``).
        overwrite: replace an existing file.

    Returns:
        The path written. Nothing is left there unless it is whole.

    Raises:
        FileNotFoundError: when there is no such checkpoint.
        FileExistsError: when the output exists and ``overwrite`` is False.
        ValueError: when the file is not a checkpoint of ``ImageClassifier``, does not fit its own
            model, or holds no moving average though one is asked for.
        OSError: when the disk is full or the folder cannot be written.
    """
    source = Path(checkpoint)
    target = source.with_suffix(".safetensors") if output is None else Path(output)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: give another output, or overwrite=True")
    content = _read(source)
    state, kind = choose_weights(content, weights, source)
    tensors = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    hyper_parameters = content["hyper_parameters"]
    _check_loads(tensors, hyper_parameters, source)
    metadata = _metadata(hyper_parameters, content.get("image_classifier", {}), kind)
    _write(tensors, metadata, target)
    console.print(f"{kind} weights of {hyper_parameters['model_name']}: {target}", soft_wrap=True)
    return target


def _read(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    known = content.get("hyper_parameters", {})
    if "model_name" not in known or "num_classes" not in known or "state_dict" not in content:
        raise CheckpointError(
            f"{path} is not a checkpoint of firstlight's ImageClassifier: it names no model_name "
            "and num_classes"
        )
    return content


def _check_loads(tensors: Mapping[str, Tensor], hyper_parameters: Any, path: Path) -> None:
    import timm

    from firstlight import lightning_modules as _registers_cifar_networks  # noqa: F401

    model = timm.create_model(
        hyper_parameters["model_name"],
        num_classes=hyper_parameters["num_classes"],
        in_chans=hyper_parameters.get("in_chans", 3),
        **(hyper_parameters.get("model_kwargs") or {}),
    )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its own model: {error}") from error


def _metadata(hyper_parameters: Any, extra: Mapping[str, Any], kind: str) -> dict[str, str]:
    metadata = {key: str(hyper_parameters.get(key)) for key in ("model_name", "num_classes")}
    metadata |= {"in_chans": str(hyper_parameters.get("in_chans", 3)), "weights": kind}
    preprocessing = extra.get("preprocessing", {})
    optional = {name: preprocessing.get(name) for name in ("mean", "std")}
    optional["class_names"] = extra.get("class_names")
    optional["model_kwargs"] = hyper_parameters.get("model_kwargs")
    return metadata | {k: json.dumps(v) for k, v in optional.items() if v is not None}


def _write(tensors: Mapping[str, Tensor], metadata: dict[str, str], target: Path) -> None:
    # Copies: safetensors takes neither shared memory nor other memory formats.
    whole = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    with replacing(target) as temporary:
        try:
            save_file(whole, temporary, metadata | {"format": "pt"})
        except SafetensorError as error:  # its own type for a full disk
            raise OSError(errno.EIO, str(error)) from error
