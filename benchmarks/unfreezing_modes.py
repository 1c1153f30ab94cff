"""BatchNorm of frozen blocks, transitions within an epoch, and what ``trainer.test()`` leaves.

Run by benchmarks/unfreezing.py.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from unfreezing_contestants import (
    BACKBONE,
    NONE,
    OURS,
    SCHEDULER,
    Batches,
    FreezesBatchNorm,
    Plan,
    callbacks_of,
    finding,
    largest_difference,
    plan_of,
    quiet,
    small,
    trainer,
    weights,
)

STEPS = 5


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    return {n: b.detach().clone() for n, b in module.named_buffers() if "running_" in n}


def _affine(module: nn.Module) -> dict[str, Tensor]:
    norms = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]
    return {f"{n}.{k}": p.detach().clone() for n, m in norms for k, p in m.named_parameters()}


class FrozenNorms(L.Callback):
    """How far a frozen backbone's BatchNorm moves, and whether an example's features are its own.

    Attributes:
        statistics: largest change of running means and variances over the run.
        affine: likewise of weights and biases.
        others: largest change of an example's features when the rest of its batch is another.
    """

    statistics = affine = others = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before any update."""
        self._before = _statistics(pl_module.backbone), _affine(pl_module.backbone)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """In the modes of training, on a copy."""
        generator = torch.Generator().manual_seed(2)
        one, rest, others = torch.randn(3, 8, 3, 8, 8, generator=generator).unbind()
        backbone = copy.deepcopy(module.backbone)
        with torch.no_grad():
            first, second = (backbone(torch.cat([one[:1], more]))[0] for more in (rest, others))
        self.others = max(self.others, float((first - second).abs().max()))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """After every update."""
        now = _statistics(module.backbone), _affine(module.backbone)
        moved = [largest_difference(a, b) for a, b in zip(self._before, now, strict=True)]
        self.statistics, self.affine = moved


def frozen_norms(contestant: str, extra: Sequence[L.Callback] | None = None, **options: Any) -> str:
    """Train the head for two epochs with a validation after each; the statistics were warm."""
    module, watch = small(contestant, nn.BatchNorm2d), FrozenNorms()
    with torch.no_grad():
        for images, _ in Batches(20, 16, seed=3):
            module(images)
    plan = plan_of(module, STEPS, first=2)
    callbacks = [*(extra or callbacks_of(contestant, plan, **options)), watch]
    # The run goes on until all blocks are open, as plans must; what is read is of the first epochs.
    last = _Reads(watch, 2 * STEPS)
    with quiet() as folder:
        fitter = trainer(folder, [*callbacks, last], 5)
        fitter.fit(module, Batches(STEPS, 16), Batches(2, 16, seed=4))
    return last.text


class _Reads(L.Callback):
    """Takes down what the other callback has found after so many updates."""

    def __init__(self, watch: FrozenNorms, step: int) -> None:
        self.watch, self.step, self.text = watch, step, ""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Once."""
        if trainer.global_step == self.step:
            seen = self.watch
            self.text = f"statistics {seen.statistics:.1e}, affine {seen.affine:.1e}, "
            self.text += f"features by other examples {seen.others:.1e}"


STRICTEST: Mapping[str, Callable[[], str]] = {
    BACKBONE: lambda: (
        frozen_norms(BACKBONE, [FreezesBatchNorm()])
        + " (a subclass of BaseFinetuning with `freeze(train_bn=False)`)"
    ),
    SCHEDULER: lambda: (
        frozen_norms(SCHEDULER, frozen_bn_track_running_stats=False)
        + " (`frozen_bn_track_running_stats=False`)"
    ),
    OURS: lambda: frozen_norms(OURS, batch_norm="eval") + ' (`batch_norm="eval"`)',
}


class Moves(L.Callback):
    """The first update that moves each block."""

    def __init__(self, plan: Plan) -> None:
        self.blocks, self.first = plan.blocks, dict[str, int]()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before any update."""
        self._before = weights(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """After every update, by its number."""
        now = weights(module)
        for block, names in self.blocks.items():
            if any(not torch.equal(now[n], self._before[n]) for n in names):
                self.first.setdefault(block, trainer.global_step)


def first_moves(contestant: str) -> str:
    """Epochs of ten updates; the top block is to open at the seventh, or as soon after as it can.

    Who counts epochs gets the second epoch, the next there is.
    """
    module = small(contestant)
    plan = plan_of(module, 10)
    moves, options = Moves(plan), {}
    if contestant == OURS:
        options = {"interval": 7, "schedule": None}
    with quiet() as folder:
        callbacks = [*callbacks_of(contestant, plan, **options), moves]
        trainer(folder, callbacks, 5).fit(module, Batches(10, 8))
    top = next(iter(plan.openings))
    return f"update {moves.first[top]}"


def after_test(contestant: str) -> str:
    """Train until all blocks are open, then test: whose ``requires_grad`` is another?"""
    module = small(contestant)
    with quiet() as folder:
        fitter = trainer(folder, callbacks_of(contestant, plan_of(module, STEPS)), 5)
        fitter.fit(module, Batches(STEPS, 8))
        before = [p.requires_grad for p in module.parameters()]
        fitter.test(module, Batches(2, 8), verbose=False)
    after = [p.requires_grad for p in module.parameters()]
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    return f"changed in {changed} of {len(before)} tensors"


def findings(contestant: str, rounds: int) -> dict[str, str]:
    """What the table shows of a contestant."""
    strictest = STRICTEST.get(contestant, lambda: "")
    first = "" if contestant == NONE else finding(lambda: first_moves(contestant))
    return {
        "BatchNorm while frozen, as by default": finding(lambda: frozen_norms(contestant)),
        "BatchNorm while frozen, the strictest on offer": finding(strictest),
        "a block to open at update 7, in mid-epoch (epochs of 10), first moves at": first,
        "`requires_grad` after `trainer.test()`": finding(lambda: after_test(contestant)),
    }
