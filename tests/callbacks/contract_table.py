"""The table of the contract: every callback, in the modules of contract_modules.py.

A new callback joins by one line of CALLBACKS; the tests of test_contract.py then run over it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from firstlight.callbacks import (
    FisherTraceMonitor,
    GradualUnfreezing,
    LastLayerRetraining,
    PerClassMonitor,
    PriorCorrection,
    ProbeMonitor,
    SharpnessMonitor,
    WeightNoise,
)
from firstlight.functional import StabilityRule


@dataclass(frozen=True)
class CallbackCase:
    """A callback in its canonical configuration, and what it owes.

    Attributes:
        build: makes it, given keyword arguments over the canonical ones.
        keys: scalars that must be in callback_metrics after a fit.
        refused: bad constructor arguments, and a pattern of the message.
        table: of the run folder.
        other: arguments under which a second instance may run beside the first; None where two
            cannot be.
        steps: the steps that the table must hold, of those at which epochs ended, all that there
            were, and the number of blocks below the head.
        kind: an ``evaluator`` watches evaluations, a ``probe`` measures fixed examples in a fit,
            a ``trainer`` changes training, as it announces.
        neutral: arguments under which a trainer has nothing to change.
        any_task: whether it works beside classification too.
    """

    build: Callable[..., Any]
    keys: tuple[str, ...]
    refused: tuple[tuple[dict[str, Any], str], ...]
    table: str
    other: dict[str, Any] | None = field(default_factory=dict)
    steps: Callable[[list[int], list[int], int], list[int]] = lambda ends, every, blocks: ends
    kind: Literal["evaluator", "probe", "trainer"] = "evaluator"
    neutral: dict[str, Any] = field(default_factory=dict)
    any_task: bool = False


DUE = (0, 2, 4, 5, 10, 15, 20)
PROBE = {"every_n_train_steps": [[0, 2], [5, 5]], "probe_size": 13, "probe_batch_size": 5}


def due(ends: list[int], every: list[int], blocks: int) -> list[int]:
    """Each step of the schedule above, or the first after it where the count jumps."""
    found = [next((step for step in every if step >= wanted), None) for wanted in DUE]
    return sorted({step for step in found if step is not None})


LONGEST = 4
UNFREEZING = {
    "rule": StabilityRule(every=1, window=1, quiet=1, longest=LONGEST), "probe_size": 13,
}  # fmt: skip


def thaws(ends: list[int], every: list[int], blocks: int) -> list[int]:
    """The signal cannot settle so early: a block opens at each multiple of the longest interval."""
    interval = min(LONGEST, ends[-1] // 2 // blocks)
    first = next(step for step in every if step >= interval)
    return [step for step in every if step % first == 0][1 : blocks + 1]


def loss_and_logits(model: nn.Module, inputs: Any, targets: torch.Tensor) -> dict[str, Any]:
    """A user's measure: a number, and numbers by block."""
    logits = model(inputs)
    loss = F.cross_entropy(logits, targets)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(loss, [weights[0], weights[-1]])
    return {
        "loss": loss,
        "gradient": {"first": gradients[0].norm(), "last": float(gradients[1].norm())},
    }


_TWELVE = (
    "micro", "macro", "min", "p1", "p5", "worst_1pct", "std", "worst_class", "absent",
    "many", "medium", "few",
)  # fmt: skip

