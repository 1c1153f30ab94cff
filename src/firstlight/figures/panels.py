"""The panels of `early_training_figure`."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from firstlight.figures.measurements import Floats, Mark, Series, aligned
from firstlight.figures.palette import (
    BLUE,
    GREEN,
    GREY,
    NOT_MEASURED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    open_frame,
)

TITLES = {
    "fisher_trace": "Fisher trace (nats² / weight²)",
    "average": "average sharpness (nats)",
    "worst_case": "worst-case sharpness (nats)",
    "lambda_max": "λ_max of the Hessian ± residual (nats / weight²)",
    "edge_of_stability": "λ_max / edge of stability",
}
RESIDUAL = ("lambda_max",)
"""What has a residual in the place of a standard error."""
COLOURS = dict(zip(TITLES, (BLUE, ORANGE, VERMILION, GREEN, PURPLE), strict=True))
OTHERS = (SKY, GREY, ORANGE, GREEN)
"""Of further lines in one panel."""
MARKS: dict[str, tuple[str, Literal["-", ":"], str]] = {
    "thaw": (VERMILION, "-", "a block thaws, and counts from there on"),
    "lr": (GREY, ":", "learning rate changes"),
}
DECADES = 6
"""Most decades that the heat map's colours tell apart; what is lower has the lowest colour."""
LABELLED = 16
"""Most blocks named beside the heat map."""
MARKED = 24
"""Most lines of one kind; a rate that changes at every step would cover the curves."""

Panel = tuple[str, dict[str, Series]]
"""A key of `TITLES` or a name of the user's, and the lines to draw by label."""


def share_steps(axes: Sequence[Axes], steps: Floats) -> None:
    """Give panels that share their x axis one for these steps, logarithmic after the first."""
    low, high = steps.min(), steps.max()
    positive = steps[steps > 0]
    last = axes[-1]
    last.set_xlabel("step (optimiser updates)")
    if len(positive) and high >= 10 * positive.min():
        last.set_xscale("symlog", linthresh=positive.min(), linscale=0.4)
        ticks = _round_numbers(positive.min(), high)
        last.set_xticks([0, *ticks] if low == 0 else ticks, minor=False)
        last.set_xticks([], minor=True)
    if low == high:
        last.set_xticks([low])
    last.set_xlim((low, high) if low < high else (low - 0.5, high + 0.5))
    last.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}" if step == int(step) else "")
    for one in axes:
        one.tick_params(labelsize=10)


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade, or decades only where that would be many."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [float(d * f) for d in decades for f in factors if low <= d * f <= high]
        if len(ticks) <= 7:
            break
    return ticks


def draw_panel(axes: Axes, key: str, lines: dict[str, Series]) -> None:
    """Draw totals with bands of two standard errors, or of a residual."""
    colours = [COLOURS.get(key, BLUE), *OTHERS]
    for index, (label, line) in enumerate(lines.items()):
        colour = colours[index % len(colours)]
        lone, many = len(line.finite.steps) == 1, len(line.steps) > 150
        axes.plot(line.steps, line.values, color=colour, marker="o", label=label,
                  markersize=7 if lone else 1.5 if many else 3, linewidth=1.6)  # fmt: skip
        band = (1 if key in RESIDUAL else 2) * np.nan_to_num(line.errors)
        if lone:
            axes.errorbar(line.steps, line.values, band, color=colour, capsize=4)
        axes.fill_between(line.steps, line.values - band, line.values + band,
                          color=colour, alpha=0.25, linewidth=0)  # fmt: skip
    _scale(axes, list(lines.values()))
    if key == "edge_of_stability":
        axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set_title(_title(key, lines), fontsize=11, loc="left")
    if len(lines) > 1:
        axes.legend(fontsize=9, frameon=False)
    if not any(len(line.finite.steps) for line in lines.values()):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=GREY)
    axes.margins(y=0.12)
    open_frame(axes)


def _title(key: str, lines: dict[str, Series]) -> str:
    title = TITLES.get(key, key)
    examples = max(line.examples for line in lines.values())
    if examples:
        title += f", {examples:,} examples"
    lost = sum(len(line.steps) - len(line.finite.steps) for line in lines.values())
    total = sum(len(line.steps) for line in lines.values())
    return title + (f"; {lost} of {total} not finite" if lost else "")


def _scale(axes: Axes, lines: list[Series]) -> None:
    """Logarithmic where values span much, with a linear piece around 0 where some are not above."""
    values = np.concatenate([line.finite.values for line in lines])
    sizes = np.abs(values[values != 0])
    if not len(sizes) or sizes.max() < 30 * np.quantile(sizes, 0.1):
        if len(values) and values.min() < 0:
            axes.axhline(0, color=GREY, linewidth=0.8)
        return
    if (values > 0).all():
        axes.set_yscale("log")
        axes.set_ylim(values.min() / 1.5, values.max() * 1.5)
    else:
        axes.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(np.quantile(sizes, 0.1))))
        axes.axhline(0, color=GREY, linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: _number(value))


