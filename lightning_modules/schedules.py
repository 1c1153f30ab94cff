"""Learning-rate schedules with a warm-up, as torch schedulers that a YAML file can name.

They are classes because LightningCLI takes ``init_args`` of classes only, not of functions::

    lr_scheduler:
      class_path: WarmupCosineLR
      init_args: {warmup: 5, total: 100}

Both are closed forms of the number of steps taken, so a resumed run follows the same rates bit for
bit, and both scale every parameter group by the same factor, which keeps layer-wise decay.
"""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _FactorLR(LRScheduler):
    """Base rates times ``factor(k)`` after ``k`` calls of ``step``."""

    def factor(self, step: int) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of every parameter group for the coming step."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]


class WarmupCosineLR(_FactorLR):
    """Linear warm-up, then half a cosine down to a share of the base rate (1608.03983).

    With ``k`` the steps taken so far: ``(k + 1) / warmup`` times the base rate for ``k < warmup``,
    so that the first step already learns and the last of the warm-up has the full rate; then
    ``final + (1 - final) (1 + cos(pi t)) / 2`` with ``t = (k - warmup) / (total - warmup)``; from
    ``total`` on, ``final``.

    Args:
        optimizer: the optimiser, its groups complete.
        warmup: steps of the warm-up; 0 for none.
        total: steps until the end of the cosine, the warm-up included. In epochs, or in optimiser
            steps with ``lr_scheduler_interval: step``.
        final: share of the base rate at the end, in [0, 1].
        last_epoch: steps already taken; -1 to start.

    Raises:
        ValueError: unless ``0 <= warmup < total`` and ``0 <= final <= 1``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int,
        total: int,
        final: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup < total:
            raise ValueError(f"warmup ({warmup}) must be at least 0 and below total ({total})")
        if not 0 <= final <= 1:
            raise ValueError(f"final is a share of the base rate, in [0, 1], not {final}")
        self.warmup, self.total, self.final = warmup, total, final
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Return the share of the base rate after ``step`` steps."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / (self.total - self.warmup))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


class WarmupMultiStepLR(_FactorLR):
    """Linear warm-up, then a constant rate cut at milestones.

    The defaults are the CIFAR recipe of LDAM-DRW (1906.07413): over epochs counted from 1, the base
    rate times e / 5 up to the fifth, full until 160, a hundredth until 180, a ten-thousandth after.

    Args:
        optimizer: the optimiser, its groups complete.
        warmup: steps of the warm-up; 0 for none.
        milestones: after how many steps the rate is multiplied by ``gamma`` (once per milestone).
        gamma: above 0.
        last_epoch: steps already taken; -1 to start.

    Raises:
        ValueError: when ``warmup`` is negative or beyond the first milestone, or ``gamma`` is not
            above 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int = 5,
        milestones: Sequence[int] = (160, 180),
        gamma: float = 0.01,
        last_epoch: int = -1,
    ) -> None:
        if warmup < 0 or (milestones and warmup > min(milestones)):
            raise ValueError(f"warmup ({warmup}) must lie between 0 and the first of {milestones}")
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0, not {gamma}")
        self.warmup, self.milestones, self.gamma = warmup, list(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Return the share of the base rate after ``step`` steps."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        passed = sum(step >= milestone for milestone in self.milestones)
        return float(self.gamma**passed)
