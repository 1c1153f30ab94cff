"""Effects on classes by their own labels against those by ReaL labels."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from firstlight.figures.compared_folder import Columns, ComparedFolder
from firstlight.figures.findings import points
from firstlight.figures.palette import GREY, VERMILION, open_frame
from firstlight.figures.picture import MANY, WIDTH, NothingToDrawError, Picture, label

NAMED = 5
"""Classes named, of those whose effect differs most."""


def draw_other_labels(compared: ComparedFolder, comparison: str) -> Picture:
    """Draw each class's effect by ReaL labels against that by its own, on the same images.

    Raises:
        NothingToDrawError: where the comparison has no other labels.
    """
    told = compared.summary.get("real")
    if not told:
        raise NothingToDrawError("no effects by other labels: compare with --real")
    columns = compared.effects(comparison)
    known = np.isfinite(columns["real_effect"])
    columns = {key: values[known] for key, values in columns.items()}
    own, other, moved = (columns[f"real_{key}"] for key in ("original", "effect", "moved"))
    order = np.argsort(-np.abs(moved), kind="stable")
    named = order[:NAMED][np.abs(moved[order[:NAMED]]) > 1e-9]
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    span = 100 * np.array([min(own.min(), other.min()), max(own.max(), other.max())])
    axes.plot(span, span, color=GREY, linewidth=0.8, linestyle="--")
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    axes.plot(100 * own, 100 * other, ".", color=GREY, markersize=4, alpha=0.6,
              rasterized=len(own) > MANY)  # fmt: skip
    axes.errorbar(100 * own[named], 100 * other[named], 200 * np.nan_to_num(
        columns["real_moved_se"][named]), fmt="o", color=VERMILION, markersize=4.5, capsize=2,
        elinewidth=1)  # fmt: skip
    _name(axes, columns, named)
    axes.set_xlabel("change of accuracy by the class's own label (points)")
    axes.set_ylabel("change by ReaL labels (points)")
    axes.margins(x=0.06, y=0.06)
    open_frame(axes)
    images, unlabelled = (f"{told[key]:,}" for key in ("images", "unlabelled"))
    name, finding = compared.file_name(comparison, "-real"), _finding(columns, named)
    return Picture(
        name, f"{comparison}:\n{finding}", figure,
        f"Both on the {images} images that have a ReaL label ({unlabelled} have none). Bars: ± 2 "
        "standard errors over seeds of the distance from the dashed line. The furthest of many "
        "classes are so partly by chance.",
    )  # fmt: skip


def _name(axes: Axes, columns: Columns, named: NDArray[np.int64]) -> None:
    """Number the classes in the plot, and say their names in a corner that is mostly empty."""
    above = (columns["real_moved"] > 0).sum() < len(columns["real_moved"]) / 2
    for number, row in enumerate(named, 1):
        at = 100 * columns["real_original"][row], 100 * columns["real_effect"][row]
        axes.annotate(str(number), at, xytext=(5, 3), textcoords="offset points", fontsize=9,
                      color=VERMILION)  # fmt: skip
    lines = [f"{number} {label(columns['name'][row], 20)}" for number, row in enumerate(named, 1)]
    axes.text(0.03 if above else 0.97, 0.98 if above else 0.02, "\n".join(lines), fontsize=8.5,
              transform=axes.transAxes, color=VERMILION, va="top" if above else "bottom",
              ha="left" if above else "right")  # fmt: skip


def _finding(columns: Columns, named: NDArray[np.int64]) -> str:
    if not len(named):
        return "no class's effect is another by ReaL labels"
    top = named[0]
    own, other = (points(columns[f"real_{key}"][top]) for key in ("original", "effect"))
    return (f"{columns['name'][top]} changes by {own} points by its own label, by {other} by ReaL: "
            "the largest difference")  # fmt: skip
