"""Optimiser and schedule of a classifier, from specs."""

from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from firstlight.functional.parameter_blocks import parameter_blocks
from firstlight.functional.parameter_groups import parameter_groups
from firstlight.lightning_modules.specs import Spec, from_spec, to_spec

SCHEDULERS = (LRScheduler, ReduceLROnPlateau)


def scheduler_spec(value: object) -> Spec:
    """Describe a scheduler factory; timm's, which need calls of their own, are refused.

    Raises:
        ValueError, TypeError: as ``to_spec``.
    """
    try:
        return to_spec(value, "lr_scheduler", SCHEDULERS)
    except ValueError as error:
        raise ValueError(
            f"{error}. Any scheduler of torch.optim.lr_scheduler works; timm's do not follow its "
            "interface: use firstlight.lightning_modules.WarmupCosineLR or WarmupMultiStepLR"
        ) from error


def make_optimizer(spec: Spec, model: nn.Module, loss: nn.Module, layer_decay: float) -> Optimizer:
    """Build an optimiser over every parameter of the model and the loss, in static named groups.

    Each group's learning rate is multiplied by its ``lr_scale`` here, before any scheduler reads
    it, so that layer-wise decay holds under every scheduler of torch. A rate of None (timm's
    Adafactor, which then finds its own) is left as it is.

    Raises:
        ValueError: for a rate of None under layer-wise decay, which has nothing to multiply.
    """
    blocks = parameter_blocks(model, coarse=layer_decay == 1)
    groups = parameter_groups(model, blocks, layer_decay=layer_decay)
    of_loss = {"loss": [name for name, _ in loss.named_parameters()]}
    groups += parameter_groups(loss, of_loss)
    optimizer: Optimizer = from_spec(spec, groups, what="optimizer", expected=Optimizer)
    for group in optimizer.param_groups:
        if group["lr"] is not None:
            group["lr"] = group["lr"] * group["lr_scale"]
        elif layer_decay != 1:
            raise ValueError(
                f"layer_decay={layer_decay} scales learning rates, but {type(optimizer).__name__} "
                "was given lr=None and finds its own: pass lr to the optimizer, or layer_decay=1"
            )
    return optimizer


def make_scheduler(spec: Spec, optimizer: Optimizer, interval: str) -> LRSchedulerConfigType:
    """Build Lightning's description of a scheduler; a plateau watches ``val/loss`` by default.

    Raises:
        ValueError: when the optimiser has no learning rate that could be scheduled.
    """
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise ValueError(
            f"lr_scheduler {spec['class_path']} has no learning rate to change: "
            f"{type(optimizer).__name__} was given lr=None and finds its own. Pass lr to the "
            "optimizer, or leave lr_scheduler out"
        )
    scheduler = from_spec(spec, optimizer, what="lr_scheduler", expected=SCHEDULERS)
    monitor = getattr(scheduler, "monitor", "val/loss")
    return LRSchedulerConfigType(scheduler=scheduler, interval=interval, monitor=monitor)
