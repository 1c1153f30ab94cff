"""What automatic unfreezing watches: curvature on a probe set, or a metric of the run."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.classifier_view import ClassifierView
from firstlight.callbacks.measurements import Measurement
from firstlight.callbacks.probe import ProbeMonitor
from firstlight.callbacks.probe_set import ProbeSet
from firstlight.callbacks.records import RunRecords, say
from firstlight.functional.fisher_trace import fisher_trace
from firstlight.functional.measuring import untouched_batch_norms
from firstlight.functional.ranks import Ranks
from firstlight.functional.sharpness import average_sharpness
from firstlight.functional.unfreezing_interval import (
    NOT_SETTLED,
    StabilityRule,
    UnfreezingInterval,
)
from firstlight.functional.worst_case import worst_case_sharpness

TABLE = "unfreezing_signal"
Samples = list[tuple[int, float]]
"""Optimiser steps done, and the signal then."""


def _fisher(view: Any, inputs: Any, targets: Tensor, seed: int, **where: Any) -> float:
    generator = torch.Generator().manual_seed(seed)
    return fisher_trace(view, inputs, generator=generator, **where).value


def _average(view: Any, inputs: Any, targets: Tensor, seed: int, **where: Any) -> float:
    return average_sharpness(view, inputs, targets, seed=seed, **where).value


def _worst(view: Any, inputs: Any, targets: Tensor, seed: int, **where: Any) -> float:
    return worst_case_sharpness(view, inputs, targets, **where).value


MEASURED: dict[str, tuple[Callable[..., float], float]] = {
    "fisher_trace": (_fisher, 3),  # 1 in closed form, while a linear head is all that is trained
    "average_sharpness": (_average, 18),
    "worst_case_sharpness": (_worst, 46),
}
"""Signals measured here, and their most passes over the probe (a forward is 1, a backward 2)."""


class ProbeSignal(ProbeMonitor):
    """Measures a signal of what is trained on fixed examples; a part of another callback.

    Attributes:
        samples: what was measured so far, where it was finite.
    """

    def __init__(
        self, owner: str, signal: str, rule: StabilityRule, probe: Any, probe_size: int,
        seed: int | None, adapter: Adapter | None,
    ) -> None:  # fmt: skip
        self._owner, self.signal, self.rule = owner, signal, rule
        self._take, self._passes = MEASURED[signal]
        self.samples: Samples = []
        super().__init__(
            lambda *_: {}, TABLE, rule.every, probe_size=probe_size, seed=seed, probe=probe,
            adapter=adapter,
        )  # fmt: skip

    @property
    def _who(self) -> str:
        return self._owner

    def passes(self, width: int) -> float:
        """See `MEASURED`."""
        return self._passes + (self.batch_norm == "warm")

    def key(self, one: Measurement) -> str:
        """The key for loggers."""
        return "unfreezing/signal"

    def opening(self, trainer: Any, probe: ProbeSet, width: int) -> str:
        """Say what is watched, until when, and at what cost."""
        return (
            f"{self._owner} watches {self.signal} on {probe.size} examples of {probe.source} "
            f"every {self.rule.every} steps until it settles, at most {self.rule.longest} steps; "
            f"each time costs at most {self.passes(width):.3g} passes over them (a forward is 1, a "
            "backward 2)."
        )

    def take_measurements(
        self, view: ClassifierView, inputs: Any, targets: Tensor, ranks: Ranks, optimizer: Any
    ) -> list[Measurement]:
        """Return the signal. Collective."""
        value = self._take(
            view, inputs, targets, self._resolved_seed, batch_size=self.probe_batch_size,
            ranks=ranks,
        )  # fmt: skip
        return [Measurement(self.signal, "", value, n=len(targets))]

    def decide(self, trainer: Any, pl_module: Any, step: int) -> UnfreezingInterval | None:
        """Measure if it is due, and say whether to thaw now. Collective."""
        self.on_train_batch_start(trainer, pl_module)
        return decision(self.samples, self.rule, step)

    def _record(self, trainer: Any, found: list[Measurement], step: int) -> None:
        super()._record(trainer, found, step)
        self.samples += [(step, one.value) for one in found if math.isfinite(one.value)]

    def state_dict(self) -> dict[str, Any]:
        """As every monitor, and the samples."""
        return super().state_dict() | {"samples": [list(sample) for sample in self.samples]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last sample."""
        super().load_state_dict(state_dict)
        self.samples = [(int(step), float(value)) for step, value in state_dict["samples"]]


