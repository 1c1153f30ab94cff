"""Methods by data sets over seeds: mean, deviation, and where every number comes from."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rich.table import Table

from firstlight.runfolder import replacing

Selection = Literal["last", "validation", "test", "unknown"]
"""How the weights of a run were chosen: the last ones, the best on validation data, or the best on
the very data they are reported on, which flatters and is marked."""

MARK = {"last": "", "validation": "", "test": " †", "unknown": " ?"}
FOOTNOTES = {
    "test": "†: selected on the data it is reported on; compare with such rows only.",
    "unknown": "?: nobody said how its weights were selected.",
}


@dataclass(frozen=True)
class Result:
    """One run's numbers.

    Attributes:
        method: the row.
        data: the data set and its construction; the table's part.
        seed: tells the runs of one method apart, and pairs them across methods.
        scores: by measure; accuracies in [0, 1]. NaN: the measure does not exist for this method.
        split: what it was evaluated on.
        selection: see `Selection`.
        provenance: anything else: config, commit, epochs, augmentation, backbone, construction.
    """

    method: str
    data: str
    seed: int | str
    scores: Mapping[str, float]
    split: str
    selection: Selection
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One method on one data set: mean and sample standard deviation over its seeds.

    Attributes:
        method: its name.
        data: of the data set.
        seeds: in the order given.
        selection: see `Selection`.
        mean: by measure.
        sd: by measure, divisor n - 1; NaN of a single seed.
        gain: mean and sample standard deviation of the seed-by-seed differences from the method
            compared with, by measure; empty for that method itself, or without one.
    """

    method: str
    data: str
    seeds: tuple[int | str, ...]
    selection: Selection
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    gain: Mapping[str, tuple[float, float]]


