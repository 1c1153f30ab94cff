"""``firstlight measure``: the monitors' numbers, from checkpoints, after the run."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import yaml
from rich.progress import track
from rich.table import Table

from firstlight.callbacks import FisherTraceMonitor, ProbeMonitor, SharpnessMonitor
from firstlight.callbacks.measurements import Measurement, columns_of
from firstlight.callbacks.probe_set import ProbeSet, collect
from firstlight.checkpoints import Weights, find_checkpoints
from firstlight.figures import early_training_figure
from firstlight.functional.fisher_trace import Estimator
from firstlight.functional.measuring import untouched_batch_norms
from firstlight.functional.seeding import resolve_seed
from firstlight.rebuild import Offline, Restored, check_classes, restore_data, restore_module
from firstlight.runfolder import RunFolder, replacing
from firstlight.terminal import console

Measure = Literal["fisher_trace", "average", "worst_case", "lambda_max"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


class Row(NamedTuple):
    """One line of the printed table.

    Attributes:
        step: of the checkpoint.
        file: its name.
        totals: what was measured of the whole network, by name.
    """

    step: int
    file: str
    totals: dict[str, Measurement]


def measure(
    checkpoints: Sequence[str | Path],
    *,
    measures: Sequence[Measure] = ("fisher_trace", "average"),
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_args: Mapping[str, Any] | None = None,
    weights: Weights = "raw",
    probe_size: int = 256,
    estimator: Estimator = "importance",
    rho: float = 0.01,
    batch_norm: Literal["running", "warm"] = "running",
    seed: int | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Measure Fisher trace and sharpness at a run's checkpoints.

    The numbers are those that `FisherTraceMonitor` and `SharpnessMonitor` record during the run at
    the same steps with the same settings, bit for bit on the same device and number of threads.
    Tables, figure and ``run.json`` are those of a run folder.

    Args:
        checkpoints: files, and folders to be searched, of one run.
        measures: any of ``fisher_trace``, and the kinds of sharpness ``average``, ``worst_case``,
            ``lambda_max``.
        model: import path of the LightningModule; None for firstlight's own.
        model_args: constructor arguments that the checkpoints do not hold.
        data: what to take the probe set from, by default what the run was trained on; see
            `firstlight.rebuild.restore_data`.
        data_args: arguments for ``data``.
        weights: those being trained (``raw``), as the monitors measure them; their moving average
            (``ema``); the average where there is one (``auto``).
        probe_size: how many examples.
        estimator: of the Fisher trace.
        rho: size of the perturbations of average and worst-case sharpness.
        batch_norm: ``running`` or ``warm``, as in `ProbeMonitor`.
        seed: keys the probe set and all random numbers; None for the one the checkpoint names.
        device: ``cpu``, ``cuda``..., or ``auto``: a GPU if there is one.
        output: the run folder to make; default: ``measured`` beside the checkpoints' folder. Made
            unique, never overwritten.
        trust: types that the checkpoints may hold; see `firstlight.checkpoints.read_checkpoint`.

    Returns:
        The run folder.

    Raises:
        FileNotFoundError: where there is no checkpoint.
        CheckpointError: where one cannot be read, or its module or data cannot be rebuilt.
        ValueError: on an argument that cannot be right, or a model that cannot be measured.
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise ValueError(f"measures are {', '.join(MEASURES)}, not {', '.join(unknown) or 'none'}")
    found = find_checkpoints(checkpoints, trust)

    restore = partial(
        restore_module, model=model, model_args=model_args, weights=weights, trust=trust
    )
    path = found[0][1]
    first = restore(path)
    source, origin = restore_data(data, data_args, path, first.content)
    check_classes(first.module, source)
    seed = _seed_of(first.content) if seed is None else seed
    settings: dict[str, Any] = {"probe_size": probe_size, "batch_norm": batch_norm, "seed": seed}
    monitors = _monitors(measures, estimator, rho, settings)
    probe = _probe(first, source, probe_size, seed)
    _say_first(first, probe, origin, weights, batch_norm)
    place = device_of(device)
    folder = RunFolder.create(output or _beside(path), **_identity(first, source, seed))
    settings |= {"measures": list(measures), "estimator": estimator, "rho": rho,
                 "checkpoints": [str(file) for _, file in found]}  # fmt: skip
    _write_config(folder, settings)
    try:
        rows = [
            Row(step, file.name, _record(folder, restore(file), monitors, probe, step, place, file))
            for step, file in track(found, "Measuring", console=console, transient=True)
        ]
    except BaseException:
        folder.update(status="failed")
        raise
    folder.update(status="finished")
    _print(rows)
    console.print(f"The figure:     {early_training_figure(folder.path)}", soft_wrap=True)
    console.print(f"The run folder: {folder.path}", soft_wrap=True)
    return folder.path


def _monitors(
    measures: Sequence[Measure], estimator: Estimator, rho: float, settings: Mapping[str, Any]
) -> list[ProbeMonitor]:
    kinds = [name for name in MEASURES if name in measures and name != "fisher_trace"]
    monitors: list[ProbeMonitor] = []
    if "fisher_trace" in measures:
        monitors.append(FisherTraceMonitor(estimator=estimator, **settings))
    if kinds:
        monitors.append(SharpnessMonitor(measures=kinds, rho=rho, **settings))
    return monitors


def _monitor_states(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the run's own monitors left in a checkpoint."""
    kinds = (FisherTraceMonitor.__name__, SharpnessMonitor.__name__)
    callbacks = content.get("callbacks", {})
    return [state for key, state in callbacks.items() if key.startswith(kinds)]


