"""Do torch's learning-rate schedulers run through a thaw, with the rates they would have had?

Run by benchmarks/unfreezing.py. Six epochs of four updates; blocks open at the epochs 1, 2, 3.
Before every update the rate of every parameter that requires a gradient is looked up by its name,
and compared with the rate it has at that update in a run without callback.
"""

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as L
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers
from unfreezing_contestants import (
    LR,
    NONE,
    SCHEDULER,
    Batches,
    callbacks_of,
    first_line,
    plan_of,
    quiet,
    small,
    trainer,
)

STEPS, EPOCHS = 4, 6
Rates = list[dict[str, float]]


def _every(interval: str, build: Callable[[Optimizer], Any]) -> Callable[[Optimizer], Any]:
    return lambda optimizer: {"scheduler": build(optimizer), "interval": interval}


def _epochs(kind: str, **arguments: Any) -> Callable[[Optimizer], Any]:
    return _every("epoch", lambda o: getattr(torch_schedulers, kind)(o, **arguments))


def _steps(kind: str, **arguments: Any) -> Callable[[Optimizer], Any]:
    return _every("step", lambda o: getattr(torch_schedulers, kind)(o, **arguments))


def _sequential(o: Optimizer) -> Any:
    first = torch_schedulers.LinearLR(o, 0.5, total_iters=2)
    return torch_schedulers.SequentialLR(o, [first, torch_schedulers.ExponentialLR(o, 0.8)], [2])


def _chained(o: Optimizer) -> Any:
    first = torch_schedulers.ConstantLR(o, 0.5, total_iters=4)
    return torch_schedulers.ChainedScheduler([first, torch_schedulers.ExponentialLR(o, 0.8)], o)


def _plateau(o: Optimizer) -> Any:
    scheduler = torch_schedulers.ReduceLROnPlateau(o, factor=0.5, patience=0)
    return {"scheduler": scheduler, "monitor": "plateau"}


SCHEDULERS: Mapping[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": _epochs("LambdaLR", lr_lambda=lambda epoch: 0.8**epoch),
    "MultiplicativeLR": _epochs("MultiplicativeLR", lr_lambda=lambda epoch: 0.8),
    "StepLR": _epochs("StepLR", step_size=1, gamma=0.5),
    "MultiStepLR": _epochs("MultiStepLR", milestones=[1, 3], gamma=0.5),
    "ConstantLR": _epochs("ConstantLR", factor=0.5, total_iters=4),
    "LinearLR": _epochs("LinearLR", start_factor=0.5, total_iters=5),
    "ExponentialLR": _epochs("ExponentialLR", gamma=0.8),
    "CosineAnnealingLR": _epochs("CosineAnnealingLR", T_max=EPOCHS),
    "PolynomialLR": _epochs("PolynomialLR", total_iters=EPOCHS),
    "CyclicLR": _steps("CyclicLR", base_lr=LR / 5, max_lr=LR, step_size_up=5),
    "OneCycleLR": _steps("OneCycleLR", max_lr=LR, total_steps=EPOCHS * STEPS),
    "CosineAnnealingWarmRestarts": _epochs("CosineAnnealingWarmRestarts", T_0=2),
    "SequentialLR": _every("epoch", _sequential),
    "ChainedScheduler": _every("epoch", _chained),
    "ReduceLROnPlateau": _plateau,
}


class Rated(L.Callback):
    """Keeps the rate with which each trainable parameter is about to be updated."""

    def __init__(self) -> None:
        self.seen: Rates = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """By the parameter's name; a trainable one in no group is not updated at all."""
        rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
        wanted = [(n, p) for n, p in pl_module.named_parameters() if p.requires_grad]
        self.seen.append({name: rates.get(id(p), 0.0) for name, p in wanted})


def rates_of(contestant: str, scheduler: str, **options: Any) -> Rates:
    """Train with a scheduler."""
    module, rated = small(contestant, scheduler=SCHEDULERS[scheduler]), Rated()
    with quiet() as folder:
        callbacks = [*callbacks_of(contestant, plan_of(module, STEPS), **options), rated]
        trainer(folder, callbacks, EPOCHS).fit(module, Batches(STEPS, 8))
    return rated.seen


def judged(contestant: str, scheduler: str, wanted: Rates, **options: Any) -> str:
    """Nothing when the run completes with the rates wanted; otherwise what is wrong."""
    try:
        found = rates_of(contestant, scheduler, **options)
    except Exception as error:  # whatever a contestant raises is its result
        return first_line(error)
    factors = [
        rate / want[name] if want[name] else float("inf") * rate
        for want, have in zip(wanted, found, strict=True)
        for name, rate in have.items()
        if abs(rate - want[name]) > 1e-9
    ]
    return f"rates wrong by x{min(factors):.2g} to x{max(factors):.2g}" if factors else ""


def summary(wrong: Mapping[str, str]) -> str:
    """How many schedulers come out right, and which do not."""
    kinds: dict[str, list[str]] = {}
    for name, what in wrong.items():
        if what:
            kinds.setdefault(what, []).append(name)
    count = sum(not what for what in wrong.values())
    failures = [f"{', '.join(names)}: {what}" for what, names in kinds.items()]
    return "; ".join([f"{count} of {len(SCHEDULERS)} right", *failures])


def phases_by_hand(scheduler: str, wanted: Rates) -> str:
    """finetuning-scheduler with each phase's rate written into the schedule: the best that works.

    The rate that is right when the phase begins, or the first one; lambdas applied or not.
    """
    begin = [wanted[epoch * STEPS]["head.weight"] for epoch in (1, 2, 3)]
    wrong = ""
    for applied in (True, False):
        for rates in ([], begin):
            options = {"apply_lambdas_new_pgs": applied, "allow_untested": True, "rates": rates}
            wrong = judged(SCHEDULER, scheduler, wanted, **options)
            if not wrong:
                return ""
    return wrong


def findings(contestant: str, rounds: int) -> dict[str, str]:
    """What the table shows of a contestant."""
    wanted = {name: rates_of(NONE, name) for name in SCHEDULERS}
    options = {}
    if contestant == SCHEDULER:
        options = {"apply_lambdas_new_pgs": True, "allow_untested": True}
    found = summary({name: judged(contestant, name, wanted[name], **options) for name in wanted})
    if contestant == SCHEDULER:
        best = summary({name: phases_by_hand(name, wanted[name]) for name in wanted})
        found = f"one rate for all phases: {found}. Each phase's rate written by hand: {best}"
    return {"schedulers through a thaw, with the rates of a run without callback": found}
