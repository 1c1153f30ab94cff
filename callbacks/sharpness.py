"""SharpnessMonitor: how much the loss rises when the weights move, over training."""

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal

from torch import Tensor

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.classifier_view import ClassifierView
from firstlight.callbacks.measurements import Measurement
from firstlight.callbacks.presets import settled
from firstlight.callbacks.probe import DEFAULT_SCHEDULE, ProbeMonitor
from firstlight.functional.hessian import edge_of_stability, hessian_top_eigenvalue
from firstlight.functional.measurement_schedule import Steps
from firstlight.functional.ranks import Ranks
from firstlight.functional.sharpness import average_sharpness
from firstlight.functional.worst_case import worst_case_sharpness

MEASURES = ("average", "worst_case", "lambda_max", "edge_of_stability")

PRESETS: dict[str, dict[str, Any]] = {
    "2403.15210": {
        "probe_size": 2048, "probe_batch_size": 256, "every_n_train_steps": 10,
        "rho": 0.01, "draws": 15, "steps": 15,
    },
    "2302.07011": {
        "probe_size": 1024, "probe_batch_size": 128, "rho": 0.1, "draws": 20, "steps": 20,
    },
}  # fmt: skip

_DEFAULTS = {
    "every_n_train_steps": DEFAULT_SCHEDULE,
    "probe_size": 256,
    "probe_batch_size": 256,
    "rho": 0.01,
    "draws": 15,
    "steps": 15,
}
LANCZOS_STEPS = 30