def _seed_of(content: Mapping[str, Any]) -> int:
    """The seed that the run's monitors had, or would have had as far as its checkpoint tells."""
    seeds = [state.get("seed") for state in _monitor_states(content)]
    saved = content.get("hyper_parameters", {})
    seeds.append(saved.get("seed") if isinstance(saved, Mapping) else None)
    return resolve_seed(next((seed for seed in seeds if isinstance(seed, int)), None))


def _probe(first: Restored, source: Any, size: int, seed: int) -> ProbeSet:
    trainer = Offline(first.module, source)
    given = None if trainer.datamodule is not None else source
    return collect(trainer, first.module, given, size, seed, "firstlight measure", None)


def _say_first(
    first: Restored, probe: ProbeSet, origin: str, weights: str, batch_norm: str
) -> None:
    lines = [
        f"{probe.size} probe examples of {probe.source}, by {origin}; {first.weights} weights.",
        *probe.notes,
    ]
    if weights == "raw" and "current_model_state" in first.content:
        lines.append("the checkpoints also hold a moving average: --weights ema measures it.")
    if any(s.get("probe") not in (None, probe.fingerprint) for s in _monitor_states(first.content)):
        lines.append(
            "this is another probe set than that of the run's own monitors, so the numbers differ "
            "somewhat from theirs; give their probe_size, seed and data to have the same."
        )
    fresh = untouched_batch_norms(first.module)
    if fresh and batch_norm == "running":
        lines.append(
            f"BatchNorm's running statistics are at their start in the first checkpoint "
            f"({fresh[0]}): from there numbers move for about 50 steps merely because the "
            "statistics do. --batch_norm warm takes the statistics from the probe set."
        )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _record(
    folder: RunFolder,
    restored: Restored,
    monitors: Sequence[ProbeMonitor],
    probe: ProbeSet,
    step: int,
    device: torch.device,
    file: Path,
) -> dict[str, Measurement]:
    """Measure one checkpoint, write its rows, return the totals."""
    module = restored.module.to(device)
    totals: dict[str, Measurement] = {}
    for monitor in monitors:
        try:
            found = monitor.measured(
                module, probe.inputs, probe.targets, probe.bind(module), step=step
            )
        except RuntimeError as error:
            raise ValueError(f"{file}: {error}") from error
        if not found:  # of a diverged model
            found = [Measurement(kind, "", math.nan, n=probe.size) for kind in _kinds(monitor)]
        epoch = restored.content.get("epoch", 0)
        folder.write(monitor.name, columns_of(found), step=step, epoch=epoch)
        totals |= {
            monitor.name if isinstance(monitor, FisherTraceMonitor) else one.kind: one
            for one in found
            if not one.block
        }
    return totals


def _kinds(monitor: ProbeMonitor) -> Sequence[str]:
    if isinstance(monitor, SharpnessMonitor):
        return monitor.measures
    return [monitor.estimator] if isinstance(monitor, FisherTraceMonitor) else []


def device_of(name: str) -> torch.device:
    """Return a device by name; ``auto`` is a GPU if there is one.

    Raises:
        ValueError: where it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {error}") from error


def _beside(checkpoint: Path) -> Path:
    folder = checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "measured"


def _identity(first: Restored, source: Any, seed: int) -> dict[str, Any]:
    names = ("firstlight", "torch", "lightning", "timm")
    kind = type(source)
    return {
        "status": "running",
        "seed": seed,
        "dataset": f"{kind.__module__}.{kind.__qualname__}",
        "weights": first.weights,
        "versions": {name: version(name) for name in names},
    }


def _write_config(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    with replacing(folder.path / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump({"measure": dict(settings)}, sort_keys=False))


def _print(rows: Sequence[Row]) -> None:
    """A line for every checkpoint, a column for every quantity."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.totals))
    table = Table(box=None, header_style="bold")
    table.add_column("step", justify="right")
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    table.add_column("checkpoint", overflow="fold")
    for row in rows:
        cells = [_cell(row.totals.get(kind)) for kind in kinds]
        table.add_row(f"{row.step:,}", *cells, row.file)
    console.print(table)


def _cell(one: Measurement | None) -> str:
    if one is None:
        return "-"
    error = "" if math.isnan(one.se) else f" ± {one.se:.2g}"
    return f"{one.value:.4g}{error}"
