"""What benchmarks/unfreezing.py compares: one plan, a module, and each contestant's callbacks.

Every contestant gets the same blocks in the same order at the same epochs, as its own documentation
asks: BackboneFinetuning knows one block, the attribute ``backbone``, and wants an optimiser over
the parameters that require gradients when it is made; finetuning-scheduler gets a schedule of
phases, driven by epochs only, with the learning rate written out (its default is 1e-5).
"""

import contextlib
import json
import logging
import tempfile
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.callbacks import GradualUnfreezing
from firstlight.callbacks.module_blocks import blocks_of

NONE, BACKBONE, SCHEDULER, OURS = (
    "no callback",
    "BackboneFinetuning",
    "finetuning-scheduler",
    "firstlight",
)
CONTESTANTS = (NONE, BACKBONE, SCHEDULER, OURS)
LR, CLASSES = 0.05, 4


@dataclass(frozen=True)
class Plan:
    """When which block opens: from the head down, one an epoch.

    Attributes:
        blocks: names to parameters, from the stem to the head.
        steps_per_epoch: optimiser steps.
        first: the epoch at whose start the top block opens.
    """

    blocks: Mapping[str, Sequence[str]]
    steps_per_epoch: int
    first: int = 1

    @property
    def openings(self) -> dict[str, int]:
        """Blocks to the epochs at whose start they open."""
        below = [block for block in reversed(self.blocks) if block != "head"]
        return {block: self.first + j for j, block in enumerate(below)}


class Classifier(L.LightningModule):
    """A backbone, a head and SGD with momentum and weight decay.

    Args:
        backbone: from images to features.
        features: how many.
        trainable_only: build the optimiser over parameters that require gradients, as
            BaseFinetuning asks; otherwise over all.
        scheduler: from the optimiser to what ``configure_optimizers`` adds.
        sgd: its arguments.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        trainable_only: bool = False,
        scheduler: Callable[[Any], dict[str, Any]] | None = None,
        **sgd: float,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(features, CLASSES)
        self.trainable_only, self.scheduler = trainable_only, scheduler
        self.sgd = {"lr": LR, "momentum": 0.9, "weight_decay": 1e-3, **sgd}

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Cross-entropy; a constant is logged for ReduceLROnPlateau."""
        self.log("plateau", 1.0)
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Log the loss that finetuning-scheduler's checkpoints are chosen by."""
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def test_step(self, batch: list[Tensor], _: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> Any:
        """SGD, over all parameters or over those that require gradients now."""
        held = [p for p in self.parameters() if p.requires_grad or not self.trainable_only]
        optimizer = torch.optim.SGD(held, **self.sgd)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}


def convolutional(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Stem and two layers for images of 8 px; 16 features."""

    def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        return nn.Sequential(convolution, norm(outputs), nn.ReLU())

    parts = {"stem": layer(3, 8, 1), "layer1": layer(8, 16, 2), "layer2": layer(16, 16, 2)}
    return nn.Sequential(OrderedDict(parts, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))


def without_batch_norm(channels: int) -> nn.Module:
    """GroupNorm: the same for one process and for two, whatever else is in the batch."""
    return nn.GroupNorm(2, channels)


def small(
    contestant: str, norm: Callable[[int], nn.Module] = without_batch_norm, **how: Any
) -> Any:
    """Build the same small classifier, with the optimiser that the contestant asks for."""
    torch.manual_seed(0)
    return Classifier(convolutional(norm), 16, trainable_only=contestant == BACKBONE, **how)


def plan_of(module: nn.Module, steps_per_epoch: int, first: int = 1) -> Plan:
    """Take the blocks that `GradualUnfreezing` finds; all contestants get the same."""
    return Plan(blocks_of(module), steps_per_epoch, first)


def callbacks_of(
    contestant: str, plan: Plan, checkpoint: Mapping[str, Any] | None = None, **options: Any
) -> list[L.Callback]:
    """Make what the contestant adds to a trainer, a checkpoint callback included.

    Args:
        contestant: its name.
        plan: what opens when.
        checkpoint: arguments of the checkpoint callback.
        options: further arguments of the contestant.
    """
    kept = {"save_top_k": 1, "save_on_train_epoch_end": True, **(checkpoint or {})}
    if contestant == SCHEDULER:
        return _finetuning_scheduler(plan, kept, **options)
    saves = ModelCheckpoint(**kept)
    if contestant == BACKBONE:
        # One rate for all: the backbone starts at the head's and is aligned with it every epoch.
        rates = {"backbone_initial_ratio_lr": 1.0, "lambda_func": lambda epoch: 1e9}
        epoch = min(plan.openings.values())
        return [BackboneFinetuning(epoch, **{**rates, **options}), saves]
    if contestant == OURS:
        times = [[e * plan.steps_per_epoch, b] for b, e in plan.openings.items()]
        return [GradualUnfreezing(**{"schedule": times, **options}), saves]
    return [saves]


def _finetuning_scheduler(
    plan: Plan, checkpoint: Mapping[str, Any], rates: Sequence[float] = (), **options: Any
) -> list[L.Callback]:
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

    order = ["head", *plan.openings]
    ends = [*plan.openings.values(), max(plan.openings.values()) + 1]
    schedule: dict[int, Any] = {
        depth: {"params": list(plan.blocks[block]), "max_transition_epoch": end}
        for depth, (block, end) in enumerate(zip(order, ends, strict=True))
    }
    for depth, rate in enumerate(rates, start=1):
        schedule[depth]["lr"] = rate
    given = {"epoch_transitions_only": True, "restore_best": False, "base_max_lr": LR, **options}
    callback = FinetuningScheduler(schedule, logging_level=logging.ERROR, **given)
    return [callback, FTSCheckpoint(**checkpoint)]


class FreezesBatchNorm(BaseFinetuning):
    """The strictest that Lightning offers: ``freeze(train_bn=False)``, by a subclass."""

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """Freeze all."""
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, *_: Any) -> None:
        """Stay so."""


class Batches:
    """Fixed batches in fixed order, whose position is saved: resuming changes nothing by itself."""

    def __init__(self, count: int, size: int, pixels: int = 8, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = {"generator": generator}
        self.held = [
            [torch.randn(size, 3, pixels, pixels, **draw), torch.randint(CLASSES, (size,), **draw)]
            for _ in range(count)
        ]
        self.position = 0

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for index in range(self.position % len(self), len(self)):
            self.position = index + 1
            yield self.held[index]

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on behind them."""
        self.position = state["position"]


def trainer(folder: str, callbacks: Sequence[L.Callback], epochs: int, **how: Any) -> L.Trainer:
    """A quiet trainer on the CPU."""
    given = {"devices": 1, "accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, **how}
    return L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, **given,
    )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[str]:
    """No hints and warnings, and a folder for what is written."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        yield folder


def first_line(error: BaseException) -> str:
    """An exception as a finding."""
    text = str(error).strip().splitlines() or [""]
    traceback.print_exception(error)
    return f"{type(error).__name__}: {text[0][:140]}".replace("|", "/")


def finding(measure: Callable[[], str]) -> str:
    """What is measured, or what was raised."""
    try:
        return measure()
    except Exception as error:  # whatever a contestant raises is its result
        return first_line(error)


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between tensors of the same names."""
    return max((float((a[name] - b[name]).abs().max()) for name in a), default=0.0)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def write(findings: Mapping[str, Any], path: str) -> None:
    """Leave findings for the process that asked for them."""
    Path(path).write_text(json.dumps(findings))