def _number(value: float) -> str:
    """A tick's label: powers of ten where digits would be many."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,g}"
    return f"${'-' if value < 0 else ''}10^{{{np.log10(abs(value)):.0f}}}$"


def height_of_blocks(blocks: dict[str, Series]) -> float:
    """Inches that the heat map needs."""
    return min(1.0 + 0.22 * len(blocks), 4.0)


def draw_blocks(axes: Axes, blocks: dict[str, Series]) -> None:
    """Draw blocks against steps by colour, the first at the bottom; grey where not measured."""
    steps = np.unique(np.concatenate([one.steps for one in blocks.values()]))
    values = aligned(blocks, steps)
    positive = values[values > 0]
    least, most = max(positive.min(), positive.max() / 10**DECADES), positive.max()
    # A decade at least: of nearly equal values the colours shall not show the noise.
    widened = max(1.0, float(np.sqrt(10 * least / most)))
    least, most = least / widened, most * widened
    colours = LogNorm(least, most)
    edges = _edges(axes, steps)
    rows = np.arange(len(blocks) + 1) - 0.5
    axes.set_facecolor(NOT_MEASURED)
    shown = np.ma.masked_invalid(np.maximum(values, least))
    mesh = axes.pcolormesh(edges, rows, shown, norm=colours, cmap="viridis", rasterized=True)
    every = int(np.ceil(len(blocks) / LABELLED))
    named = sorted({*range(0, len(blocks) - every + 1, every), len(blocks) - 1})
    axes.set_yticks(named, [_abbreviate(list(blocks)[i]) for i in named])
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.set_title("Fisher trace by block", fontsize=11, loc="left", y=1)
    inch = 1 / height_of_blocks(blocks)
    bar = axes.inset_axes((0.55, 1 + 0.05 * inch, 0.45, 0.1 * inch))
    axes.figure.colorbar(mesh, cax=bar, orientation="horizontal", ticklocation="top")
    bar.tick_params(labelsize=8, pad=1, which="both", length=2)
    bar.xaxis.set_minor_formatter("")


def _edges(axes: Axes, steps: Floats) -> Floats:
    """Borders of cells half-way between steps as the axis shows them, the outer at the ends."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    scale = axes.xaxis.get_transform()
    shown = scale.transform(steps)
    middle: Floats = scale.inverted().transform((shown[1:] + shown[:-1]) / 2)
    return np.concatenate([steps[:1], middle, steps[-1:]])


def _abbreviate(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"


def draw_marks(axes: Sequence[Axes], marks: Sequence[Mark]) -> list[Artist]:
    """Draw lines through all panels where something happened, the thawed blocks by name.

    Returns:
        What the legend has to explain. More than `MARKED` lines of a kind are only counted there.
    """
    low, high = axes[0].get_xlim()
    shown = [mark for mark in marks if mark.kind in MARKS and low <= mark.step <= high]
    legend: list[Artist] = []
    for kind, (colour, style, name) in MARKS.items():
        steps = sorted({mark.step for mark in shown if mark.kind == kind})
        many = len(steps) > MARKED
        for one in axes:
            for step in [] if many else steps:
                one.axvline(step, color=colour, linestyle=style, linewidth=1, alpha=0.8)
        if steps:
            name = f"{name} ({len(steps):,} times, not drawn)" if many else name
            legend.append(Line2D([], [], color=colour, linestyle=style, label=name))
    thawed = [mark for mark in shown if mark.kind == "thaw" and mark.block]
    _name_thawed(axes[0], thawed[:MARKED])
    return legend


def draw_legend(
    figure: Figure, panels: Sequence[Panel], blocks: dict[str, Series], marks: Sequence[Artist]
) -> None:
    """Explain below the panels what they show and do not name."""
    drawn = [line for _, lines in panels for line in lines.values()]
    handles = list(marks)
    estimated = [line for key, lines in panels if key not in RESIDUAL for line in lines.values()]
    if any((line.errors[np.isfinite(line.values)] > 0).any() for line in estimated):
        handles.insert(0, Patch(color=BLUE, alpha=0.25, linewidth=0, label="± 2 standard errors"))
    steps = np.unique(np.concatenate([one.steps for one in [*drawn, *blocks.values()]]))
    if blocks and np.isnan(aligned(blocks, steps)).any():
        handles.append(Patch(color=NOT_MEASURED, label="not measured"))
    if handles:
        wide = figure.get_figwidth() > 6
        figure.legend(handles=handles, loc="outside lower center", ncols=1 + wide, fontsize=9,
                      frameon=False)  # fmt: skip


def _name_thawed(axes: Axes, marks: Sequence[Mark]) -> None:
    """Names along the lines, left out where they would cover one another."""
    last = -1.0
    for mark in marks:
        place = axes.transAxes.inverted().transform(axes.transData.transform((mark.step, 1)))[0]
        if place - last > 0.05:
            side = ("right", -2) if place > 0.05 else ("left", 3)
            axes.annotate(_abbreviate(mark.block), (mark.step, 0.98), (side[1], 0), rotation=90,
                          xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                          ha=side[0], va="top", fontsize=9, color=MARKS["thaw"][0],
                          bbox={"color": "white", "alpha": 0.7, "pad": 0.5})  # fmt: skip
            last = place
