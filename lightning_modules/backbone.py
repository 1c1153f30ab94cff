"""timm models by name, with weights from timm or from a local file, and a head that fits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from firstlight.functional.model_names import unknown_model
from firstlight.lightning_modules import cifar_resnet as _registers_cifar_networks  # noqa: F401

USUAL_HEADS = ("fc", "head.fc", "head", "classifier", "linear")


def create_backbone(
    model_name: str,
    num_classes: int,
    pretrained: bool = False,
    checkpoint_path: str | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a timm classifier and say where its weights come from.

    The head is taken from the file or from timm's weights when it has ``num_classes`` outputs, and
    is new otherwise; everything else must fit exactly.

    Args:
        model_name: a timm name, with or without a tag (``resnet50.a1_in1k``).
        num_classes: outputs of the head, at least 2.
        pretrained: load timm's published weights (downloaded by timm).
        checkpoint_path: a local weight file (safetensors, a state dict saved by torch, or a
            Lightning checkpoint of ``ImageClassifier``) used instead of timm's.
        kwargs: further arguments of ``timm.create_model``.

    Returns:
        The model, and its provenance in plain values: ``source`` ("random", "timm" or "file"),
        ``location``, and ``head`` ("new" or "loaded").

    Raises:
        ValueError: for an unknown name (near names are listed), or a file whose weights do not fit.
        FileNotFoundError: when the file does not exist.
        RuntimeError: when timm's weights do not exist or cannot be had.
    """
    check_model_name(model_name)
    if checkpoint_path is not None:
        return _from_file(model_name, num_classes, Path(checkpoint_path), kwargs)
    if not pretrained:
        model = timm.create_model(model_name, num_classes=num_classes, **kwargs)
        return model, {"source": "random", "location": None, "head": "new"}
    try:
        model = timm.create_model(model_name, pretrained=True, num_classes=num_classes, **kwargs)
    except Exception as error:  # no weights, no network, no such repository
        raise RuntimeError(
            f"the published weights of {model_name} cannot be loaded ({error}); give a local file "
            "by checkpoint_path, or pretrained=False to start from random weights"
        ) from error
    cfg = model.pretrained_cfg
    location = cfg.get("hf_hub_id") or cfg.get("url") or cfg.get("file")
    head = "loaded" if cfg.get("num_classes") == num_classes else "new"
    return model, {"source": "timm", "location": location, "head": head}


def check_model_name(model_name: str) -> None:
    """Raise ValueError with near names unless timm knows the model."""
    name = model_name.partition(".")[0]
    if ":" in model_name or timm.is_model(name):  # "hf-hub:..." and "local-dir:..." are timm's
        return
    raise ValueError(unknown_model(model_name))


def _from_file(
    model_name: str, num_classes: int, path: Path, kwargs: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Fill a new model from a copy that took the whole file, head included, without exception.

    timm itself stops comparing names as soon as the head is new, so that weights of another
    architecture would pass as loaded.
    """
    weights = read_weights(path)
    model = timm.create_model(model_name, num_classes=num_classes, **kwargs)
    classes = _classes_in(weights, model.pretrained_cfg)
    overlay = {"state_dict": weights, "num_classes": classes, "label_offset": 0, "file": None}
    try:
        donor = timm.create_model(
            model_name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=classes,
            **kwargs,
        )
    except Exception as error:
        raise ValueError(
            f"{path} does not hold weights of {model_name}: {str(error)[:1000]}\n"
            "Give the model_name that the file was saved from (and its in_chans and model_kwargs)."
        ) from error
    if classes == num_classes:
        model.load_state_dict(donor.state_dict())
        return model, {"source": "file", "location": str(path), "head": "loaded"}
    ours = model.state_dict()
    fitting = {k: v for k, v in donor.state_dict().items() if ours[k].shape == v.shape}
    model.load_state_dict(ours | fitting)
    return model, {"source": "file", "location": str(path), "head": "new"}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a torch file without running its code.

    Takes the averaged weights of a training script's checkpoint where there are any, and the
    network's of a checkpoint of ``ImageClassifier``; prefixes of wrappers are removed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read as weights; a pickle that needs more than tensors and
            plain values is refused by the name of the type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    except Exception as error:  # torch.load raises many kinds
        raise ValueError(
            f"{path} cannot be read as weights: {error}\nA damaged download, or a pickle that "
            "holds more than tensors: save its state dict as safetensors first."
        ) from error
    lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(map(torch.is_tensor, content.values())):
        raise ValueError(f"{path} holds no state dict (names and tensors)")
    if lightning:
        content = {k[6:]: v for k, v in content.items() if k.startswith("model.")}
    return {
        name.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("_orig_mod."): weight
        for name, weight in content.items()
        if torch.is_tensor(weight)
    }


def _classes_in(weights: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> int:
    """Outputs of the head in the file; timm's number where no head is recognised."""
    named = cfg.get("classifier") or ()
    for name in (*((named,) if isinstance(named, str) else named), *USUAL_HEADS):
        weight = weights.get(f"{name}.weight")
        if weight is not None:
            return len(weight)
    return int(cfg["num_classes"])