def summarise_seeds(results: Iterable[Result], against: str | None = None) -> list[Row]:
    """Summarise runs by data set and method, in the order in which they first come.

    Runs of one seed share subset and training, so that the differences from ``against`` are taken
    seed by seed: their standard deviation is that of the gain, not of the two scores.

    Args:
        results: every run.
        against: the method that gains are taken from.

    Raises:
        ValueError: on no runs, two of one method, data set and seed, runs of one row that were
            evaluated or selected differently, measures that only some seeds have, or seeds that
            ``against`` does not have.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        groups.setdefault((one.data, one.method), []).append(one)
    if not groups:
        raise ValueError("no results: there is nothing to summarise")
    _check(groups)
    if against is not None and against not in {method for _, method in groups}:
        raise ValueError(f"no method {against!r}; there are {sorted({m for _, m in groups})}")
    return [_row(runs, groups.get((data, against or ""))) for (data, _), runs in groups.items()]


def _check(groups: Mapping[tuple[str, str], Sequence[Result]]) -> None:
    splits: dict[str, str] = {}
    for (data, method), runs in groups.items():
        who = f"{method!r} on {data!r}"
        seeds = [run.seed for run in runs]
        if twice := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"{who} has seed {twice[0]} twice: a run counts once")
        if len({run.selection for run in runs}) > 1:
            raise ValueError(f"{who}: {sorted({run.selection for run in runs})} are mixed")
        if unknown := [run.selection for run in runs if run.selection not in get_args(Selection)]:
            raise ValueError(f"selection is one of {get_args(Selection)}, not {unknown[0]!r}")
        for run in runs:
            if splits.setdefault(data, run.split) != run.split:
                raise ValueError(
                    f"{data!r} is evaluated on {splits[data]!r} and on {run.split!r} ({who}, seed "
                    f"{run.seed}): such numbers do not stand in one table"
                )
            if set(run.scores) != set(runs[0].scores):
                odd = sorted(set(run.scores) ^ set(runs[0].scores))
                raise ValueError(f"{who}: not every seed has {odd[0]!r}")
            for measure, value in run.scores.items():
                if math.isnan(value) != math.isnan(runs[0].scores[measure]):
                    raise ValueError(f"{who}: {measure} is NaN for some seeds only")


def _row(runs: Sequence[Result], base: Sequence[Result] | None) -> Row:
    first = runs[0]
    values = {name: [run.scores[name] for run in runs] for name in first.scores}
    gain = {}
    if base is not None and base[0].method != first.method:
        theirs = {run.seed: run.scores for run in base}
        if missing := [run.seed for run in runs if run.seed not in theirs]:
            raise ValueError(
                f"{base[0].method!r} has no seed {missing[0]}, {first.method!r} has: gains are "
                "taken seed by seed"
            )
        for name in values.keys() & base[0].scores.keys():
            each = [run.scores[name] - theirs[run.seed][name] for run in runs]
            gain[name] = statistics.mean(each), _sd(each)
    return Row(
        first.method,
        first.data,
        tuple(run.seed for run in runs),
        first.selection,
        {name: statistics.mean(each) for name, each in values.items()},
        {name: _sd(each) for name, each in values.items()},
        gain,
    )


def _sd(values: Sequence[float]) -> float:
    if len(values) < 2 or any(map(math.isnan, values)):  # of which statistics makes an error
        return math.nan
    return statistics.stdev(values)


def show_seed_table(
    rows: Sequence[Row], title: str, measures: Sequence[str] | None = None, gain: str = "macro"
) -> tuple[Table, list[str]]:
    """Return a table to print, and the same in Markdown; means and deviations in percent.

    Args:
        rows: of `summarise_seeds`.
        title: says on what.
        measures: columns, in order; default: all that the first row has.
        gain: of which measure the gain is shown.
    """
    names = list(rows[0].mean) if measures is None else list(measures)
    gains = any(row.gain for row in rows)
    columns = ["data", "method", "seeds", *names, *([f"gain in {gain}"] if gains else [])]
    table = Table(title=title, title_justify="left")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in rows:
        cells = [_cell(row.mean.get(n, math.nan), row.sd.get(n, math.nan)) for n in names]
        if gains:
            cells.append(_cell(*row.gain[gain], signed=True) if gain in row.gain else "")
        line = [row.data, row.method + MARK[row.selection], str(len(row.seeds)), *cells]
        table.add_row(*line)
        lines.append(f"| {' | '.join(line)} |")
    notes = [FOOTNOTES[kind] for kind in FOOTNOTES if kind in {row.selection for row in rows}]
    if any(len(row.seeds) == 1 for row in rows):
        notes.append("A single seed has no deviation: differences between such rows may be chance.")
    return table, lines + [line for note in notes for line in ("", note)]


def _cell(mean: float, sd: float, signed: bool = False) -> str:
    if math.isnan(mean):
        return "-"
    text = f"{100 * mean:+.1f}" if signed else f"{100 * mean:.1f}"
    return text if math.isnan(sd) else f"{text} ± {100 * sd:.1f}"


def write_seed_table(
    path: str | Path,
    results: Sequence[Result],
    title: str,
    notes: str = "",
    against: str | None = None,
    measures: Sequence[str] | None = None,
    gain: str = "macro",
) -> list[Row]:
    """Write ``path`` (Markdown) and, beside it, all single results as JSON; return the rows.

    Args:
        path: of the Markdown file; the JSON's differs in the suffix.
        results: see `summarise_seeds`.
        title: of the table.
        notes: below it.
        against: see `summarise_seeds`.
        measures: see `show_seed_table`.
        gain: likewise.
    """
    rows = summarise_seeds(results, against)
    _, lines = show_seed_table(rows, title, measures, gain)
    target = Path(path)
    said = sorted({_said(one) for one in results})
    text = [f"# {title}", "", *lines, "", "Mean ± sample standard deviation over seeds, in %.", ""]
    text += [notes, ""] if notes else []
    text += ["From:", "", *(f"- {line}" for line in said), ""]
    content = {"title": title, "results": [asdict(one) for one in results]}
    with replacing(target) as temporary:
        temporary.write_text("\n".join(text))
    with replacing(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return rows


def _said(one: Result) -> str:
    known = {k: v for k, v in one.provenance.items() if v is not None}
    parts = [f"{key} {value}" for key, value in known.items()]
    return "; ".join([one.data, f"split {one.split}", f"selection {one.selection}", *parts])
