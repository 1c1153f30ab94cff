"""ResNets for 32x32 images, registered in timm's registry when this module is imported.

``resnet20_cifar`` and ``resnet32_cifar`` are the three-stage networks of the ResNet paper's CIFAR
section (1512.03385) with parameter-free shortcuts, as in the long-tail literature (LDAM-DRW,
1906.07413). ``resnet18_cifar`` is timm's ResNet-18 with a 3x3 stem of stride 1 and no pooling.

Weights published under the names of ``akamaster/pytorch_resnet_cifar10`` differ from these
networks in one name, which is mapped while loading:

| published | here |
|---|---|
| ``linear.weight``, ``linear.bias`` | ``fc.weight``, ``fc.bias`` |

Those were trained on images normalised by ImageNet's mean and standard deviation, so load them
under the tag that says so::

    timm.create_model("resnet32_cifar.akamaster_cifar10", pretrained=True,
                      pretrained_cfg_overlay={"file": "resnet32_cifar10.safetensors"})
"""

from collections.abc import Callable, Mapping
from typing import Any

from timm.layers import create_classifier
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    is_model,
    register_model,
)
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CifarResNet", "resnet18_cifar", "resnet20_cifar", "resnet32_cifar"]

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)
WIDTHS = (16, 32, 64)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of 1512.03385).

    Where the shape changes, the shortcut takes every second pixel and pads new channels with
    zeros, half before and half after.

    Args:
        in_channels: channels of the input.
        channels: channels of the output, ``in_channels`` or more.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(y + shortcut)


class CifarResNet(nn.Module):
    """ResNet with three stages of 16, 32 and 64 channels, with the methods of timm's models.

    Args:
        depth: residual blocks per stage: 3 for ResNet-20, 5 for ResNet-32.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the images.
        global_pool: timm's name of a pooling, or "" for none.
        drop_rate: dropout before the classifier, in [0, 1).
    """

    global_pool: nn.Module
    fc: nn.Module

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = WIDTHS[-1]
        self.grad_checkpointing = False
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(depth, WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = self._stage(depth, WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = self._stage(depth, WIDTHS[1], WIDTHS[2], stride=2)
        self.feature_info = [
            {"num_chs": width, "reduction": 2**i, "module": f"layer{i + 1}"}
            for i, width in enumerate(WIDTHS)
        ]
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)

    @staticmethod
    def _stage(depth: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        first = CifarBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(CifarBlock(channels, channels) for _ in range(depth - 1)))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns of parameter names: the stem, then stages or single blocks."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" + ("" if coarse else r"\.(\d+)")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the stages' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer (an identity when there are no classes)."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, and the pooling when one is named."""
        self.num_classes = num_classes
        if global_pool is None:
            global_pool = str(self.global_pool.pool_type)
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool
        )
        _init_weights(self.fc)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to (N, 64, H / 4, W / 4)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        stages = [self.layer1, self.layer2, self.layer3]
        if self.grad_checkpointing and self.training:
            features: Tensor = checkpoint_seq(stages, x, flatten=True)
            return features
        for stage in stages:
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop and classify: (N, num_classes), or (N, 64) with ``pre_logits``."""
        x = self.global_pool(x)
        x = functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class SmallStemResNet(ResNet):  # type: ignore[misc]  # timm publishes no types
    """timm's ResNet with a 3x3 stem of stride 1 and no pooling after it, for small images."""

    conv1: nn.Conv2d

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv1 = nn.Conv2d(
            self.conv1.in_channels, self.conv1.out_channels, 3, padding=1, bias=False
        )
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for info in self.feature_info[:1]:
            info["reduction"] = 1
        for info in self.feature_info[1:]:
            info["reduction"] //= 4


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename published weights to this module's names; weights already so named pass unchanged."""
    prefix = "linear."
    return {
        f"fc.{name.removeprefix(prefix)}" if name.startswith(prefix) else name: weight
        for name, weight in state_dict.items()
    }


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


_AKAMASTER = _cfg(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    license="bsd-2-clause",
    origin_url="https://github.com/akamaster/pytorch_resnet_cifar10",
)

default_cfgs = generate_default_cfgs(
    {
        "resnet18_cifar": _cfg(pool_size=(4, 4)),
        "resnet20_cifar": _cfg(),
        "resnet20_cifar.akamaster_cifar10": _AKAMASTER,
        "resnet32_cifar": _cfg(),
        "resnet32_cifar.akamaster_cifar10": _AKAMASTER,
    }
)


def _register_once(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register with timm, except when this file was already imported under another name."""
    if not is_model(create.__name__):
        register_model(create)
    return create


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        CifarResNet, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs
    )
    return model


@_register_once
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for CIFAR: 269,722 parameters with ten classes."""
    return _create("resnet20_cifar", pretrained, depth=3, **kwargs)


@_register_once
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32 for CIFAR: 464,154 parameters with ten classes, 470,004 with a hundred."""
    return _create("resnet32_cifar", pretrained, depth=5, **kwargs)


@_register_once
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a stem for small images: 11,173,962 parameters with ten classes."""
    model: nn.Module = build_model_with_cfg(
        SmallStemResNet,
        "resnet18_cifar",
        pretrained,
        block=BasicBlock,
        layers=(2, 2, 2, 2),
        **kwargs,
    )
    return model
