"""How images become the tensors that a backbone expects, and who decided it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from firstlight.functional.model_names import unknown_model

_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The evaluation preprocessing of a data set.

    Attributes:
        img_size: height and width of what the network sees.
        crop_pct: share of the resized image that the centre crop keeps, in (0, 1].
        interpolation: ``bilinear`` or ``bicubic``.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.
        crop_mode: ``center`` keeps the aspect ratio, ``squash`` does not (timm's third mode,
            ``border``, which three of its models use, is prepared as ``center``).
    """

    img_size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Refuse values that no image could be prepared with."""
        if self.img_size < 1:
            raise ValueError(f"img_size is a number of pixels, got {self.img_size}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct lies in (0, 1], got {self.crop_pct}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation is one of {_INTERPOLATIONS}: {self.interpolation!r}")
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}: one positive std per channel")

    @property
    def resized(self) -> int:
        """Shorter side before the centre crop."""
        return int(self.img_size / self.crop_pct)


IMAGENET_PREPROCESSING = Preprocessing(
    224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
"""What timm takes where a model says nothing."""


def resolve_preprocessing(
    explicit: dict[str, Any], model_name: str | None, native: Preprocessing
) -> tuple[Preprocessing, dict[str, str]]:
    """Settle each value: the explicit argument, else the backbone's, else the data set's own.

    Args:
        explicit: values of `Preprocessing` fields; None means not given.
        model_name: a name of timm's registry, with or without a pretrained tag; None for none.
        native: the data set's own values. Its number of channels is the data's.

    Returns:
        The preprocessing, and for each field where its value comes from.

    Raises:
        ValueError: for a name that timm does not know, or values that do not fit the data.
    """
    channels = len(native.mean)
    values = dataclasses.asdict(native)
    sources = dict.fromkeys(values, "data set")
    given = {k: v for k, v in explicit.items() if v is not None}
    if model_name is not None and not given.keys() >= explicit.keys():
        backbone = _backbone_values(model_name, channels, need_size="img_size" not in given)
        values |= backbone
        sources |= dict.fromkeys(backbone, model_name)
    for name in ("mean", "std"):
        if name in given:
            given[name] = tuple(float(v) for v in given[name])
            if len(given[name]) != channels:
                raise ValueError(f"{name} has {len(given[name])} values for {channels} channels")
    values |= given
    sources |= dict.fromkeys(given, "argument")
    return Preprocessing(**values), sources


def _backbone_values(model_name: str, channels: int, need_size: bool) -> dict[str, Any]:
    config = _pretrained_config(model_name)
    _, height, width = config["input_size"]
    values: dict[str, Any] = {
        "crop_pct": float(config["crop_pct"]),
        "crop_mode": "squash" if config["crop_mode"] == "squash" else "center",
        "interpolation": config["interpolation"],
    }
    if height == width:
        values["img_size"] = int(height)
    elif need_size:
        raise ValueError(
            f"{model_name} expects {height} x {width} pixels; firstlight prepares square images: "
            "pass img_size"
        )
    # timm sums the stem's weights for one channel, so the mean over channels is what fits it
    for name in ("mean", "std"):
        full = tuple(float(v) for v in config[name])
        values[name] = full if len(full) == channels else (sum(full) / len(full),) * channels
    return values


def _pretrained_config(model_name: str) -> dict[str, Any]:
    import timm
    from timm.data import resolve_data_config

    try:
        config = timm.get_pretrained_cfg(model_name)
    except RuntimeError as error:  # a known architecture with an unknown tag
        tags = timm.list_pretrained(f"{model_name.split('.')[0]}.*")
        raise ValueError(f"{error} Choose one of {tags}.") from error
    if config is None:
        raise ValueError(
            f"{unknown_model(model_name)}. (resnet20_cifar, resnet32_cifar and resnet18_cifar are "
            "registered by importing firstlight.lightning_modules. For a name outside the "
            "registry, leave out model_name and pass img_size, crop_pct, interpolation, mean and "
            "std.)"
        )
    resolved: dict[str, Any] = resolve_data_config({}, pretrained_cfg=config.to_dict())
    return resolved


def evaluation_transform(how: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """Return the transform of one PIL image for evaluation: resize, centre crop, normalise.

    Equal to that of ``timm.data.create_transform`` for the same values.
    """
    interpolation = InterpolationMode(how.interpolation)
    size = how.resized if how.crop_mode == "center" else (how.resized, how.resized)
    transform: Callable[[Image.Image], Tensor] = v2.Compose(
        [
            v2.Resize(size, interpolation=interpolation),
            v2.CenterCrop(how.img_size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(how.mean), list(how.std)),
        ]
    )
    return transform
