"""What a ProbeMonitor says: its opening line, its progress, and the figure at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress

from firstlight.callbacks.records import RunRecords, console, say
from firstlight.callbacks.schedule import examples_per_step, planned_steps
from firstlight.functional.measurement_schedule import MeasurementSchedule

LONG = 50
"""Batches in one measurement from which on its progress is shown."""

_DRAWN = ("fisher_trace", "sharpness")


def training_share(
    passes: float, examples: int, schedule: MeasurementSchedule, steps: int, step_size: int
) -> float:
    """Return the passes of a run's measurements by those of its training.

    A forward pass over an example counts 1, a backward pass 2.

    Args:
        passes: of a measurement, per example.
        examples: in the probe set.
        schedule: when it is measured.
        steps: of the run.
        step_size: examples in a training step.

    Example:
        >>> training_share(3, 256, MeasurementSchedule.parse(100), 10_000, 128)
        0.0202
    """
    return passes * examples * schedule.count(steps) / (3 * step_size * steps)


def opening_line(
    trainer: Any, who: str, name: str, schedule: MeasurementSchedule, examples: str, size: int,
    passes: float,
) -> str:  # fmt: skip
    """Say what will be measured, when, on what, and the share of training compute it costs."""
    steps, step_size = planned_steps(trainer), examples_per_step(trainer)
    line = f"{who} measures {name} on {size} examples of {examples}, {schedule}"
    if steps is not None:
        line += f": {schedule.count(steps)} times in this run of {steps} steps"
    line += f"; each costs {passes:.3g} passes over them (a forward is 1, a backward 2)"
    if steps and step_size:
        share = training_share(passes, size, schedule, steps, step_size)
        return f"{line}, together {100 * share:.3g} % of the training's."
    if step_size:
        return f"{line}, as much as {passes * size / (3 * step_size):.2g} training steps."
    return f"{line}."


@contextmanager
def progress(trainer: Any, label: str, batches: float) -> Iterator[Callable[[], None]]:
    """Yield what to call after each batch; shows a bar on the first rank if there are many.

    Nothing is shown where the trainer's own progress bar is switched off.
    """
    own = trainer.progress_bar_callback
    wanted = own is not None and not getattr(own, "is_disabled", False)
    if batches <= LONG or not trainer.is_global_zero or not wanted:
        yield lambda: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(label, total=batches)
        yield lambda: bar.advance(task)


def draw_figure(trainer: Any, records: RunRecords) -> None:
    """Draw the run's curves of early training, on the first rank, if there are any."""
    folder = records.folder
    if folder is None or not any(folder.read(table).num_rows for table in _DRAWN):
        return
    try:
        from firstlight.figures import early_training_figure
    except ImportError as error:
        say(trainer, f"No figure of early training is drawn: {error}. Install matplotlib for it.")
        return
    say(trainer, f"Early training: {early_training_figure(folder.path)}")
