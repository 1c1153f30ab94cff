"""Updates of some parameters made smaller, whatever the optimiser, its groups and its schedule."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Factors = dict[float, list[Tensor]]

NOT_PROPORTIONAL = ("LBFGS", "Rprop")
"""torch's optimisers whose updates are not proportional to their learning rate."""


class UpdateScale:
    """Scales what an optimiser's step does to chosen parameters: ``p <- p0 + f (p - p0)``.

    That equals a learning rate multiplied by f (weight decay included) for every optimiser whose
    update is proportional to its rate, which all of torch's are but LBFGS and Rprop. Neither groups
    nor rates nor the scheduler are touched, and parameters that share a group may differ. A skipped
    step (fp16 overflow) skips it too. Memory: a copy of the chosen parameters during the step.
    """

    def __init__(self) -> None:
        self._factors: dict[Tensor, float] = {}
        self._before: list[tuple[Tensor, Tensor, float]] = []
        self._hooks: list[Any] = []

    def attach(self, optimizers: Sequence[Any]) -> None:
        """Begin to look at the steps of optimisers."""
        self.detach()
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._keep))
            self._hooks.append(optimizer.register_step_post_hook(self._scale))

    def detach(self) -> None:
        """Leave the optimisers alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before, self._factors = [], [], {}

    def set(self, factors: Factors) -> None:
        """Say what to scale from the next step on: parameters by factor; 1 is left out."""
        self._factors = {p: f for f, chosen in factors.items() if f != 1 for p in chosen}

    def _keep(self, optimizer: Any, *_: Any) -> None:
        self._before = [
            (p, p.detach().clone(), self._factors[p])
            for group in optimizer.param_groups
            for p in group["params"]
            if p in self._factors
        ]

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for p, before, factor in self._before:
            p.copy_(torch.lerp(before, p, factor))
        self._before = []


def refuse_unscalable(optimizers: Iterable[Any], who: str) -> None:
    """Refuse to scale the updates of optimisers that are not proportional to the rate.

    Raises:
        ValueError: naming the optimiser.
    """
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if name in NOT_PROPORTIONAL:
            raise ValueError(
                f"{who}: the updates of {name} are not proportional to its learning rate, so that "
                "lr_scale and warmup_steps cannot scale them: leave both out, or take another "
                "optimiser"
            )


def grown(scale: float, warmup: int, steps: int) -> float:
    """Return the factor of an update, ``steps`` updates after its block was opened.

    It rises linearly to ``scale``, which the update number ``warmup`` reaches.
    """
    return scale * min((steps + 1) / warmup, 1.0) if warmup else scale
