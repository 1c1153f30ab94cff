"""Step time while only the head trains, and the time of a whole schedule.

Run by benchmarks/unfreezing.py. The steps: timm's resnet18 and vit_tiny at 224 px, batch 16. After
every step of the trainer, the same batch goes through a step by hand, on a copy in the same modes:
a forward pass of the backbone without gradients, then the head's forward, backward and SGD update.
The trainer's step is all the time between two of those, its SGD update included as well.

The schedule: the same blocks at the same epochs through `GradualUnfreezing` and through
finetuning-scheduler, BatchNorm of frozen blocks moving on both sides, no checkpoints, in turn; the
time of ``trainer.fit``.

Seconds on the clock, and of the processor in this process, which other programs disturb less.
"""

import copy
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import lightning.pytorch as L
import timm
import torch
from side_by_side import ratio
from torch import nn
from torch.nn import functional as F
from unfreezing_contestants import (
    BACKBONE,
    OURS,
    SCHEDULER,
    Batches,
    Classifier,
    callbacks_of,
    convolutional,
    finding,
    plan_of,
    quiet,
    trainer,
)

Seconds = list[tuple[float, float]]
NETWORKS = ("resnet18", "vit_tiny_patch16_224")
BATCH, PIXELS = 16, 224


def now() -> tuple[float, float]:
    """The clock, and the processor's."""
    return perf_counter(), process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds of both."""
    return perf_counter() - start[0], process_time() - start[1]


def ratios(over: Seconds, under: Seconds) -> str:
    """By the clock, and by the processor's."""
    clock, processor = (
        ratio([pair[i] for pair in over], [pair[i] for pair in under]) for i in (0, 1)
    )
    return f"{clock}; processor time {processor}"


def classifier(contestant: str, name: str) -> Classifier:
    """A timm backbone without its classifier, whose BatchNorm statistics have seen images."""
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0)
    with torch.no_grad():
        backbone(torch.randn(2, 3, PIXELS, PIXELS))
    return Classifier(backbone, backbone.num_features, trainable_only=contestant == BACKBONE)


class ByHand(L.Callback):
    """Follows every step of the trainer with one by hand, and times both.

    Attributes:
        trained: seconds of the trainer's steps, but for the first.
        by_hand: of those by hand after them.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.trained: Seconds = []
        self.by_hand: Seconds = []
        self._before: tuple[float, float] | None = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Copy the module as it is in the first step; deep copies keep modes."""
        if self._before is None:
            self.backbone, self.head = copy.deepcopy((module.backbone, module.head))
            self.optimizer = torch.optim.SGD(self.head.parameters(), **module.sgd)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Take the time, and step by hand."""
        first = self._before is None
        if self._before is not None:
            self.trained.append(since(self._before))
        start = now()
        self._step(*batch)
        if not first:
            self.by_hand.append(since(start))
        if trainer.global_step == self.steps:
            trainer.should_stop = True
        self._before = now()

    def _step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.no_grad():
            features = self.backbone(images)
        self.optimizer.zero_grad()
        F.cross_entropy(self.head(features), targets).backward()
        self.optimizer.step()


def step_ratio(contestant: str, name: str, rounds: int) -> str:
    """The trainer's step over the one by hand, by pairs."""
    module, timed = classifier(contestant, name), ByHand(rounds + 1)
    plan = plan_of(module, rounds + 1)
    with quiet() as folder:
        callbacks = [*callbacks_of(contestant, plan, {"save_top_k": 0}), timed]
        fitter = trainer(folder, callbacks, max(plan.openings.values()) + 1)
        fitter.fit(module, Batches(rounds + 1, BATCH, PIXELS))
    return ratios(timed.trained, timed.by_hand)


def digits() -> Classifier:
    """A network for images of 8 px, small enough for what callbacks do to show."""
    torch.manual_seed(0)
    return Classifier(convolutional(nn.BatchNorm2d), 16)


def resnet() -> Classifier:
    """A resnet18 of timm."""
    return classifier(OURS, "resnet18")


def whole(contestant: str, build: Callable[[], Classifier], data: Batches) -> tuple[float, float]:
    """Seconds of a fit in which all blocks open, one an epoch."""
    module = build()
    plan = plan_of(module, len(data))
    options = {"batch_norm": "train"} if contestant == OURS else {}
    callbacks = callbacks_of(contestant, plan, {"save_top_k": 0}, **options)
    with quiet() as folder:
        fitter = trainer(folder, callbacks, max(plan.openings.values()) + 1)
        start = now()
        fitter.fit(module, data)
        return since(start)


def schedule_ratio(build: Callable[[], Classifier], data: Batches, rounds: int) -> str:
    """Time of firstlight over that of finetuning-scheduler, after a round that does not count."""
    found: dict[str, Seconds] = {SCHEDULER: [], OURS: []}
    for number in range(rounds + 1):
        for name, seconds in found.items():
            pair = whole(name, build, data)
            if number:
                seconds.append(pair)
    return ratios(found[OURS], found[SCHEDULER])


SCHEDULES: dict[str, Callable[[int], str]] = {
    "8 px, small network, 4 epochs of 50": lambda n: schedule_ratio(digits, Batches(50, 64), 4 * n),
    "resnet18, 112 px, 6 epochs of 4": lambda n: schedule_ratio(resnet, Batches(4, 4, 112), n),
}


def findings(contestant: str, rounds: int) -> dict[str, str]:
    """What the table shows of a contestant."""
    found = {
        f"step while only the head trains / by hand, {name}": finding(
            lambda name=name: step_ratio(contestant, name, rounds)
        )
        for name in NETWORKS
    }
    for name, measure in SCHEDULES.items():
        text = {SCHEDULER: "1"}.get(contestant, "")
        if contestant == OURS:
            text = finding(lambda measure=measure: measure(rounds))
        found[f"whole schedule / finetuning-scheduler's, {name}"] = text
    return found
