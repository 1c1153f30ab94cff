"""GradualUnfreezing: train the head first, then release one block after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any, Literal

from lightning.pytorch import Callback

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.frozen_blocks import BatchNormMode, FrozenBlocks
from firstlight.callbacks.gradient_watch import GradientWatch
from firstlight.callbacks.module_blocks import blocks_of
from firstlight.callbacks.records import RunRecords, log_scalars, say
from firstlight.callbacks.schedule import run_length
from firstlight.callbacks.strategies import (
    follow_requires_grad,
    refuse_sharded,
    refuse_static_graph,
)
from firstlight.callbacks.unfreezing_checks import (
    check_arguments,
    check_end,
    check_optimizers,
    check_resumed,
    refuse_others,
)
from firstlight.callbacks.unfreezing_pilot import HeadPilot, run_pilot
from firstlight.callbacks.unfreezing_plan import (
    bounded,
    openings_every,
    starting_blocks,
    timetable,
)
from firstlight.callbacks.unfreezing_signals import Signal, signal_of
from firstlight.callbacks.update_scale import Factors, UpdateScale, grown, refuse_unscalable
from firstlight.functional.seeding import resolve_seed
from firstlight.functional.unfreezing_interval import StabilityRule, UnfreezingInterval
from firstlight.functional.unfreezing_schedule import (
    Opening,
    Order,
    RunLength,
    opening_order,
    random_interval,
    regular_openings,
    scheduled_openings,
)


class GradualUnfreezing(Callback):
    """Trains the head first and thaws the other blocks one by one (arXiv 2403.15210, 1801.06146).

    Works in any LightningModule: blocks are those of `parameter_blocks`, from the stem to the head.
    Which blocks are open is a function of ``global_step``, the arguments and one recorded decision,
    applied before every batch. Hence it is the same on every rank and after every resume. Every
    parameter has to be in the optimiser from the start (build it over all of them: the callback
    freezes afterwards); neither groups nor rates nor schedulers are touched. Frozen parameters have
    no gradient, so that no momentum, no weight decay and no clipping sees them; Adam's moments of a
    block begin when it thaws. The backward pass ends at the lowest open block, and under
    ``strategy="ddp"`` the wrapper is made anew at each thaw, without which processes drift apart.
    After the fit all is trainable again as it was.

    What is outside the backbone (a loss with parameters) and what the user froze are left alone.

    Records ``unfreezing/open_blocks`` and ``unfreezing/trainable_parameters``, the event ``thaw``
    with block, reason and number, and while it watches, the table ``unfreezing_signal``.

    Args:
        interval: optimiser steps from one thaw to the next: a number k (by the published loop the
            first block opens before step k), ``"2 epochs"`` or ``"10%"`` of the run (open after so
            long), ``"random"`` (1 to the rule's longest: the paper's control), ``"auto"`` (the
            first block opens when the signal has settled, the others follow at that interval), or
            ``"pilot"`` (train the head alone as long as the longest interval, judge the whole
            signal, and start again from the same weights; one process).
        order: ``"top-down"``, ``"bottom-up"`` or ``"random"``.
        schedule: instead of both, pairs of a time and what opens then:
            ``[[100, layer4], ["2 epochs", [layer3, layer2]]]``; unnamed blocks stay frozen, and
            with ``[]`` all do: a linear probe.
        start: what trains from the first step: the head and so many blocks below it, or the block
            of that name and all above.
        blocks: ``"coarse"`` (stages), ``"fine"`` (residual blocks), or a mapping of names to
            regular expressions or lists of module paths, see `parameter_blocks`.
        batch_norm: of frozen blocks, see `FrozenBlocks`: ``"auto"``, ``"eval"``, ``"train"`` or
            ``"train_affine"``.
        lr_scale: what updates of thawed blocks are multiplied by, for good; see `UpdateScale`.
        warmup_steps: over which updates of a thawed block grow from zero.
        signal: ``fisher_trace`` (a forward pass over the probe while only a linear head trains),
            ``average_sharpness``, ``worst_case_sharpness``, or any key of ``callback_metrics``.
        rule: when a signal has settled. The longest interval is also bounded by half the run over
            the number of blocks, and then sampled more often, see `bounded`.
        probe: examples to measure the signal on, see `ProbeMonitor`.
        probe_size: how many.
        seed: of the random order, the random interval and the probe.
        run_dir: the run folder, by default ``<trainer.log_dir>/firstlight``.
        adapter: for unusual batches, see `ProbeMonitor`.

    Raises:
        ValueError: on a bad argument; when training starts, on strategies that split the module, a
            ``static_graph``, another unfreezing callback, blocks that no optimiser holds, a last
            opening after the end of training (with an interval that fits), a pilot on several
            processes, or a checkpoint of another plan.
        RuntimeError: when no gradient has reached a thawed block after some updates.
    """

    def __init__(
        self,
        interval: int | str = "auto",
        order: Order = "top-down",
        schedule: list[Any] | None = None,
        start: int | str = 0,
        blocks: Literal["coarse", "fine"] | dict[str, Any] | list[str] = "coarse",
        batch_norm: BatchNormMode = "auto",
        lr_scale: float = 1.0,
        warmup_steps: int = 0,
        signal: str = "fisher_trace",
        rule: StabilityRule | None = None,
        probe: Any = None,
        probe_size: int = 256,
        seed: int | None = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        check_arguments(locals())
        self.interval, self.order, self.schedule = interval, order, schedule
        self.start, self.blocks, self.batch_norm = start, blocks, batch_norm
        self.lr_scale, self.warmup_steps = lr_scale, warmup_steps
        self.signal, self.rule = signal, rule or StabilityRule()
        self.probe, self.probe_size, self.adapter = probe, probe_size, adapter
        self.seed = seed
        self.records = RunRecords(run_dir)
        self._scale = UpdateScale()
        self._forget()

    def _forget(self) -> None:
        self._restored: Mapping[str, Any] = {}
        self._frozen: FrozenBlocks | None = None
        self._watched: Signal | None = None
        self._gradients = GradientWatch()
        self._start: list[str] = []
        self._order: list[str] = []
        self._openings: list[Opening] = []
        self._opened: dict[str, int] = {}
        self._decision: UnfreezingInterval | None = None
        self._used_seed: int | None = None
        self._bounded = self.rule

    # ------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The plan, what was opened when, the decision, and the signal so far."""
        return {
            **self.records.state_dict(),
            "seed": self._used_seed,
            "moving": None if self._frozen is None else self._frozen.moving,
            "plan": self._plan(),
            "opened": dict(self._opened),
            "decision": self._decision and list(astuple(self._decision)),
            "openings": [list(astuple(one)) for one in self._openings],
            "signal": self._watched and self._watched.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was decided and opened before."""
        self.records.load_state_dict(state_dict)
        self._restored = state_dict

    def _plan(self) -> dict[str, Any] | None:
        """What a resumed run must not change; None before there is a plan."""
        if self._frozen is None:
            return None
        plan = {"blocks": self._frozen.sizes, "start": self._start, "order": self._order}
        return plan | {"rule": list(astuple(self._bounded)) if self._waiting else None}

    # ------------------------------------------------------------- hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the fit before; refuse trainers in which this cannot be right."""
        if stage != "fit":
            return
        refuse_sharded(trainer, self._who, "Train with strategy='ddp', or on one device")
        refuse_static_graph(trainer, self._who)
        refuse_others(trainer, self)
        self.records.start()
        self._forget()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the plan, announce it, freeze."""
        before = self._restored
        self.records.open(trainer, pl_module)
        self.records.mark("running")
        kept = before.get("seed") if self.seed is None else None
        self._used_seed = resolve_seed(self.seed) if kept is None else kept
        self._frozen = frozen = self._freezing(pl_module, before.get("moving"))
        check_optimizers(trainer, pl_module, frozen.blocks, self._who)
        if self.lr_scale != 1 or self.warmup_steps:
            refuse_unscalable(trainer.optimizers, self._who)
            self._scale.attach(trainer.optimizers)
        self._start = starting_blocks(list(frozen.blocks), self.start, self._who)
        below = [block for block in frozen.blocks if block not in self._start]
        self._order = opening_order(below, self.order, self._used_seed)
        self._opened = dict(before.get("opened", {}))
        length = run_length(trainer)
        self._bounded = bounded(self.rule, len(self._order), length)
        self._openings = self._planned(trainer, pl_module, length)
        if before:
            check_resumed(before, self._plan() or {}, self._openings, self._who)
        if not trainer.fast_dev_run:
            check_end(self._openings, length.steps, self._who)
        sizes, waiting = frozen.sizes, self._waiting
        plan = timetable(self._start, self._openings, self._order, length, sizes, waiting)
        say(trainer, f"{self._who}: {plan}")
        if frozen.apply(self._open):
            follow_requires_grad(trainer)
        self._log(trainer, frozen)
        if self._waiting:
            self._watch(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Look at the signal, and open what is due before the next update."""
        step, frozen = trainer.global_step, self._frozen
        assert frozen is not None
        if self._waiting:
            self._decide(trainer, pl_module, step)
        due = [one for one in self._openings if one.step <= step and one.block not in self._opened]
        if due:
            self._thaw(trainer, frozen, due, step)
        frozen.keep_modes(self._open)
        self._scale.set(self._factors(frozen, step))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """See whether gradients reach what was thawed."""
        self._gradients.look()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Refuse to go on where none do."""
        self._gradients.check(trainer.global_step, self._who)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Say in the run folder that the run has ended; leave all as trainable as it was."""
        self.records.mark("finished")
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Likewise, where it did not end by itself."""
        self.records.mark("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")
        self._release()

    def _release(self) -> None:
        self._scale.detach()
        if self._frozen is not None:
            self._frozen.release()

    @property
    def _who(self) -> str:
        return type(self).__name__

    @property
    def _open(self) -> set[str]:
        return {*self._start, *self._opened}

    @property
    def _waiting(self) -> bool:
        """Whether the interval is to be found in the run, and has not been found yet."""
        automatic = self.interval == "auto" and self.schedule is None
        return automatic and self._decision is None and bool(self._order)

    # ------------------------------------------------------------- plan

    def _freezing(self, pl_module: Any, moving: Sequence[str] | None = None) -> FrozenBlocks:
        given = None if isinstance(self.blocks, str) else self.blocks
        blocks = blocks_of(pl_module, coarse=self.blocks == "coarse", given=given)
        return FrozenBlocks(pl_module, blocks, self.batch_norm, moving)

    def _planned(self, trainer: Any, pl_module: Any, length: RunLength) -> list[Opening]:
        """What opens when; nothing yet where that is found in the run."""
        if not self._order:
            return []
        if self.schedule is not None:
            return scheduled_openings(self.schedule, self._order, length)
        if self._restored.get("decision"):
            self._decision = UnfreezingInterval(*self._restored["decision"])
            return [Opening(*one) for one in self._restored["openings"]]
        if self.interval == "auto":
            return []
        interval, reason = self.interval, f"interval {self.interval}"
        if self.interval == "random":
            assert self._used_seed is not None
            interval = random_interval(self._bounded.longest, self._used_seed)
            reason = f"random interval of 1 to {self._bounded.longest}"
        elif self.interval == "pilot":
            self._decision = self._piloted(trainer, pl_module)
            interval, reason = self._decision.steps, f"pilot: {self._decision.reason}"
        return openings_every(self._order, interval, length, reason)

    def _piloted(self, trainer: Any, pl_module: Any) -> UnfreezingInterval:
        assert self._used_seed is not None
        pilot = HeadPilot(self._freezing, self._start, self._signal, self._bounded.longest)
        return run_pilot(trainer, pl_module, pilot, self._bounded, self._used_seed, self._who)

    def _signal(self, pl_module: Any, records: RunRecords | None = None) -> Signal:
        return signal_of(
            self.signal, self._who, self._bounded, pl_module, probe=self.probe,
            probe_size=self.probe_size, seed=self._used_seed, adapter=self.adapter, records=records,
        )  # fmt: skip

    def _watch(self, trainer: Any, pl_module: Any) -> None:
        self._watched = self._signal(pl_module, self.records)
        before = self._restored.get("signal")
        if before:
            self._watched.load_state_dict(before)
        self._watched.on_train_start(trainer, pl_module)

    # ------------------------------------------------------------- run

    def _decide(self, trainer: Any, pl_module: Any, step: int) -> None:
        """Look at the signal, and choose the interval if it has settled. Collective."""
        assert self._watched is not None
        found = self._watched.decide(trainer, pl_module, step)
        if found is not None:
            self._decision = found
            reason = f"{self.signal}: {found.reason}"
            self._openings = regular_openings(self._order, step, step, reason)
            say(
                trainer, f"{self._who}: at step {step}, {reason}; a block opens every {step} steps."
            )

    def _thaw(self, trainer: Any, frozen: FrozenBlocks, due: Sequence[Opening], step: int) -> None:
        blocks = [one.block for one in due]
        self._opened |= dict.fromkeys(blocks, step)
        if frozen.apply(self._open):
            follow_requires_grad(trainer)
        self._gradients.expect({block: frozen.blocks[block] for block in blocks}, step)
        self._log(trainer, frozen)
        reasons = [one.reason for one in due]
        self.records.event(trainer, "thaw", blocks, reasons, frozen.trainable())

    def _factors(self, frozen: FrozenBlocks, step: int) -> Factors:
        factors: Factors = {}
        for block, opened in self._opened.items():
            factor = grown(self.lr_scale, self.warmup_steps, step - opened)
            factors.setdefault(factor, []).extend(frozen.blocks[block])
        return factors

    def _log(self, trainer: Any, frozen: FrozenBlocks) -> None:
        numbers = {"open_blocks": len(self._open), "trainable_parameters": frozen.trainable()}
        log_scalars(trainer, {f"unfreezing/{key}": float(n) for key, n in numbers.items()})