class MetricSignal:
    """Samples a metric of the run every so many steps; same interface as `ProbeSignal`.

    A value that equals the one before bit for bit is taken for the same one: a metric of
    validation changes with the next validation only, and standing still in between is no quiet.
    """

    def __init__(self, owner: str, key: str, rule: StabilityRule) -> None:
        self._owner, self.key, self.rule = owner, key, rule
        self.samples: Samples = []
        self._seen = -1
        self._missed = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Say what is watched."""
        say(
            trainer,
            f"{self._owner} watches the metric {self.key!r} every {self.rule.every} steps until "
            f"it settles, at most {self.rule.longest} steps; no pass.",
        )

    def decide(self, trainer: Any, pl_module: Any, step: int) -> UnfreezingInterval | None:
        """Take a sample if one is due, and say whether to thaw now.

        Collective: the first rank's value holds.
        """
        if step != self._seen and step % self.rule.every == 0:
            self._seen = step
            metrics: Mapping[str, Any] = trainer.callback_metrics
            value = float(metrics[self.key]) if self.key in metrics else None
            value = trainer.strategy.broadcast(value)
            if value is None:
                self._say_missing(trainer, sorted(metrics))
            elif math.isfinite(value) and value not in [old for _, old in self.samples[-1:]]:
                self.samples.append((step, value))
        return decision(self.samples, self.rule, step)

    def _say_missing(self, trainer: Any, known: Sequence[str]) -> None:
        if trainer.global_step == 0 or self._missed:
            return
        self._missed = True
        near = difflib.get_close_matches(self.key, known, 3, 0.4) or known[:8]
        say(
            trainer,
            f"{self._owner}: after {trainer.global_step} steps there is no metric {self.key!r} "
            f"yet; there is {', '.join(near) or 'none at all'}. Without it, blocks open after "
            f"{self.rule.longest} steps each.",
        )

    def state_dict(self) -> dict[str, Any]:
        """The samples, and the last step looked at."""
        return {"samples": [list(sample) for sample in self.samples], "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last sample."""
        self.samples = [(int(step), float(value)) for step, value in state_dict["samples"]]
        self._seen = int(state_dict["seen"])


Signal = ProbeSignal | MetricSignal


def signal_of(
    name: str, who: str, rule: StabilityRule, pl_module: Any, records: RunRecords | None = None,
    **probe: Any,
) -> Signal:  # fmt: skip
    """Make what watches a signal: of `MEASURED`, or a metric.

    Where BatchNorm's statistics move although nothing is trained below the head, they would be what
    the signal shows: it then normalises by the probe.

    Args:
        name: of the signal.
        who: named in messages.
        rule: that judges it.
        pl_module: what is measured, frozen as it is to be watched.
        records: where measurements are written; None for nowhere.
        probe: arguments of `ProbeSignal`.
    """
    if name not in MEASURED:
        return MetricSignal(who, name, rule)
    signal = ProbeSignal(who, name, rule, **probe)
    signal.records = records or Nowhere()
    moves = any(isinstance(m, _BatchNorm) and m.training for m in pl_module.modules())
    signal.batch_norm = "warm" if moves or untouched_batch_norms(pl_module) else "running"
    return signal


class Nowhere(RunRecords):
    """Records of a run that leaves none."""

    def open(self, trainer: Any, pl_module: Any) -> None:
        """No folder is made."""


def decision(samples: Samples, rule: StabilityRule, step: int) -> UnfreezingInterval | None:
    """Say, before the update after ``step``, whether to thaw now; the interval is ``step`` then.

    A pure function: asked again at the same step it gives the same answer.
    """
    found = None
    if samples and samples[-1][0] == step > 0:
        found = rule.online([value for _, value in samples])
    if found is None and step >= rule.longest:
        found = UnfreezingInterval(step, len(samples) - 1, False, NOT_SETTLED)
    return None if found is None else replace(found, steps=step)
