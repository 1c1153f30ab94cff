"""Effects on classes: sorted over their null band, with their evidence, and by accuracy."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from firstlight.figures.compared_folder import Columns, ComparedFolder
from firstlight.figures.findings import points
from firstlight.figures.palette import BLACK, BLUE, GREY, VERMILION, open_frame
from firstlight.figures.picture import MANY, WIDTH, NothingToDrawError, Picture, label

NAMED = 4
"""Classes named at either end of the sorted effects."""
SIDES = ((-1, VERMILION, "v", "loses"), (1, BLUE, "^", "gains"))
"""Of effects that are reported: sign, colour, mark, word."""
LEAST_P = 1e-16
"""Smaller ones are drawn there."""


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
    compared = ComparedFolder.open(folder)
    return draw_sorted_effects(compared, comparison).write(compared.path / "figures")


def draw_sorted_effects(compared: ComparedFolder, comparison: str) -> Picture:
    """See `class_effects_figure`."""
    columns = compared.effects(comparison)
    order = np.argsort(columns["rank"], kind="stable")
    columns = {key: values[order] for key, values in columns.items()}
    reported, settings = compared.reported(columns), compared.settings
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.subplots()
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
    handles += _draw_reported(axes, rank, effect, reported, settings["least"])
    _name_ends(axes, effect, columns["name"])
    axes.set_xlabel("class, by its effect")
    axes.set_ylabel("change of accuracy (points)")
    axes.margins(x=0.02, y=0.08)
    if handles:
        figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower left")
    open_frame(axes)
    return Picture(
        compared.file_name(comparison), _finding(columns, reported, compared), figure,
        "Every class, sorted by its effect. The grey band is where chance alone would put the class"
        " of each rank; a marked class is reported.",
    )  # fmt: skip


def _draw_reported(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], reported: NDArray[np.bool_], least: float,
    of: NDArray[Any] | None = None,
) -> list[Any]:  # fmt: skip
    """Draw classes that lose or gain reportably in their colours; return the legend's handles."""
    handles = []
    effect = y if of is None else of
    for sign, colour, mark, verb in SIDES:
        rows = reported & (np.sign(effect) == sign)
        if rows.any():
            axes.plot(x[rows], y[rows], mark, color=colour, markersize=4.5)
            words = f"{verb}, q < .05 and {100 * least:g} points or more"
            handles.append(Line2D([], [], color=colour, marker=mark, linestyle="", label=words))
    return handles