CALLBACKS: Mapping[str, CallbackCase] = {
    "PerClassMonitor": CallbackCase(
        build=lambda **kw: PerClassMonitor(**{"stages": ("train", "val", "test"), **kw}),
        keys=tuple(f"{stage}/per_class/{key}" for stage in ("train", "val") for key in _TWELVE),
        refused=(
            ({"stages": ("valid",)}, "stages must be a list of"),
            ({"stages": "val"}, "stages must be a list of"),
            ({"stages": ()}, "stages must be a list of"),
            ({"predictions_every_n_epochs": 0}, "at least 1, or None"),
            ({"worst": 0}, "worst must be at least 1"),
            ({"shot_thresholds": (100, 20)}, "0 < few <= many"),
            ({"study": {"arms": "a"}}, "known are arm, factor, strength"),
            ({"study": {"strength": "a"}}, "strength must be a finite number"),
            ({"study": {"strength": float("nan")}}, "strength must be a finite number"),
        ),
        table="per_class",
        other={"name": "second"},
    ),
    "ProbeMonitor": CallbackCase(
        build=lambda **kw: ProbeMonitor(loss_and_logits, **{**PROBE, **kw}),
        keys=("probe/loss", "probe/gradient/first", "probe/gradient/last"),
        refused=(
            ({"every_n_train_steps": 0}, "every 1 or more"),
            ({"every_n_train_steps": True}, "a number of steps"),
            ({"every_n_train_steps": [[5, 5], [0, 2]]}, "must increase"),
            ({"probe_size": 0}, "probe_size must be at least 1"),
            ({"probe_batch_size": 0}, "probe_batch_size must be at least 1"),
            ({"batch_norm": "train"}, "'running' or 'warm'"),
            ({"name": "a/b"}, "letters, digits"),
            ({"name": "events"}, "none of"),
        ),
        table="probe",
        other={"name": "second"},
        steps=due,
        kind="probe",
    ),
    "FisherTraceMonitor": CallbackCase(
        build=lambda **kw: FisherTraceMonitor(**{**PROBE, **kw}),
        keys=(
            "fisher_trace",
            "fisher_trace_se",
            "fisher_trace_per_parameter",
            "fisher_trace/stem",
            "fisher_trace/head",
        ),
        refused=(
            ({"estimator": "empirical"}, "estimator must be one of"),
            ({"blocks": "all"}, "'coarse' or 'fine'"),
            ({"preset": "2403.15210"}, "means probe_size=2048, but probe_size=13"),
            ({"preset": "2403.1521"}, "no preset"),
        ),
        table="fisher_trace",
        other={"name": "second"},
        steps=due,
        kind="probe",
    ),
    "SharpnessMonitor": CallbackCase(
        build=lambda **kw: SharpnessMonitor(**{**PROBE, "draws": 4, **kw}),
        keys=("sharpness/average", "sharpness/average_se"),
        refused=(
            ({"measures": ("max",)}, "measures must be a list of"),
            ({"measures": "average"}, "measures must be a list of"),
            ({"measures": ()}, "measures must be a list of"),
            ({"rho": 0}, "rho must be positive"),
            ({"rho": float("nan")}, "rho must be positive"),
            ({"draws": 0}, "draws must be at least 1"),
            ({"steps": 0}, "steps must be at least 1"),
            ({"noise": "cauchy"}, "'normal' or 'uniform'"),
            ({"norm": "l1"}, "'l2' or 'linf'"),
            ({"preset": "2302.07011", "draws": 15}, "means"),
        ),
        table="sharpness",
        other={"name": "second"},
        steps=due,
        kind="probe",
    ),
    "GradualUnfreezing": CallbackCase(
        build=lambda **kw: GradualUnfreezing(**{**UNFREEZING, **kw}),
        keys=("unfreezing/open_blocks", "unfreezing/trainable_parameters", "unfreezing/signal"),
        refused=(
            ({"interval": 0}, "at least 1 step"),
            ({"interval": "soon"}, "'2 epochs'.*or one of auto, pilot, random"),
            ({"interval": 2.5}, "a number of optimiser steps"),
            ({"order": "sideways"}, "order must be one of"),
            ({"schedule": [[0]]}, "schedule is a list of pairs"),
            ({"schedule": [[0, "stem"]], "interval": 5}, "takes the place of interval"),
            ({"start": -1}, "start is a block's name, or a number"),
            ({"start": True}, "start is a block's name, or a number"),
            ({"blocks": "all"}, "'coarse', 'fine', or a mapping"),
            ({"batch_norm": "frozen"}, "batch_norm must be one of auto, eval, train"),
            ({"lr_scale": 0}, "lr_scale must be above 0"),
            ({"lr_scale": float("nan")}, "lr_scale must be above 0"),
            ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
            ({"probe_size": 0}, "probe_size must be at least 1"),
        ),
        table="events",
        other=None,
        steps=thaws,
        kind="trainer",
        neutral={"start": "stem"},
    ),
    "LastLayerRetraining": CallbackCase(
        build=lambda **kw: LastLayerRetraining(**{"data": "val", "every_n_epochs": 1, **kw}),
        keys=tuple(
            f"retrain/{rule}/{measure}"
            for rule in ("before", "unweighted", "inverse_frequency", "logit_adjustment")
            for measure in ("worst", "macro", "micro", "ece", "ece_scaled", "temperature", "brier")
        ),
        refused=(
            ({"rule": "cRT"}, "unknown rule 'cRT'; there are unweighted"),
            ({"rules": ("none",)}, "unknown rule 'none'"),
            ({"rules": "unweighted"}, "a list of names"),
            ({"rule": None, "rules": ()}, "at least one"),
            ({"data": "test"}, "data must be one of holdout, val, train"),
            ({"ridge": -1}, "ridge must be"),
            ({"ridge": "LOO"}, "a number, or 'loo'"),
            ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
            ({"ckpt_path": "first"}, "'last' or 'best'"),
        ),
        table="events",
        other={"name": "second"},
        kind="trainer",
        neutral={"rule": None},
    ),
    "PriorCorrection": CallbackCase(
        build=lambda **kw: PriorCorrection(**{"data": "val", **kw}),
        keys=tuple(
            f"val/prior_corrected/{measure}"
            for measure in ("worst", "macro", "micro", "ece", "ece_scaled", "temperature", "brier")
        ),
        refused=(
            ({"data": "test"}, "data must be one of holdout, val, train"),
            ({"prior": [0.5, 0.0, 0.5]}, "prior must be finite and above 0"),
            ({"tau": float("inf")}, "tau must be finite"),
            ({"target_prior": [1.0, -1.0]}, "target_prior must be finite and above 0"),
            ({"offsets": [float("nan"), 0.0]}, "offsets must be finite"),
            ({"prior": [0.5, 0.5], "offsets": [0.0] * 3}, r"must have shape \(2,\)"),
        ),
        table="events",
        other={"name": "second"},
    ),
    "WeightNoise": CallbackCase(
        build=lambda **kw: WeightNoise(**kw),
        keys=("weight_noise/sigma",),
        refused=(
            ({"sigma": -0.1}, "sigma must be finite and 0 or more, not -0.1"),
            ({"sigma": float("nan")}, "sigma must be finite"),
            ({"sigma": []}, r"a list of \[time, sigma\]"),
            ({"sigma": [[0, 0.1], [5]]}, r"a list of \[time, sigma\].*found \[5\]"),
            ({"sigma": [["soon", 0.1]]}, "the time in sigma is a number of optimiser steps"),
            ({"mode": "layer"}, "mode must be one of round_robin, random, all"),
            ({"group_by": "block"}, "group_by must be one of matrix, tensor, module"),
            ({"scale": "relative"}, "scale must be one of rms, absolute, filter"),
            ({"noise_free": -1}, "noise_free must be 0 or more"),
            ({"noise_free": "late"}, "noise_free is a number of optimiser steps"),
            ({"returns": "noisy"}, "returns must be one of clean, perturbed"),
            ({"returns": "perturbed", "independent_ranks": True}, "choose one of them"),
            ({"batch_norm_examples": 1}, "0 or at least 2"),
            ({"preset": "2206.04613", "sigma": 0.1}, "means sigma=0.03, but sigma=0.1"),
            ({"preset": "2206.0461"}, "no preset"),
        ),
        table="events",
        other=None,
        steps=lambda ends, every, blocks: [0, ends[-1] - round(ends[-1] / 10)],
        kind="trainer",
        neutral={"sigma": 0.0},
        any_task=True,
    ),
}
