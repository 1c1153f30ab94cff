"""ProbeMonitor: anything that can be measured on fixed examples, on a schedule, in anyone's run."""

import math
import re
from typing import Any, Literal

from lightning.pytorch import Callback
from torch import Tensor

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.classifier_view import ClassifierView, view_of
from firstlight.callbacks.measurements import Measurement, columns_of
from firstlight.callbacks.probe_measure import Measure, ProbeMeasure
from firstlight.callbacks.probe_report import draw_figure, opening_line, progress
from firstlight.callbacks.probe_set import ProbeSet, checked_targets, collect
from firstlight.callbacks.records import RunRecords, log_scalars, say
from firstlight.callbacks.schedule import (
    LearningRateWatch,
    averages_weights,
    ends_with_this_epoch,
)
from firstlight.callbacks.strategies import refuse_sharded
from firstlight.functional.measurement_schedule import MeasurementSchedule, Steps
from firstlight.functional.measuring import untouched_batch_norms
from firstlight.functional.ranks import Ranks
from firstlight.functional.seeding import resolve_seed

DEFAULT_SCHEDULE: Steps = ((0, 10), (500, 500))


class ProbeMonitor(ProbeMeasure, Callback):
    """Measures fixed examples on a schedule and records what it finds; changes nothing.

    ``measure(model, inputs, targets)`` is called once for every batch of the probe set, and its
    numbers are averaged over the examples: a measure must be a mean over examples, or be called
    with all of them at once (``probe_batch_size=None``, by the first process). ``model`` is an
    ``nn.Module`` from inputs to logits (n, C) with the LightningModule's own parameters under their
    own names; in eval mode, with gradients on, autocast off, uncompiled, whatever wraps it;
    modules in half precision are measured as float32 copies. Random numbers are keyed by (seed,
    batch), so every measurement draws the same. Afterwards gradients, modes, buffers, weights and
    random states are as they were, also when the function raises. Use ``torch.autograd.grad``.

    The measurement at step g is of the weights that update g + 1 starts from, 0 included, and of
    the last ones if the schedule asks for them. The training weights are measured, not averages of
    them. Work is dealt to the processes in numbered batches; the value is the same on any number.

    Forward hooks that others put on the module see the measurement's forwards.

    Attributes:
        probe_set: the examples, once training has started.

    Args:
        measure: see above; returns names to numbers, or names to numbers by block.
        name: the table of the run folder, and the beginning of the keys: ``<name>/<key>``, or
            ``<name>/<key>/<block>``.
        every_n_train_steps: an interval, or pieces ``[[0, 10], [500, 500]]`` (from step 0 every 10,
            from 500 every 500); a step is an optimiser update.
        probe_size: how many examples.
        probe_batch_size: examples in one call; None for all.
        seed: keys the probe's choice and all random numbers; None for ``seed_everything``'s, or 0.
        batch_norm: ``"warm"`` measures with BatchNorm's statistics taken from the probe set (one
            forward pass more), ``"running"`` with the run's. From scratch they start at (0, 1), and
            numbers move for about 50 steps merely because they do.
        probe: a loader, a data set or a pair of tensors (inputs, targets). Otherwise the data
            module's ``probe_dataloader()``, else examples drawn from the training data.
        run_dir: the run folder, by default ``<trainer.log_dir>/firstlight``.
        adapter: ``(pl_module, batch) -> (inputs, targets, forward)`` for unusual batches; what
            ``forward`` does must depend on its inputs alone.

    Raises:
        ValueError: on a bad argument; when training starts, on a strategy that splits the module
            between processes, an empty probe set, or a measure that fails.
        BatchError: when training starts, where batches or outputs are no classifier's.
    """

    def __init__(
        self,
        measure: Measure,
        name: str = "probe",
        every_n_train_steps: Steps = DEFAULT_SCHEDULE,
        probe_size: int = 256,
        probe_batch_size: int | None = 32,
        seed: int | None = None,
        batch_norm: Literal["running", "warm"] = "running",
        probe: Any = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        if probe_size < 1:
            raise ValueError(f"probe_size must be at least 1, not {probe_size}")
        ProbeMeasure.__init__(self, measure, name, probe_batch_size, seed, batch_norm)
        self.schedule = MeasurementSchedule.parse(every_n_train_steps)
        self.probe_size = probe_size
        self.probe = probe
        self.adapter = adapter
        self.records = RunRecords(run_dir)
        self._watch = LearningRateWatch()
        self._said: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self._seen: int | None = None
        self._restored: dict[str, Any] = {}
        self._used_seed = None
        self.probe_set: ProbeSet | None = None
        self._view: ClassifierView | None = None
        self._log = False
        self._targets: Tensor | None = None
        self._known = []
        self._watch.restore({})

    @property
    def state_key(self) -> str:
        """Unique per name, so that several monitors can run together."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """The run folder, the last step looked at, and what tells the probe set."""
        return {
            **self.records.state_dict(),
            "seen": self._seen,
            "seed": self._used_seed,
            "probe": None if self.probe_set is None else self.probe_set.fingerprint,
            "rates": self._watch.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last step that was looked at, in the checkpoint's run folder."""
        self.records.load_state_dict(state_dict)
        self._restored = state_dict

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the fit before; refuse what cannot be measured.

        Raises:
            ValueError: on a strategy that splits the module, or a name used twice.
        """
        if stage != "fit":
            return
        refuse_sharded(
            trainer, self._who,
            "Train with strategy='ddp', or measure the checkpoints afterwards: firstlight measure",
        )  # fmt: skip
        others = [c for c in _monitors(trainer) if c is not self and c.name == self.name]
        if others:
            raise ValueError(
                f"{self._who} and {others[0]._who} are both named {self.name!r} and would write "
                "one table: pass another name to one of them"
            )
        self.records.start()
        self._forget()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Gather the probe set, find out what the module gives for it, announce the cost.

        The run folder is opened before the first checkpoint, which has to know it.
        """
        self.records.open(trainer, pl_module)
        self.records.mark("running")
        before = self._restored
        kept = before.get("seed") if self.seed is None else None
        self._used_seed = resolve_seed(self.seed) if kept is None else kept
        self.probe_set = probe = collect(
            trainer, pl_module, self.probe, self.probe_size, self._used_seed, self._who,
            self.adapter,
        )  # fmt: skip
        view = self._view_of(pl_module)
        self._targets, note, width = checked_targets(view, probe.inputs, probe.targets)
        self._log = view.log
        line = self.opening(trainer, probe, width)
        for message in (line, *probe.notes, note, *self._warnings(pl_module)):
            if message:
                self._say_once(trainer, message)
        seen = before.get("seen")
        self._seen = trainer.global_step - 1 if seen is None else seen
        self._watch.restore(before.get("rates", {}))
        if before.get("probe") not in (None, probe.fingerprint):
            self._changed_probe(trainer)

    def opening(self, trainer: Any, probe: ProbeSet, width: int) -> str:
        """Say what will be measured, when, on what, and at what cost."""
        return opening_line(
            trainer, self._who, self.name, self.schedule, probe.source, probe.size,
            self.passes(width),
        )  # fmt: skip

    def _warnings(self, pl_module: Any) -> list[str]:
        untouched = untouched_batch_norms(pl_module)
        if not untouched or self.batch_norm == "warm":
            return []
        return [
            f"BatchNorm's running statistics are still at their start, (0, 1), in {len(untouched)} "
            f"of its layers, such as {untouched[0]}: the numbers will move for about 50 steps "
            "merely because the statistics do. batch_norm='warm' measures without that."
        ]

    def _changed_probe(self, trainer: Any) -> None:
        reason = "the probe set is another one than before the checkpoint"
        say(
            trainer,
            f"{self._who}: {reason}: numbers from here on cannot be compared with earlier ones. "
            "Resume with the same data, probe_size and seed to have one series.",
        )
        self.records.event(trainer, "probe", [""], [reason])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Measure, if a measurement is due. Collective."""
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last weights, before an averaging callback puts others in their place."""
        if ends_with_this_epoch(trainer):
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Likewise, where the end of training was not foreseen."""
        if not averages_weights(trainer):
            self._look(trainer, pl_module)

    def _look(self, trainer: Any, pl_module: Any) -> None:
        now = trainer.global_step
        if self._seen is None or now <= self._seen:
            return
        due = self.schedule.is_due(now, self._seen)
        self._seen = now
        jump = self._watch.look(trainer.optimizers)
        if jump is not None:
            self.records.event(trainer, "lr", [jump["block"]], [jump["reason"]])
        if due:
            self._measure(trainer, pl_module, now)

    def _measure(self, trainer: Any, pl_module: Any, step: int) -> None:
        probe, targets, ranks = self.probe_set, self._targets, Ranks.current()
        assert probe is not None and targets is not None
        view = self._view_of(pl_module)
        view.log = self._log
        batches = -(-probe.size // (self.probe_batch_size or probe.size)) / ranks.world
        optimizer = trainer.optimizers[0] if len(trainer.optimizers) == 1 else None
        with progress(trainer, self.name, batches * self.forwards) as view.tick:
            found = self._measured(view, probe.inputs, targets, ranks, step, optimizer)
        if not all(math.isfinite(one.value) for one in found) or not found:
            self._say_once(
                trainer,
                f"at step {step} there was no finite number to measure (a diverged model?): NaN is "
                "recorded, and training goes on.",
            )
        self._known = [(one.kind, one.block) for one in found]
        for note in self.notes(found):
            self._say_once(trainer, note)
        self._record(trainer, found, step)

    def _record(self, trainer: Any, found: list[Measurement], step: int) -> None:
        log_scalars(trainer, self.scalars(found))
        if self.records.folder is not None and found:
            self.records.folder.write(
                self.name, columns_of(found), step=step, epoch=trainer.current_epoch
            )

    def _view_of(self, pl_module: Any) -> ClassifierView:
        """The module as a classifier: one view in a run, unless each is a copy in float32."""
        assert self.probe_set is not None
        if self._view is not None and self._view.owner is pl_module:
            return self._view
        self._view = view_of(pl_module, self.probe_set.bind, self._who)
        return self._view

    def _say_once(self, trainer: Any, message: str) -> None:
        key = re.sub(r"\d+", "", message)
        if key not in self._said:
            self._said.add(key)
            say(trainer, message if message.startswith(self._who) else f"{self._who}: {message}")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the figure, by the last of the monitors that share the run folder."""
        sharing = [c for c in _monitors(trainer) if c.records.folder is self.records.folder]
        if sharing[-1] is self:
            draw_figure(trainer, self.records)
        self.records.mark("finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Say in the run folder that the run did not end by itself."""
        self.records.mark("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")


def _monitors(trainer: Any) -> list[ProbeMonitor]:
    return [callback for callback in trainer.callbacks if isinstance(callback, ProbeMonitor)]
