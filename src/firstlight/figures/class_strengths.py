"""What the strength of a factor does: to the classes that change most, and to the worst ones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t as student
from scipy.stats import ttest_ind_from_stats

from firstlight.figures.compared_folder import Columns, ComparedFolder
from firstlight.figures.findings import points
from firstlight.figures.palette import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    open_frame,
)
from firstlight.figures.picture import WIDTH, NothingToDrawError, Picture, label
from firstlight.functional import summarise_classes

EACH = 3
"""Classes drawn of those that lose most, and of those that gain most."""

MEASURES = {
    "macro": ("mean over classes", BLACK, "o"),
    "p5": ("5th percentile", BLUE, "s"),
    "p1": ("1st percentile", GREEN, "D"),
    "worst_1pct": ("mean of the worst 1 %", ORANGE, "^"),
    "min": ("worst class", VERMILION, "v"),
}
"""Of a run's classes: words, colour, mark."""


def class_strengths_figure(folder: str | Path) -> Path:
    """Draw accuracy against strength for the classes that change most, with seed intervals.

    A small panel for each class, those of lowest and highest shrunk effect (raw, with one run an
    arm) of the last comparison, which is the line over strength where there is one. Intervals are
    of the arm's mean over its seeds, class by class.

    Args:
        folder: what ``firstlight compare`` made of arms with strengths.

    Returns:
        The PNG; an SVG of the same name stands beside it.

    Raises:
        NothingToDrawError: where fewer than two strengths are known.
    """
    compared = ComparedFolder.open(folder)
    return draw_strengths(compared).write(compared.path / "figures")


def draw_strengths(compared: ComparedFolder) -> Picture:
    """See `class_strengths_figure`."""
    table, strengths = _by_strength(compared)
    columns = compared.effects(compared.comparisons[-1])
    by = columns["shrunk"] if np.isfinite(columns["shrunk"]).any() else columns["effect"]
    order = np.argsort(by, kind="stable")
    each = min(EACH, len(order) // 2)
    ends = [*order[:each], *order[::-1][:each]]
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    grid = figure.subplots(2, each, sharex=True, sharey=True, squeeze=False)
    mean = [100 * np.nanmean(table["accuracy"][table["strength"] == s]) for s in strengths]
    for place, (axes, row) in enumerate(zip(grid.flat, ends, strict=True)):
        colour = (VERMILION, BLUE)[place >= each]
        of_class = table["class"] == columns["class"][row]
        rows = [table["accuracy"][of_class & (table["strength"] == s)] for s in strengths]
        axes.plot(strengths, mean, color=GREY, linewidth=1.2, linestyle="--")
        for strength, values in zip(strengths, rows, strict=True):
            axes.plot([strength] * len(values), 100 * values, ".", color=colour, alpha=0.35,
                      markersize=4)  # fmt: skip
        halves = [100 * half_width(values, compared.settings["level"]) for values in rows]
        axes.errorbar(strengths, [100 * values.mean() for values in rows], halves, color=colour,
                      marker="o", markersize=3.5, capsize=2, linewidth=1.5)  # fmt: skip
        name, change = label(columns["name"][row], 14), points(columns["effect"][row])
        axes.set_title(f"{name}  {change}", fontsize=9, loc="left")
        axes.set_xticks(_ticks(strengths, most=3))
        axes.tick_params(labelsize=8.5)
        axes.set_ylim(-3, 103)
        open_frame(axes)
    figure.supxlabel(label(f"strength of {compared.factor}"), fontsize=9.5)
    figure.supylabel("accuracy of the class (%)", fontsize=9.5)
    level = f"{100 * compared.settings['level']:.0f} %"
    return Picture(
        "accuracy_by_strength", _course(strengths, mean, columns, order), figure,
        f"Above the classes that lose most, below those that gain most; {level} intervals of the "
        "mean over seeds, a dot for each run; dashed: mean of all classes. The extremes of many "
        "classes are partly chance: see the null band.",
    )  # fmt: skip


def _by_strength(compared: ComparedFolder) -> tuple[Columns, NDArray[Any]]:
    table = compared.read("accuracies")
    strengths = np.unique(table["strength"][np.isfinite(table["strength"])])
    if len(strengths) < 2:
        raise NothingToDrawError(
            "nothing is drawn against strength, since fewer than two arms have one: train with "
            "PerClassMonitor(study={'strength': NUMBER, ...}), or compare with --strengths"
        )
    return table, strengths


def _ticks(strengths: NDArray[Any], most: int) -> NDArray[Any]:
    """All strengths where they are few and apart, else the ends and the middle."""
    if len(strengths) <= most and np.diff(strengths).min() > np.ptp(strengths) / (most + 1):
        return strengths
    middle = strengths[np.abs(strengths - strengths.mean()).argmin()]
    return np.array([strengths[0], middle, strengths[-1]])


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
        f"{average} points,\n{columns['name'][worst]} by "
        f"{points(effects[worst])}, {columns['name'][best]} by {points(effects[best])}"
    )


