"""What a run folder's tables say about early training, as arrays over steps."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.runfolder import TABLES, RunFolder

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One measured quantity over the run.

    Attributes:
        steps: optimiser updates before each measurement, increasing.
        values: what was measured; NaN where that is no finite number.
        errors: its standard errors; NaN where unknown.
        examples: most examples behind one value; 0 where unknown.
    """

    steps: Floats
    values: Floats
    errors: Floats
    examples: int

    @property
    def finite(self) -> "Series":
        """The measurements that are numbers."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep], self.errors[keep], self.examples)


def measured_tables(folder: RunFolder) -> list[str]:
    """Names of the run's tables that hold measurements (schema `MEASURE`)."""
    parts = folder.path.glob("*/[0-9]*.parquet")
    return sorted({file.parent.name for file in parts} - set(TABLES))


def read_series(folder: RunFolder, table: str) -> dict[str, dict[str, Series]]:
    """Return a table's quantities by kind, then by block from stem to head; "" is the total."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in folder.read(table).to_pylist():
        kinds.setdefault(row["kind"] or "", []).append({**row, "block": row["block"] or ""})
    return {
        kind: {name: _series([r for r in rows if r["block"] == name]) for name in _in_order(rows)}
        for kind, rows in kinds.items()
    }


def _in_order(rows: list[dict[str, Any]]) -> list[str]:
    """Blocks in the order of every step's rows; one that thaws late takes its place among them."""
    order: list[str] = []
    for _, measured in groupby(rows, key=lambda row: row["step"]):
        above = None
        for name in reversed([row["block"] for row in measured]):
            if name not in order:
                order.insert(len(order) if above is None else order.index(above), name)
            above = name
    return order


def _series(rows: list[dict[str, Any]]) -> Series:
    rows = sorted(rows, key=lambda row: row["step"])
    return Series(
        np.array([row["step"] for row in rows], float),
        _numbers([row["value"] for row in rows]),
        _numbers([row["se"] for row in rows]),
        max(row["n"] or 0 for row in rows),
    )


def _numbers(column: list[float | None]) -> Floats:
    """As an array; what is missing or infinite is NaN, since no axis shows it."""
    values = np.array(column, float)
    return np.where(np.isfinite(values), values, np.nan)


def aligned(series: dict[str, Series], steps: Floats) -> Floats:
    """Values (series, steps) of several quantities; NaN where one was not measured."""
    matrix = np.full((len(series), len(steps)), np.nan)
    for row, one in zip(matrix, series.values(), strict=True):
        row[np.searchsorted(steps, one.steps)] = one.values
    return matrix


@dataclass(frozen=True)
class Mark:
    """Something that happened to the run.

    Attributes:
        step: when.
        kind: of the event, as in the table: ``thaw``, ``lr``, ``retrain``...
        block: which part it concerns, or "".
    """

    step: float
    kind: str
    block: str


def read_marks(folder: RunFolder) -> list[Mark]:
    """Return the events of the run in the order of steps."""
    rows = folder.read("events").to_pylist()
    marks = [Mark(row["step"], row["kind"] or "event", row["block"] or "") for row in rows]
    return sorted(marks, key=lambda mark: mark.step)