class SharpnessMonitor(ProbeMonitor):
    """Measures the sharpness of the loss around the weights; changes nothing.

    Logs ``sharpness/<measure>`` and ``sharpness/<measure>_se`` of each of ``measures``:

    - ``average``: the mean rise under random noise, see
      `firstlight.functional.average_sharpness`;
    - ``worst_case``: the rise at the worst point of a small ball, about three times the cost, see
      `firstlight.functional.worst_case_sharpness`; it depends on ``probe_batch_size``;
    - ``lambda_max``: the largest eigenvalue of the Hessian, see
      `firstlight.functional.hessian_top_eigenvalue`; the error logged is Lanczos' residual;
    - ``edge_of_stability``: lambda_max by the value at which full-batch SGD becomes unstable;
      left out, once said, where the optimiser is not a single SGD.

    The three are not interchangeable, and rho means a deviation per coordinate in the first, the
    radius of a ball in the second. Only parameters that require gradients move, and only the loss
    is cross-entropy with the probe's labels. See `ProbeMonitor` for when and on what.

    Args:
        measures: any of the above.
        rho: see above.
        noise: ``"normal"`` or ``"uniform"``, of the average.
        adaptive: scale the displacement of every weight by its size.
        draws: evaluations per batch, of the average.
        norm: ``"l2"`` or ``"linf"``, of the worst case's ball.
        steps: of the search for the worst case.
        normalize_logits: take the scale of the logits out of the loss.
        preset: ``"2403.15210"`` (2,048 examples in batches of 256, every 10 steps, rho .01; nine
            times the cost of training and more), or ``"2302.07011"`` (1,024 in batches of 128, rho
            .1, 20 draws).
        name: of the table, and the beginning of the keys.
        every_n_train_steps: see `ProbeMonitor`; by default every 10 steps up to 500, then every
            500.
        probe_size: 256 by default.
        probe_batch_size: 256 by default; each batch has noise of its own.
        seed: see `ProbeMonitor`.
        batch_norm: likewise.
        probe: likewise.
        run_dir: likewise.
        adapter: likewise.

    Raises:
        ValueError: on a bad argument, or one that contradicts the preset; otherwise as
            `ProbeMonitor`.
    """

    def __init__(
        self,
        measures: Sequence[str] = ("average",),
        rho: float | None = None,
        noise: Literal["normal", "uniform"] = "normal",
        adaptive: bool = False,
        draws: int | None = None,
        norm: Literal["l2", "linf"] = "l2",
        steps: int | None = None,
        normalize_logits: bool = False,
        preset: str | None = None,
        name: str = "sharpness",
        every_n_train_steps: Steps | None = None,
        probe_size: int | None = None,
        probe_batch_size: int | None = None,
        seed: int | None = None,
        batch_norm: Literal["running", "warm"] = "running",
        probe: Any = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        _check(measures, rho, noise, draws, norm, steps)
        given = {
            "every_n_train_steps": every_n_train_steps, "probe_size": probe_size,
            "probe_batch_size": probe_batch_size, "rho": rho, "draws": draws, "steps": steps,
        }  # fmt: skip
        values = settled(type(self).__name__, preset, PRESETS, given, _DEFAULTS)
        self.rho: float = values.pop("rho")
        self.draws: int = values.pop("draws")
        self.steps: int = values.pop("steps")
        super().__init__(
            average_sharpness,  # type: ignore[arg-type]  # called by take_measurements, with more
            name=name, seed=seed, batch_norm=batch_norm, probe=probe, run_dir=run_dir,
            adapter=adapter, **values,
        )  # fmt: skip
        self.measures = tuple(measures)
        self.noise: Literal["normal", "uniform"] = noise
        self.norm: Literal["l2", "linf"] = norm
        self.adaptive, self.normalize_logits = adaptive, normalize_logits

    def passes(self, width: int) -> float:
        """Forward and backward passes per example, as the functions state them."""
        costs: dict[str, int] = {
            "average": 1 + self.draws + 2 * (self.draws >= 3),  # a gradient, for the error
            "worst_case": 1 + 3 * self.steps,
            "lambda_max": 6 * LANCZOS_STEPS,
        }
        asked = {"lambda_max" if m == "edge_of_stability" else m for m in self.measures}
        return float(sum(costs[measure] for measure in asked) + (self.batch_norm == "warm"))

    @property
    def forwards(self) -> float:
        """How often a batch is put through the model, for the progress display."""
        hessian = {"lambda_max", "edge_of_stability"} & set(self.measures)
        return (
            (self.draws + 1) * ("average" in self.measures)
            + (self.steps + 1) * ("worst_case" in self.measures)
            + LANCZOS_STEPS * bool(hessian)
        )

    def take_measurements(
        self, view: ClassifierView, inputs: Any, targets: Tensor, ranks: Ranks, optimizer: Any
    ) -> list[Measurement]:
        """Return one number for each of the measures. Collective."""
        settings: dict[str, Any] = {
            "batch_size": self.probe_batch_size,
            "normalize_logits": self.normalize_logits,
            "ranks": ranks,
        }
        found: list[Measurement] = []
        start = perf_counter()

        def add(kind: str, value: float, se: float) -> None:
            nonlocal start
            now = perf_counter()
            found.append(Measurement(kind, "", value, se, n=len(targets), seconds=now - start))
            start = now

        if "average" in self.measures:
            average = average_sharpness(
                view, inputs, targets, rho=self.rho, noise=self.noise, adaptive=self.adaptive,
                draws=self.draws, seed=self._resolved_seed, **settings,
            )  # fmt: skip
            add("average", average.value, average.se)
        if "worst_case" in self.measures:
            worst = worst_case_sharpness(
                view, inputs, targets, rho=self.rho, norm=self.norm, adaptive=self.adaptive,
                steps=self.steps, **settings,
            )  # fmt: skip
            add("worst_case", worst.value, worst.se)
        if {"lambda_max", "edge_of_stability"} & set(self.measures):
            top = hessian_top_eigenvalue(
                view, inputs, targets, max_steps=LANCZOS_STEPS, seed=self._resolved_seed,
                **settings,
            )  # fmt: skip
            if "lambda_max" in self.measures:
                add("lambda_max", top.value, top.residual)
            ratio = None if optimizer is None else edge_of_stability(top.value, optimizer)
            if "edge_of_stability" in self.measures and ratio is not None:
                add("edge_of_stability", ratio, math.nan)
        return found

    def notes(self, measurements: Sequence[Measurement]) -> list[str]:
        """Say that the edge of stability is not known of this optimiser."""
        missing = set(self.measures) - {one.kind for one in measurements}
        if measurements and "edge_of_stability" in missing:
            return [
                "edge_of_stability is left out: it is known for a single SGD optimiser (one "
                "learning rate, no dampening), which this run does not have."
            ]
        return []

    def scalars(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Each measure and its error."""
        found = super().scalars(measurements)
        errors = {f"{self.key(one)}_se": one.se for one in measurements if not math.isnan(one.se)}
        return found | errors


def _check(
    measures: Sequence[str],
    rho: float | None,
    noise: str,
    draws: int | None,
    norm: str,
    steps: int | None,
) -> None:
    unknown = sorted(set(measures) - set(MEASURES)) if not isinstance(measures, str) else [measures]
    if unknown or not measures:
        raise ValueError(f"measures must be a list of {', '.join(MEASURES)}; got {measures!r}")
    if rho is not None and not 0 < rho < math.inf:
        raise ValueError(
            f"rho must be positive and finite, not {rho}: it says how far the weights move"
        )
    for label, count in {"draws": draws, "steps": steps}.items():
        if count is not None and count < 1:
            raise ValueError(f"{label} must be at least 1, not {count}")
    if noise not in ("normal", "uniform"):
        raise ValueError(f"noise must be 'normal' or 'uniform', not {noise!r}")
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf', not {norm!r}")