def draw_worst_classes(compared: ComparedFolder) -> Picture:
    """Draw the mean, low percentiles and the minimum over classes against strength.

    Raises:
        NothingToDrawError: where fewer than two strengths are known.
    """
    table, strengths = _by_strength(compared)
    found = _measured(compared, table)
    at = {strength: [run for run in found if run["strength"] == strength] for strength in strengths}
    chosen = _different(found)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in chosen:
        words, colour, mark = MEASURES[name]
        values = [100 * np.array([run[name] for run in at[s]]) for s in strengths]
        halves = [half_width(v, compared.settings["level"]) for v in values]
        axes.errorbar(strengths, [v.mean() for v in values], halves, color=colour, marker=mark,
                      markersize=4.5, capsize=2.5, linewidth=1.5, label=words)  # fmt: skip
    axes.set_xticks(_ticks(strengths, most=6))
    axes.set_xlabel(label(f"strength of {compared.factor}"))
    axes.set_ylabel("accuracy over classes (%)")
    figure.legend(frameon=False, fontsize=9, loc="outside lower left", ncols=2)
    open_frame(axes)
    left = [MEASURES[name][0] for name in MEASURES if name not in chosen]
    note = f"{100 * compared.settings['level']:.0f} % intervals of the mean over seeds."
    if left:
        note += f" Not drawn, being nearly one of these: {', '.join(left)}."
    return Picture(
        "worst_by_strength",
        _moved(at[strengths[0]], at[strengths[-1]], strengths, chosen[-1]), figure,
        f"{note} The minimum over many classes is low by chance, at every strength alike.",
    )  # fmt: skip


def _measured(compared: ComparedFolder, table: Columns) -> list[dict[str, Any]]:
    """Measures of every run over its classes, and its strength."""
    columns = compared.effects(compared.comparisons[-1])
    n = dict(zip(columns["class"].tolist(), columns["n"].tolist(), strict=True))
    found = []
    for run in dict.fromkeys(table["run"]):
        rows = (table["run"] == run) & np.isfinite(table["accuracy"])
        images = torch.tensor([n[c] for c in table["class"][rows].tolist()])
        correct = (torch.from_numpy(table["accuracy"][rows].copy()) * images).round().long()
        counts = {"n": images, "correct": correct, "pred_count": images}
        found.append({"strength": table["strength"][rows][0], **summarise_classes(counts)})
    return found


def _different(found: list[dict[str, Any]]) -> list[str]:
    """Measures worth drawing, the mildest first: of few classes several are nearly the minimum."""
    chosen = ["macro"]
    for name in ("p5", "p1", "worst_1pct", "min"):
        values = np.array([run[name] for run in found])
        beside = [np.abs(values - [run[other] for run in found]).max() for other in chosen]
        low = np.array([run["min"] for run in found])
        if name == "min" or (min(beside) > 0.005 and np.abs(values - low).max() > 0.005):
            chosen.append(name)
    return chosen


def _moved(
    first: list[dict[str, Any]], last: list[dict[str, Any]], strengths: NDArray[Any], low: str
) -> str:
    said = []
    for name in ("macro", low):
        before, after = (np.array([run[name] for run in runs]) for runs in (first, last))
        change = f"{100 * before.mean():.1f} to {100 * after.mean():.1f} %"
        if min(len(before), len(after)) > 1:
            sure = _differ(before, after)
            change += " (more than seeds explain)" if sure else " (within what seeds explain)"
        said.append(f"the {MEASURES[name][0]} goes from {change}")
    return f"From {strengths[0]:g} to {strengths[-1]:g} {said[0]},\n{said[1]}"


def _differ(before: NDArray[Any], after: NDArray[Any]) -> bool:
    """Whether Welch's t tells the means apart at 5 %; runs that all agree differ if they do."""
    spread = [values.std(ddof=1) for values in (before, after)]
    if max(spread) < 1e-9:
        return bool(abs(after.mean() - before.mean()) > 1e-9)
    p = ttest_ind_from_stats(before.mean(), spread[0], len(before), after.mean(), spread[1],
                             len(after), equal_var=False)[1]  # fmt: skip
    return bool(p < 0.05)
