"""Effects on classes: sorted over their null band, and accuracy against strength."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.stats import t as student

from firstlight.figures.findings import points
from firstlight.figures.palette import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    open_frame,
    save,
)
from firstlight.functional import convincing

Columns = dict[str, NDArray[Any]]
LINES = ((VERMILION, "o"), (ORANGE, "s"), (PURPLE, "^"), (BLUE, "o"), (SKY, "s"), (GREEN, "^"))
"""Colours and marks of classes: the first half for the worst, the second for the best."""
NAMED = 4
"""Classes named at either end of the sorted effects."""


def class_effects_figure(folder: str | Path, comparison: str) -> Path:
    """Draw all classes' effects, sorted, over the band that chance alone gives each rank.

    Filled marks are classes whose effect is reported (q below .05, and large enough, for the
    question asked); a class outside the band without a mark is not.

    Args:
        folder: what ``firstlight compare`` made.
        comparison: its name, as in the table ``class_effects``.

    Returns:
        The PNG; an SVG of the same name stands beside it.

    Raises:
        ValueError: where there is no such comparison.
    """
    folder = Path(folder)
    settings = json.loads((folder / "summary.json").read_text())["settings"]
    columns = _columns(folder / "class_effects.parquet", comparison)
    order = np.argsort(columns["rank"], kind="stable")
    order = order[columns["rank"][order] >= 0]
    columns = {key: values[order] for key, values in columns.items()}
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    reported = convincing(columns["effect"], _q(columns, settings), settings["least"])
    _draw_sorted(axes, columns, reported, settings)
    figure.suptitle(_finding(columns, reported, settings), x=0.01, ha="left", fontsize=11)
    name = re.sub(r"[^\w.-]+", "_", comparison)
    return save(figure, folder / "figures" / f"{name}.png")


def _columns(file: Path, comparison: str) -> Columns:
    table = pq.ParquetFile(file).read()
    rows = np.array(table["comparison"].to_pylist()) == comparison
    if not rows.any():
        there = sorted(set(table["comparison"].to_pylist()))
        raise ValueError(f"{file} has no comparison {comparison!r}; there are: {', '.join(there)}")
    return {name: table[name].to_numpy(zero_copy_only=False)[rows] for name in table.column_names}


def _q(columns: Columns, settings: dict[str, Any]) -> NDArray[Any]:
    return columns["q" if settings["question"] == "test_set" else "q_new_images"]


def _draw_sorted(
    axes: Axes, columns: Columns, reported: NDArray[np.bool_], settings: dict[str, Any]
) -> None:
    effect, rank = 100 * columns["effect"], np.arange(len(columns["effect"])) + 1
    handles: list[Any] = []
    if np.isfinite(columns["band_low"]).all():
        axes.fill_between(rank, 100 * columns["band_low"], 100 * columns["band_high"],
                          color=GREY, alpha=0.3, linewidth=0, step="mid")  # fmt: skip
        words = f"chance alone, {100 * settings['level']:.0f} % of each rank"
        handles.append(Patch(color=GREY, alpha=0.3, linewidth=0, label=words))
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(rank, effect, color=BLACK, linewidth=1, marker="." if len(rank) <= 200 else "",
              markersize=3)  # fmt: skip
    for sign, colour, verb in ((-1, VERMILION, "loses"), (1, BLUE, "gains")):
        rows = reported & (np.sign(effect) == sign)
        if rows.any():
            axes.plot(rank[rows], effect[rows], "o", color=colour, markersize=4)
            words = f"{verb}, q < .05 and {100 * settings['least']:g} points or more"
            handles.append(Line2D([], [], color=colour, marker="o", linestyle="", label=words))
    _name_ends(axes, rank, effect, columns["name"])
    axes.set_xlabel("class, by its effect")
    axes.set_ylabel("change of accuracy (points)")
    axes.margins(x=0.02, y=0.08)
    if handles:
        axes.legend(handles=handles, frameon=False, fontsize=9, loc="upper left")
    open_frame(axes)


def _name_ends(axes: Axes, rank: NDArray[Any], effect: NDArray[Any], names: NDArray[Any]) -> None:
    """Name the classes at both ends, in a column beside the curve so that names do not overlap."""
    count = min(NAMED, len(rank) // 2)
    low = "\n".join(f"{_short(names[i])}  {points(effect[i] / 100)}" for i in range(count))
    high = "\n".join(
        f"{_short(names[-1 - i])}  {points(effect[-1 - i] / 100)}" for i in range(count)
    )
    axes.text(0.06, 0.03, f"worst\n{low}", fontsize=8,
              transform=axes.transAxes, va="bottom", ha="left", color=VERMILION)  # fmt: skip
    axes.text(0.94, 0.97, f"best\n{high}", fontsize=8, transform=axes.transAxes, va="top",
              ha="right", color=BLUE)  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:22]}…"


def _finding(columns: Columns, reported: NDArray[np.bool_], settings: dict[str, Any]) -> str:
    """The sentence that the figure says."""
    effect, classes = columns["effect"], len(columns["effect"])
    what = str(columns["comparison"][0])
    q = _q(columns, settings)
    where = "this test set" if settings["question"] == "test_set" else "new images"
    if np.isfinite(q).any():
        lose, gain = ((reported & (np.sign(effect) == sign)).sum() for sign in (-1, 1))
        said = f"no class of {classes:,} changes by more than seeds explain, on {where}"
        if lose or gain:
            said = (f"{lose:,} of {classes:,} classes lose and {gain:,} gain more than seeds "
                    f"explain, on {where}")  # fmt: skip
        return f"{what}:\n{said}"
    if np.isnan(columns["band_low"]).any():
        return f"{what}:\ntoo few runs for q-values, and no null band: nothing can be said"
    outside = int((columns["beyond_band"] != 0).sum())
    worst, low = points(effect[0]), points(columns["band_low"][0])
    if columns["beyond_band"][0] < 0:
        said = (f"the worst class, {columns['name'][0]} ({worst}), is worse than chance makes "
                f"the worst (from {low})")  # fmt: skip
    else:
        said = (f"chance alone explains a worst class of {worst} points "
                f"(down to {low})")  # fmt: skip
    return f"{what}, too few runs for q-values:\n{said}; {outside:,} classes outside the band"


def class_strengths_figure(folder: str | Path) -> Path:
    """Draw accuracy against strength for the classes that change most, with seed intervals.

    The classes are those of lowest and highest shrunk effect (raw, with one run an arm) of the last
    comparison, which is the line over strength where there is one. Intervals are of the arm's mean
    over its seeds, class by class.

    Args:
        folder: what ``firstlight compare`` made of arms with strengths.

    Returns:
        The PNG; an SVG of the same name stands beside it.
    """
    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text())
    comparison, level = summary["comparisons"][-1]["comparison"], summary["settings"]["level"]
    columns = _columns(folder / "class_effects.parquet", comparison)
    present = np.flatnonzero(columns["rank"] >= 0)
    by = columns["shrunk"] if np.isfinite(columns["shrunk"]).any() else columns["effect"]
    order = present[np.argsort(by[present], kind="stable")]
    each = min(3, len(order) // 2)
    chosen = [*zip(order[:each], LINES[:3], strict=False),
              *zip(order[::-1][:each], LINES[3:], strict=False)]  # fmt: skip
    accuracies = pq.ParquetFile(folder / "accuracies.parquet").read()
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    table = {key: accuracies[key].to_numpy(zero_copy_only=False) for key in
             ("strength", "class", "accuracy")}  # fmt: skip
    strengths = np.unique(table["strength"][np.isfinite(table["strength"])])
    mean = [100 * np.nanmean(table["accuracy"][table["strength"] == s]) for s in strengths]
    axes.plot(
        strengths, mean, color=BLACK, linewidth=2, linestyle="--", label="mean of all classes"
    )
    for c, (colour, mark) in chosen:
        rows = [table["accuracy"][(table["strength"] == s) & (table["class"] == c)]
                for s in strengths]  # fmt: skip
        means = [100 * row.mean() for row in rows]
        halves = [100 * half_width(row, level) for row in rows]
        axes.errorbar(strengths, means, halves, color=colour, marker=mark, markersize=5,
                      capsize=3, linewidth=1.5, label=_short(str(columns["name"][c])))  # fmt: skip
    factors = [arm["factor"] for arm in summary["arms"] if arm["factor"]]
    axes.set_xlabel(f"{factors[0]}, strength" if factors else "strength")
    axes.set_ylabel(f"accuracy of the class (%), {100 * level:.0f} % interval over seeds")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    open_frame(axes)
    figure.suptitle(_course(strengths, mean, columns, order), x=0.01, ha="left", fontsize=11)
    return save(figure, folder / "figures" / "accuracy_by_strength.png")


def half_width(values: NDArray[Any], level: float) -> float:
    """Half the interval of a mean over seeds; 0, so not drawn, for a single one."""
    if len(values) < 2:
        return 0.0
    quantile = student.ppf((1 + level) / 2, len(values) - 1)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))


def _course(
    strengths: NDArray[Any], mean: list[float], columns: Columns, order: NDArray[Any]
) -> str:
    worst, best = order[0], order[-1]
    effects, average = columns["effect"], points((mean[-1] - mean[0]) / 100)
    return (
        f"From {strengths[0]:g} to {strengths[-1]:g} all classes together change by "
        f"{average} points,\n{_short(str(columns['name'][worst]))} by "
        f"{points(effects[worst])}, {_short(str(columns['name'][best]))} by {points(effects[best])}"
    )
