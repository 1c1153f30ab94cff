"""WeightNoise: gradients are taken at randomly perturbed weights, updates made at clean ones."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.noise_report import opening_line
from firstlight.callbacks.presets import settled
from firstlight.callbacks.probe_set import collect
from firstlight.callbacks.records import RunRecords, log_scalars, say
from firstlight.callbacks.schedule import averages_weights, put_last, run_length
from firstlight.callbacks.strategies import refuse_sharded
from firstlight.callbacks.trained_norms import reestimate
from firstlight.functional.noise_schedule import NoiseSchedule, check_noise
from firstlight.functional.perturb_weights import (
    GroupBy,
    Mode,
    NoiseRule,
    Perturbation,
    Scale,
    noise_groups,
    perturb_weights,
)
from firstlight.functional.seeding import resolve_seed

PRESETS: dict[str, dict[str, Any]] = {
    "2206.04613": {
        "sigma": 0.03, "mode": "round_robin", "group_by": "tensor", "scale": "absolute",
        "noise_free": 0,
    },
}  # fmt: skip
_DEFAULTS = {
    "sigma": 0.1, "mode": "round_robin", "group_by": "matrix", "scale": "rms", "noise_free": "10%",
}  # fmt: skip
RETURNS = ("clean", "perturbed")


class WeightNoise(Callback):
    """Takes each gradient at weights plus Gaussian noise, and updates the clean weights.

    The explicit form of a penalty on curvature, for no pass more (arXiv 2206.04613): in every step
    one group of weights, or all, get fresh noise; see `perturb_weights` and `NoiseRule`. The
    defaults are ours; the paper's setting is a preset. Works in any LightningModule.

    The noise is a function of seed and optimiser step: the micro-batches of one update share it,
    and a resumed run draws what the first would have drawn. It lies on the weights from
    ``on_train_batch_start`` until ``on_after_backward`` (with manual optimisation: until the first
    optimiser's step), and is taken off by copying the clean weights back, so that validation,
    checkpoints, averages and other callbacks see those; to that end the callback puts itself behind
    the others. BatchNorm's statistics are updated in the perturbed pass. Parameters that are frozen
    at a step get none, and do not count among the groups.

    Records ``weight_noise/sigma``, and the event ``noise`` when sigma changes.

    Args:
        sigma: noise level, 0.1 by default, in the unit of ``scale``; or a list of times and levels,
            ``[[0, 0.3], ["2 epochs", 0.1], ["50%", 0.03]]`` (0 before the first).
        mode: ``"round_robin"``, ``"random"`` or ``"all"``.
        group_by: ``"matrix"``, ``"tensor"`` or ``"module"``.
        scale: ``"rms"``, ``"absolute"`` or ``"filter"``.
        noise_free: how long before the end noise is off, ``"10%"`` of the run by default:
            optimiser steps, ``"2 epochs"``, or 0 for never.
        preset: ``"2206.04613"``: each tensor in turn, absolute sigma .03, to the end.
        returns: ``"clean"``, or ``"perturbed"`` for Anti-PGD's weights (arXiv 2202.02831): between
            steps the module, and so validation and checkpoints, hold w = z + ξ of the clean weights
            z and the coming step's noise, which by SGD move as
            ``w <- w - η ∇L(w) + ξ_{t+1} - ξ_t``. z is the same bit for bit either way; checkpoints
            hold the clean copies beside.
        independent_ranks: each process draws noise of its own; by default all draw the same. The
            expectation is the same, the noise in the mean gradient smaller.
        batch_norm_examples: when the noise goes off, estimate the statistics of BatchNorm layers in
            training mode anew from so many training examples (one forward pass; 0: leave them).
            Every process sees the same examples, and so has the same statistics.
        seed: of the noise; default: that of ``seed_everything``.
        run_dir: the run folder, by default ``<trainer.log_dir>/firstlight``.
        adapter: for unusual batches, where BatchNorm is estimated anew; see `ProbeMonitor`.

    Raises:
        ValueError: on a bad argument, or one that contradicts the preset; when training starts, on
            a strategy that splits the module, an optimiser that evaluates several times a step, a
            module without such parameters, or times that need an unknown length of the run.
        RuntimeError: where weights are changed under the noise (by an optimiser that Lightning does
            not know of), or evaluated again without it by one that repeats its closure.
    """

    def __init__(
        self,
        sigma: float | list[Any] | None = None,
        mode: Mode | None = None,
        group_by: GroupBy | None = None,
        scale: Scale | None = None,
        noise_free: int | str | None = None,
        preset: str | None = None,
        returns: Literal["clean", "perturbed"] = "clean",
        independent_ranks: bool = False,
        batch_norm_examples: int = 0,
        seed: int | None = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        given = {"sigma": sigma, "mode": mode, "group_by": group_by, "scale": scale,
                 "noise_free": noise_free}  # fmt: skip
        values = settled(type(self).__name__, preset, PRESETS, given, _DEFAULTS)
        self.sigma, self.noise_free = values["sigma"], values["noise_free"]
        check_noise(self.sigma, self.noise_free)
        self.rule = NoiseRule(values["mode"], values["group_by"], values["scale"])
        if returns not in RETURNS:
            raise ValueError(f"returns must be one of {', '.join(RETURNS)}, not {returns!r}")
        if returns == "perturbed" and independent_ranks:
            raise ValueError(
                "returns='perturbed' with independent_ranks=True would leave each process other "
                "weights: choose one of them"
            )
        if batch_norm_examples < 0 or batch_norm_examples == 1:
            raise ValueError(
                f"batch_norm_examples must be 0 or at least 2, not {batch_norm_examples}"
            )
        self.returns, self.independent_ranks = returns, independent_ranks
        self.batch_norm_examples, self.adapter = batch_norm_examples, adapter
        self.seed = seed
        self.records = RunRecords(run_dir)
        self._forget()

    def _forget(self) -> None:
        self._restored: Mapping[str, Any] = {}
        self._used_seed: int | None = None
        self._schedule = NoiseSchedule(((0, 0.0),))
        self._sigma: float | None = None
        self._groups: dict[str, dict[str, Tensor]] = {}
        self._stride = 1
        self._noise = Perturbation()
        self._begun = False

    # ------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The seed, the last sigma, and the clean weights where the module holds perturbed ones."""
        return {
            **self.records.state_dict(),
            "seed": self._used_seed,
            "sigma": self._sigma,
            "clean": dict(self._noise.clean),
        }

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save clean weights where a checkpoint is made in mid-step, as by SLURM's signal."""
        if self.returns == "clean" and self._noise.clean:
            clean = {id(p): self._noise.clean.get(name) for name, p in pl_module.named_parameters()}
            for name, p in pl_module.named_parameters(remove_duplicate=False):
                if clean[id(p)] is not None and name in checkpoint["state_dict"]:
                    checkpoint["state_dict"][name] = clean[id(p)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.records.load_state_dict(state_dict)
        self._restored = state_dict

    # ------------------------------------------------------------- hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the fit before; refuse trainers in which this cannot be right."""
        if stage != "fit":
            return
        remedy = "Train with strategy='ddp', or on one device"
        refuse_sharded(trainer, self._who, remedy)
        if self.returns == "perturbed" and averages_weights(trainer):
            raise ValueError(
                f"{self._who}: returns='perturbed' leaves noise on the weights that another "
                "callback averages: take returns='clean', or leave the averaging out"
            )
        put_last(trainer, self)
        self.records.start()
        self._forget()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Sort the weights, announce what will happen, take up what a checkpoint left."""
        before = self._restored
        self.records.open(trainer, pl_module)
        self.records.mark("running")
        kept = before.get("seed") if self.seed is None else None
        self._used_seed = resolve_seed(self.seed) if kept is None else kept
        self._sigma = before.get("sigma")
        refuse_repeating(trainer.optimizers, self._who)
        self._schedule = NoiseSchedule.of(self.sigma, self.noise_free, run_length(trainer))
        self._groups = noise_groups(pl_module, self.rule.group_by)
        by_hand = not pl_module.automatic_optimization
        self._stride = max(len(trainer.optimizers), 1) if by_hand else 1
        say(trainer, f"{self._who}: {opening_line(self._groups, self._schedule, self.rule)}")
        if self.batch_norm_examples:  # what cannot be read shall show now
            collect(trainer, pl_module, None, 2, self._used_seed, self._who, self.adapter)
        self._take_up(dict(pl_module.named_parameters()), before.get("clean", {}))
        log_scalars(trainer, {_KEY: self._schedule.at(trainer.global_step)})
        if self.returns == "perturbed":
            self._perturb(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Lay the noise of the coming update on the weights."""
        self._noise.restore()
        self._follow(trainer, pl_module)
        self._perturb(trainer)
        self._begun = bool(self._noise.groups)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Take it off, unless an optimiser that is stepped by hand says when.

        Raises:
            RuntimeError: when a second gradient of the same step was taken without noise.
        """
        if not self._begun:
            return
        if pl_module.automatic_optimization:
            if not self._noise.clean:
                raise RuntimeError(f"{self._who}: {_REPEATED}")
            self._noise.restore()
        elif not self._noise.clean:
            rank_zero_warn(
                f"{self._who}: a backward pass after the first optimiser's step of a batch runs at "
                "clean weights; those before it ran under noise"
            )

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Take it off where there was no backward pass, or several."""
        self._noise.restore()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Take it off where there was no step either; lay on that of the next if it is to stay."""
        self._noise.restore()
        self._begun = False
        if self.returns == "perturbed":
            self._perturb(trainer)

    def on_train_epoch_end(self, *_: Any) -> None:
        """Take it off where an epoch was broken off by ``on_train_batch_start`` returning -1."""
        if self.returns == "clean":
            self._noise.restore()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Say in the run folder that the run has ended."""
        self.records.mark("finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave clean weights behind, whatever happened."""
        self.records.mark("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")
        self._noise.restore(check=False)

    @property
    def _who(self) -> str:
        return type(self).__name__

    # ------------------------------------------------------------- run

    def _perturb(self, trainer: Any) -> None:
        assert self._used_seed is not None
        step = trainer.global_step
        self._noise = perturb_weights(
            self._groups,
            self._schedule.at(step),
            step // self._stride,  # by hand each optimiser's step is counted
            self.rule,
            seed=self._used_seed,
            rank=trainer.global_rank if self.independent_ranks else None,
        )

    def _follow(self, trainer: Any, pl_module: Any) -> None:
        """Say when sigma changes; the weights are clean."""
        now, before = self._schedule.at(trainer.global_step), self._sigma
        if now == before:
            return
        self._sigma = now
        reason = f"sigma {now:g}" if before is None else f"sigma {before:g} -> {now:g}"
        if before and not now and self.batch_norm_examples:
            assert self._used_seed is not None
            used = reestimate(
                trainer, pl_module, self.batch_norm_examples, self._used_seed, self._who,
                self.adapter,
            )  # fmt: skip
            reason += f"; {used}"
            say(trainer, f"{self._who}: at step {trainer.global_step}, {reason}.")
        log_scalars(trainer, {_KEY: now})
        self.records.event(trainer, "noise", [""], [reason])

    @staticmethod
    @torch.no_grad()
    def _take_up(parameters: Mapping[str, Tensor], clean: Mapping[str, Tensor]) -> None:
        for name, value in clean.items():
            if name not in parameters:
                raise ValueError(
                    f"the checkpoint holds clean weights of {name}, which the module does not "
                    "have: resume with the module of the first run"
                )
            parameters[name].copy_(value)


_KEY = "weight_noise/sigma"
_REPEATED = (
    "the optimiser asked for a second gradient in one step, which would be taken without the noise "
    "of the first. Take an optimiser that evaluates once a step (not LBFGS, nor SAM by closures)"
)


def refuse_repeating(optimizers: Any, who: str) -> None:
    """Refuse torch's optimiser that evaluates its closure several times a step.

    Raises:
        ValueError: naming it.
    """
    if any(kind.__name__ == "LBFGS" for one in optimizers for kind in type(one).__mro__):
        raise ValueError(f"{who} cannot be used with LBFGS: {_REPEATED}")
