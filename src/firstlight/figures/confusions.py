"""The confusions of one run: which class is taken for which."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from firstlight.figures.palette import GREY, VERMILION, open_frame
from firstlight.figures.picture import WIDTH, Picture, label

MOST = 10
"""Pairs drawn."""


def draw_confusions(pairs: Sequence[tuple[str, str, int, float]], split: str) -> Picture:
    """Draw the most frequent confusions.

    Args:
        pairs: true class, predicted class, images, and their share of the true class, the most
            frequent first; at least one.
        split: the evaluation.
    """
    shown = pairs[:MOST]
    figure, axes = rows_figure(len(shown))
    shares = [100 * share for *_, share in shown]
    axes.barh(range(len(shown)), shares, color=VERMILION, height=0.65)
    for place, ((*_, count, _), share) in enumerate(zip(shown, shares, strict=True)):
        axes.text(share, place, f" {count:,}", va="center", fontsize=9, color=GREY)
    names = [f"{label(true, 13)} as {label(pred, 13)}" for true, pred, *_ in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=9)
    axes.set_xlim(0, max(shares) * 1.12)
    axes.set_xlabel("images of the class so predicted (%),\nand how many")
    true, pred, count, share = shown[0]
    return Picture(
        f"confusions-{split.replace('/', '_')}",
        f"{true} is most often taken for {pred}: {count:,} images, {100 * share:.0f} % of it",
        figure,
    )  # fmt: skip


def rows_figure(count: int) -> tuple[Figure, Axes]:
    """A figure of so many rows, the first at the top, without a line to their left."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.26 * count), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(count - 0.4, -0.6)
    open_frame(axes)
    axes.tick_params(axis="y", length=0)
    return figure, axes
