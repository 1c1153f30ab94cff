"""Every class before and after: a new last layer, a corrected prior, or the training itself."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from firstlight.figures.evaluations import Classes, Pair
from firstlight.figures.palette import BLUE, GREY, VERMILION, open_frame
from firstlight.figures.picture import WIDTH, Picture, label

ROWS = 30
"""Most classes drawn; of more the ends are, those that lose most and those that gain most."""


def draw_before_after(pair: Pair, classes: Classes) -> Picture:
    """Draw each class's accuracy before and after, the most frequent in training first.

    Of many classes those are drawn that lose most and gain most.
    """
    before, after = (side[0].accuracy for side in (pair.before, pair.after))
    change = after - before
    present = np.flatnonzero(np.isfinite(change))
    by = change if classes.counts is None else -classes.counts
    rows = present[np.argsort(by[present], kind="stable")]
    note = "The most frequent class in training first." if classes.counts is not None else ""
    note += " Blue: gains, orange: loses."
    if len(rows) > ROWS:
        ranked = present[np.argsort(change[present], kind="stable")]
        rows = np.concatenate([ranked[: ROWS // 2], ranked[-ROWS // 2 :]])
        note = (f"The {ROWS // 2} classes that lose most, and the {ROWS // 2} that gain most. "
                "Blue: gains, orange: loses.")  # fmt: skip
    figure = Figure(figsize=(WIDTH, 1.2 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, c in enumerate(rows):
        colour = GREY if change[c] == 0 else BLUE if change[c] > 0 else VERMILION
        axes.plot([100 * before[c], 100 * after[c]], [place, place], color=colour, linewidth=2)
        axes.plot(100 * before[c], place, "o", color="white", markeredgecolor=colour, markersize=5)
        axes.plot(100 * after[c], place, "o", color=colour, markersize=5)
    names = [label(classes.names[c], 18) for c in rows]
    if classes.counts is not None:
        names = [
            f"{name} ({int(classes.counts[c]):,})" for name, c in zip(names, rows, strict=True)
        ]
    axes.set_yticks(range(len(rows)), names, fontsize=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-3, 103)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("accuracy of the class (%)")
    axes.set_ylabel("class (training images)" if classes.counts is not None else "class")
    ends = {"white": label(pair.before[1], None), GREY: label(pair.after[1], None)}
    figure.legend(
        handles=[Line2D([], [], linestyle="", marker="o", color=fill, markeredgecolor=GREY,
                        markersize=5, label=words) for fill, words in ends.items()],
        frameon=False, fontsize=9, loc="outside lower left", ncols=2,
    )  # fmt: skip
    axes.grid(axis="x", color=GREY, alpha=0.2, linewidth=0.8)
    open_frame(axes)
    return Picture(f"before_after-{pair.name}", before_after_finding(pair, classes), figure, note)


def before_after_finding(pair: Pair, classes: Classes) -> str:
    """The sentence: what became of the mean over classes, and of the worst one."""
    first, second = (side[0].accuracy for side in (pair.before, pair.after))
    worst = int(np.nanargmin(first))
    falls = int((second < first).sum())
    said = (
        f"{pair.what}: the mean over classes goes from {100 * np.nanmean(first):.1f} to "
        f"{100 * np.nanmean(second):.1f} %, {classes.names[worst]}, the worst, from "
        f"{100 * first[worst]:.1f} to {100 * second[worst]:.1f} %"
    )
    of = int(np.isfinite(second - first).sum())
    return said + (f"; {falls:,} of {of:,} classes fall" if falls else "; no class falls")
