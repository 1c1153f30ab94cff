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
    it, so that layer-wise decay holds under every scheduler of torch.
    """
    blocks = parameter_blocks(model, coarse=layer_decay == 1)
    groups = parameter_groups(model, blocks, layer_decay=layer_decay)
    of_loss = {"loss": [name for name, _ in loss.named_parameters()]}
    groups += parameter_groups(loss, of_loss)
    optimizer: Optimizer = from_spec(spec, groups, what="optimizer", expected=Optimizer)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer


def make_scheduler(spec: Spec, optimizer: Optimizer, interval: str) -> LRSchedulerConfigType:
    """Build Lightning's description of a scheduler; a plateau watches ``val/loss`` by default."""
    scheduler = from_spec(spec, optimizer, what="lr_scheduler", expected=SCHEDULERS)
    monitor = getattr(scheduler, "monitor", "val/loss")
    return LRSchedulerConfigType(scheduler=scheduler, interval=interval, monitor=monitor)
