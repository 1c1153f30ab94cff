"""FisherTraceMonitor: how strongly predictions react to the weights, over training."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.classifier_view import ClassifierView
from firstlight.callbacks.measurements import Measurement
from firstlight.callbacks.module_blocks import blocks_of
from firstlight.callbacks.presets import settled
from firstlight.callbacks.probe import DEFAULT_SCHEDULE, ProbeMonitor
from firstlight.functional.fisher_trace import Estimator, FisherTrace, fisher_trace
from firstlight.functional.measurement_schedule import Steps
from firstlight.functional.ranks import Ranks

PRESETS: dict[str, dict[str, Any]] = {
    "2403.15210": {"probe_size": 2048, "probe_batch_size": 256, "every_n_train_steps": 10},
}


class FisherTraceMonitor(ProbeMonitor):
    """Measures the trace of the Fisher information of what is trained; changes nothing.

    Logs ``fisher_trace``, ``fisher_trace_se`` (standard error over the probe examples),
    ``fisher_trace_per_parameter`` (the normalisation of arXiv 2403.15210, which jumps when
    parameters are unfrozen) and ``fisher_trace/<block>``; the table ``fisher_trace`` holds the
    errors of the blocks too. Only parameters that require gradients count. See
    `firstlight.functional.fisher_trace`, and `ProbeMonitor` for when and on what.

    Args:
        estimator: ``importance``, ``label``, ``rademacher``, ``exact`` or ``batch``.
        blocks: ``"coarse"`` for one block per stage of the backbone, ``"fine"`` for one per
            residual block.
        preset: ``"2403.15210"``: 2,048 examples in batches of 256, every 10 steps, about twice the
            cost of training itself.
        name: of the table, and the beginning of the keys.
        every_n_train_steps: see `ProbeMonitor`; by default every 10 steps up to 500, then every
            500.
        probe_size: 256 by default.
        probe_batch_size: 32 by default.
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
        estimator: Estimator = "importance",
        blocks: Literal["coarse", "fine"] = "coarse",
        preset: str | None = None,
        name: str = "fisher_trace",
        every_n_train_steps: Steps | None = None,
        probe_size: int | None = None,
        probe_batch_size: int | None = None,
        seed: int | None = None,
        batch_norm: Literal["running", "warm"] = "running",
        probe: Any = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        if estimator not in get_args(Estimator):
            raise ValueError(
                f"estimator must be one of {', '.join(get_args(Estimator))}, not {estimator!r}"
            )
        if blocks not in ("coarse", "fine"):
            raise ValueError(f"blocks must be 'coarse' or 'fine', not {blocks!r}")
        sizes = settled(
            type(self).__name__,
            preset,
            PRESETS,
            {
                "every_n_train_steps": every_n_train_steps,
                "probe_size": probe_size,
                "probe_batch_size": probe_batch_size,
            },
            {
                "every_n_train_steps": DEFAULT_SCHEDULE,
                "probe_size": 256,
                "probe_batch_size": 32,
            },
        )
        super().__init__(
            fisher_trace,  # type: ignore[arg-type]  # called by take_measurements, with more
            name=name, seed=seed, batch_norm=batch_norm, probe=probe, run_dir=run_dir,
            adapter=adapter, **sizes,
        )  # fmt: skip
        self.estimator: Estimator = estimator
        self.blocks = blocks
        self._found: FisherTrace | None = None

    def passes(self, width: int) -> float:
        """One forward and one truncated backward pass; for ``exact`` a backward pass a class."""
        backward = width if self.estimator == "exact" else 1
        return 1 + 2 * backward + (self.batch_norm == "warm")

    def take_measurements(
        self, view: ClassifierView, inputs: Any, targets: Tensor, ranks: Ranks, optimizer: Any
    ) -> list[Measurement]:
        """Return the trace, and that of every block. Collective."""
        start = perf_counter()
        found = fisher_trace(
            view,
            inputs,
            estimator=self.estimator,
            blocks=blocks_of(view.owner, coarse=self.blocks == "coarse"),
            generator=torch.Generator().manual_seed(self._resolved_seed),
            batch_size=self.probe_batch_size or len(targets),
            ranks=ranks,
        )
        self._found = found
        total = Measurement(
            self.estimator, "", found.value, found.se, found.per_parameter, found.n,
            perf_counter() - start,
        )  # fmt: skip
        return [total] + [
            Measurement(
                self.estimator, block, value, found.block_se[block],
                value / found.block_parameters[block], found.n,
            )
            for block, value in found.blocks.items()
        ]  # fmt: skip

    def notes(self, measurements: Sequence[Measurement]) -> list[str]:
        """Say where the closed form was taken, and what took the slow path."""
        found = self._found
        notes: list[str] = []
        if found is None:
            return notes
        if found.estimator != self.estimator:
            notes.append(f"measured by the {found.estimator}: only a linear head is trained.")
        if found.slow:
            names = ", ".join(f"{name} ({why})" for name, why in list(found.slow.items())[:3])
            share = found.slow_parameters / max(found.num_parameters, 1)
            notes.append(
                f"{len(found.slow)} parameters ({share:.1%} of the numbers) are differentiated "
                f"example by example, which is slow: {names}{', ...' * (len(found.slow) > 3)}."
            )
        return notes

    def key(self, one: Measurement) -> str:
        """``<name>``, or ``<name>/<block>``."""
        return f"{self.name}/{one.block}" if one.block else self.name

    def scalars(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """The trace, its error, the trace per parameter, and every block's."""
        found = super().scalars(measurements)
        for one in measurements:
            if not one.block:
                found |= {
                    f"{self.name}_se": one.se,
                    f"{self.name}_per_parameter": one.per_parameter,
                }
        return found