def _name_ends(axes: Axes, effect: NDArray[Any], names: NDArray[Any]) -> None:
    """Name the classes at both ends, in a column beside the curve so that names do not overlap."""
    count = min(NAMED, len(effect) // 2)
    low = "\n".join(f"{label(names[i], 20)}  {points(effect[i] / 100)}" for i in range(count))
    high = "\n".join(
        f"{label(names[-1 - i], 20)}  {points(effect[-1 - i] / 100)}" for i in range(count)
    )
    axes.text(0.97, 0.03, f"worst\n{low}", fontsize=8.5,
              transform=axes.transAxes, va="bottom", ha="right", color=VERMILION)  # fmt: skip
    axes.text(0.03, 0.97, f"best\n{high}", fontsize=8.5, transform=axes.transAxes, va="top",
              ha="left", color=BLUE)  # fmt: skip


def _finding(columns: Columns, reported: NDArray[np.bool_], compared: ComparedFolder) -> str:
    """The sentence that the figure says."""
    effect, classes = columns["effect"], len(columns["effect"])
    what = str(columns["comparison"][0])
    if np.isfinite(compared.asked(columns, "q")).any():
        lose, gain = ((reported & (np.sign(effect) == sign)).sum() for sign in (-1, 1))
        said = f"no class of {classes:,} changes by more than seeds explain, {compared.where}"
        if lose or gain:
            said = (f"{lose:,} of {classes:,} classes lose and {gain:,} gain more than seeds "
                    f"explain, {compared.where}")  # fmt: skip
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


def draw_evidence(compared: ComparedFolder, comparison: str) -> Picture:
    """Draw every class's effect against its p-value: a volcano.

    Raises:
        NothingToDrawError: where no class has a q-value.
    """
    columns = compared.effects(comparison)
    p, q = compared.asked(columns, "p"), compared.asked(columns, "q")
    if not np.isfinite(q).any():
        raise NothingToDrawError(
            f"{comparison}: no effects against their p-values, since too few runs an arm give no "
            "q-values: three are the least"
        )
    reported, least = compared.reported(columns), compared.settings["least"]
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.subplots()
    effect, height = 100 * columns["effect"], -np.log10(np.maximum(p, LEAST_P))
    axes.plot(effect, height, ".", color=GREY, markersize=4, alpha=0.6,
              rasterized=len(effect) > MANY)  # fmt: skip
    handles = _draw_reported(axes, effect, height, reported, least, of=effect)
    for sign in (-1, 1):
        axes.axvline(100 * sign * least, color=GREY, linewidth=0.8, linestyle=":")
    sure = q < 0.05
    if sure.any():
        axes.axhline(height[sure].min(), color=GREY, linewidth=0.8, linestyle="--")
        handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=0.8, label="q = .05"))
    axes.set_xlabel("change of accuracy (points)")
    axes.set_ylabel("evidence, -log₁₀ p")
    axes.margins(x=0.05, y=0.08)
    axes.set_ylim(bottom=0)
    if handles:
        figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower left")
    open_frame(axes)
    small = int((sure & ~reported).sum())
    said = f"{int(reported.sum()):,} of {len(effect):,} classes are reported"
    if small:
        said += f"; {small:,} more have q < .05 and change by less than {100 * least:g} points"
    return Picture(
        compared.file_name(comparison, "-evidence"), f"{comparison}:\n{said}", figure,
        f"A class is reported where its q is below .05, {compared.where}, and its effect is "
        f"{100 * least:g} points or more (dotted). Of classes of few images p-values are discrete.",
    )  # fmt: skip


def draw_by_accuracy(compared: ComparedFolder, comparison: str) -> Picture:
    """Draw every class's effect against its accuracy in the first arm.

    The sentence's rank correlation is with the mean of both arms (Oldham 1962): with the first
    arm's accuracy alone, of which noise enters the effect with the opposite sign, it would be
    negative without any effect.
    """
    columns = compared.effects(comparison)
    reported, effect = compared.reported(columns), columns["effect"]
    before, after = columns["accuracy_before"], columns["accuracy_after"]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(100 * before, 100 * effect, ".", color=GREY, markersize=4, alpha=0.6,
              rasterized=len(effect) > MANY)  # fmt: skip
    handles = _draw_reported(axes, 100 * before, 100 * effect, reported, compared.settings["least"])
    axes.set_xlabel("accuracy of the class before (%)")
    axes.set_ylabel("change of accuracy (points)")
    axes.margins(x=0.03, y=0.08)
    if handles:
        figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower left")
    open_frame(axes)
    return Picture(
        compared.file_name(comparison, "-by_accuracy"),
        f"{comparison}:\n{_tilt((before + after) / 2, effect)}", figure,
        "The rank correlation is with the mean of both arms' accuracies, which seed noise does not "
        "tilt; the points themselves do lean, since noise in the accuracy before is in the change, "
        "too.",
    )  # fmt: skip


def _tilt(accuracy: NDArray[Any], effect: NDArray[Any]) -> str:
    if len(effect) < 5 or not np.ptp(effect) or not np.ptp(accuracy):
        return "too few different classes to say whether hard ones change more"
    # Counts over images tie often; the rounding of their means must not break the ties.
    rho, p = spearmanr(accuracy.round(9), effect.round(9))
    told = f"rank correlation {rho:+.2f} over {len(effect):,} classes"
    if p >= 0.05:
        return f"the change is not seen to depend on how hard a class is ({told})"
    return f"{'hard' if rho > 0 else 'easy'} classes fare worse than others ({told})"
