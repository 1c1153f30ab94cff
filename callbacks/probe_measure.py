"""Measuring a module on fixed examples: any function, in a run or after it."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Literal

from torch import Tensor, nn

from firstlight.callbacks.batches import BatchError
from firstlight.callbacks.classifier_view import ClassifierView, borrowed, view_of
from firstlight.callbacks.measurements import Flat, Measurement, flattened, mean_over_examples
from firstlight.callbacks.probe_set import checked_targets, plain_pair
from firstlight.callbacks.records import keyed_random_states
from firstlight.functional.measuring import batches_of, batches_of_two, take, warm_batch_norm
from firstlight.functional.ranks import ALONE, Ranks, gather_or_raise
from firstlight.functional.seeding import resolve_seed
from firstlight.runfolder import TABLES

Measure = Callable[[nn.Module, Any, Tensor], Mapping[str, Any]]


class ProbeMeasure:
    """A measure and how it is taken; `ProbeMonitor` says when. See there for the arguments."""

    def __init__(
        self,
        measure: Measure,
        name: str,
        probe_batch_size: int | None,
        seed: int | None,
        batch_norm: Literal["running", "warm"],
    ) -> None:
        if not callable(measure):
            raise ValueError(f"measure must be a function, not {type(measure).__name__}")
        if not re.fullmatch(r"\w+", name) or name in {*TABLES, "classes"}:
            raise ValueError(
                "name is a table of the run folder: letters, digits and '_' only, and none of "
                f"{', '.join((*TABLES, 'classes'))}; got {name!r}"
            )
        if probe_batch_size is not None and probe_batch_size < 1:
            raise ValueError(
                f"probe_batch_size must be at least 1, or None for all, not {probe_batch_size}"
            )
        if batch_norm not in ("running", "warm"):
            raise ValueError(f"batch_norm must be 'running' or 'warm', not {batch_norm!r}")
        self.measure = measure
        self.name = name
        self.probe_batch_size = probe_batch_size
        self.seed = seed
        self.batch_norm = batch_norm
        self._used_seed: int | None = None
        self._known: list[tuple[str, str]] = []

    # What a subclass says of its measure.

    def passes(self, width: int) -> float:
        """What a measurement costs per example: 1 a forward, 2 a backward pass.

        Args:
            width: number of classes.
        """
        return 3.0 + (self.batch_norm == "warm")

    @property
    def forwards(self) -> float:
        """How often a batch is put through the model, for the progress display."""
        return 1.0

    def key(self, one: Measurement) -> str:
        """The key of a measurement for loggers and ``callback_metrics``."""
        return "/".join(part for part in (self.name, one.kind, one.block) if part)

    def scalars(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """What loggers get."""
        return {self.key(one): one.value for one in measurements}

    def take_measurements(
        self, view: ClassifierView, inputs: Any, targets: Tensor, ranks: Ranks, optimizer: Any
    ) -> list[Measurement]:
        """Measure; the module is borrowed, and put back by the caller. Collective.

        Args:
            view: the module as a classifier.
            inputs: of all examples, on the CPU.
            targets: on the module's device.
            ranks: who shares the work.
            optimizer: of the run, or None.
        """
        start, count = perf_counter(), len(targets)
        batches = batches_of(count, self.probe_batch_size or count)
        parts: dict[int, Flat] = {}
        error = None
        try:
            for number, rows in ranks.share(batches):
                parts[number] = self._call(view, take(inputs, rows), targets[rows], number)
        except Exception as caught:
            error = caught
        found = gather_or_raise(ranks, parts, error)
        means = mean_over_examples(found, [b.stop - b.start for b in batches], self._who)
        seconds = perf_counter() - start
        return [
            Measurement(kind, block, value, n=count, seconds=math.nan if block else seconds)
            for (kind, block), value in means.items()
        ]

    def _call(self, view: ClassifierView, inputs: Any, targets: Tensor, number: int) -> Flat:
        device = targets.device
        with (
            borrowed(view.owner, ALONE, weights=True),
            keyed_random_states(self._resolved_seed, number, device=device),
        ):
            return flattened(self.measure(view, view.placed(inputs), targets), self._who)

    def notes(self, measurements: Sequence[Measurement]) -> list[str]:
        """Sentences that the user should read once."""
        return []

    # Measuring, in a run or after it.

    def measured(
        self,
        pl_module: nn.Module,
        inputs: Any,
        targets: Tensor,
        forward: Callable[[Any], Any] | None = None,
        ranks: Ranks = ALONE,
        step: int = 0,
        optimizer: Any = None,
    ) -> list[Measurement]:
        """Measure a module without a trainer, as a run at its weights would have.

        Args:
            pl_module: the LightningModule, or any classifier. It is left as it was.
            inputs: a tensor or any nesting of tensors, examples along the first axis; a mapping is
                passed as keyword arguments.
            targets: class indices (n,) or probabilities (n, C).
            forward: maps inputs to the module's output; None for the module itself.
            ranks: processes that share the work; all get all examples.
            step: named in errors.
            optimizer: where a measure needs one.

        Raises:
            ValueError: where the measure fails; see the class for what is recorded as NaN.
            BatchError: where the module is no classifier.
        """

        def bind(module: Any) -> Any:
            return forward or plain_pair(module, (inputs, targets))[2]

        view = view_of(pl_module, bind, self._who)
        targets = checked_targets(view, inputs, targets)[0]
        return self._measured(view, inputs, targets, ranks, step, optimizer)

    def _measured(
        self,
        view: ClassifierView,
        inputs: Any,
        targets: Tensor,
        ranks: Ranks,
        step: int,
        optimizer: Any,
    ) -> list[Measurement]:
        view.diverged = False
        device = next((p.device for p in view.parameters()), targets.device)
        try:
            with (
                borrowed(view.owner, ranks, weights=False),
                keyed_random_states(self._resolved_seed, device=device),
                self._normalised(view, inputs, len(targets)),
            ):
                return self.take_measurements(view, inputs, targets.to(device), ranks, optimizer)
        except BatchError:
            raise
        except Exception as error:
            if any(ranks.gather({ranks.rank: view.diverged})):
                return [Measurement(*key, math.nan, n=len(targets)) for key in self._known]
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            raise kind(f"{self._who} could not measure at step {step}: {error}") from error

    @contextmanager
    def _normalised(self, view: ClassifierView, inputs: Any, count: int) -> Iterator[None]:
        """Inside, BatchNorm's statistics are the probe set's, where that was asked for."""
        if self.batch_norm == "running":
            yield
            return
        rows = batches_of_two(count, self.probe_batch_size or count)
        with warm_batch_norm(view, [take(inputs, batch) for batch in rows]):
            yield

    @property
    def _who(self) -> str:
        return type(self).__name__

    @property
    def _resolved_seed(self) -> int:
        return resolve_seed(self.seed) if self._used_seed is None else self._used_seed
