"""The accuracy of every class, beside the shot groups."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from firstlight.figures.evaluations import (
    Classes,
    Counts,
    read_classes,
    read_evaluations,
    shot_means,
)
from firstlight.figures.palette import BLACK, SHOT_COLOURS, open_frame
from firstlight.figures.picture import MANY, WIDTH, Picture, label
from firstlight.functional import SHOTS, wilson_interval
from firstlight.runfolder import RunFolder, RunFolderError

NAMED = 4.7
"""Most classes an inch whose names fit under the bars."""
BARS = 120
"""Most classes drawn as bars with intervals; more are dots."""


def per_class_figure(run: str | Path, split: str = "test") -> Path:
    """Draw the accuracy of every class, the most frequent first, beside the shot groups.

    Args:
        run: a run folder with the table ``per_class``.
        split: which evaluation; its last step is drawn.

    Returns:
        The PNG; an SVG of the same name stands beside it.

    Raises:
        RunFolderError: where the run has no such evaluation.
    """
    folder = RunFolder.open(run)
    evaluations = read_evaluations(folder)
    if split not in evaluations:
        raise RunFolderError(f"{run} holds no evaluation of {split!r}")
    counts = evaluations[split][-1]
    picture = draw_per_class(counts, read_classes(folder, len(counts.n)), 8.5)
    return picture.write(folder.path / "figures")


def draw_per_class(counts: Counts, classes: Classes, width: float = WIDTH) -> Picture:
    """Draw one evaluation; see `per_class_figure`; ``width`` in inches."""
    means = shot_means(counts.accuracy, classes.shots)
    figure = Figure(figsize=(width, 3.4 + 0.1 * width), layout="constrained")
    if means:
        bars, groups = figure.subplots(1, 2, width_ratios=(3.2, 1), sharey=True)
        _draw_groups(groups, means)
    else:
        bars = figure.subplots()
    crowd = len(counts.n) > BARS
    if crowd:
        _draw_crowd(bars, counts, classes)
    else:
        _draw_classes(bars, counts, classes, width)
    each = "A dot for every class; the line is the mean of each tenth of them" if crowd else (
        "Every class, with its 95 % Wilson interval")  # fmt: skip
    return Picture(
        f"per_class-{counts.split.replace('/', '_')}", _finding(counts, means), figure,
        each + (", beside the mean of each group of classes." if means else "."),
    )  # fmt: skip


def _draw_classes(axes: Axes, counts: Counts, classes: Classes, width: float) -> None:
    trained = classes.counts
    order = np.argsort(-(counts.accuracy if trained is None else trained), kind="stable")
    accuracy = 100 * counts.accuracy
    low, high = (100 * bound for bound in wilson_interval(counts.correct, counts.n))
    x = np.arange(len(order))
    colours = [SHOT_COLOURS[classes.shots[c]] for c in order]
    errors = np.stack([accuracy - low, high - accuracy])[:, order]
    axes.bar(x, accuracy[order], color=colours, width=0.8)
    axes.errorbar(x, accuracy[order], errors, fmt="none", ecolor=BLACK, elinewidth=0.8)
    axes.set_ylabel("accuracy of the class (%), 95 % interval")
    axes.set_ylim(0, 103)
    axes.set_xlabel("class, the most frequent in training first" if trained is not None
                    else "class, the best first")  # fmt: skip
    if len(order) <= NAMED * width:
        beside = trained is not None and len(order) <= 12
        names = [label(classes.names[c]) + (f"\n{int(trained[c]):,}" if beside else "")  # type: ignore[index]  # None is never beside
                 for c in order]  # fmt: skip
        longest = max(len(line) for name in names for line in name.split("\n"))
        wide = longest * len(names) > 10 * width
        axes.set_xticks(x, names, fontsize=8, rotation=90 if wide else 0)
        if beside:
            axes.set_xlabel("class, and its training images")
    open_frame(axes)


def _draw_crowd(axes: Axes, counts: Counts, classes: Classes) -> None:
    """Dots by training images, or by rank where these are unknown."""
    present = np.flatnonzero(counts.n > 0)
    by = -counts.accuracy if classes.counts is None else classes.counts
    order = present[np.argsort(by[present], kind="stable")]
    x = np.arange(1, len(order) + 1) if classes.counts is None else classes.counts[order]
    y = 100 * counts.accuracy[order]
    groups = [classes.shots[c] for c in order]
    for shot, colour in SHOT_COLOURS.items():
        rows = np.array([group == shot for group in groups])
        axes.plot(x[rows], y[rows], ".", color=colour, markersize=3, alpha=0.5,
                  rasterized=len(order) > MANY)  # fmt: skip
    tenths = np.array_split(np.arange(len(order)), 10)
    axes.plot([np.median(x[rows]) for rows in tenths], [y[rows].mean() for rows in tenths],
              color=BLACK, linewidth=1.8)  # fmt: skip
    if classes.counts is not None and x.min() > 0 and x.max() > 10 * x.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("training images of the class" if classes.counts is not None
                    else "class, the best first")  # fmt: skip
    axes.set_ylabel("accuracy of the class (%)")
    axes.set_ylim(-3, 103)
    open_frame(axes)


def _draw_groups(axes: Axes, means: dict[str, float]) -> None:
    for x, name in enumerate(SHOTS):
        if name in means:
            axes.bar(x, 100 * means[name], color=SHOT_COLOURS[name], width=0.7)
            axes.text(x, 100 * means[name] + 1, f"{100 * means[name]:.0f}", ha="center", fontsize=9)
    axes.set_xticks(range(3), SHOTS, fontsize=8, rotation=90)
    axes.set_xlabel("mean (%)")
    open_frame(axes)


def _finding(counts: Counts, means: dict[str, float]) -> str:
    accuracy = 100 * counts.accuracy
    right = 100 * counts.correct.sum() / counts.n.sum()
    whole = f"{right:.0f} % of the {counts.split} images are right"
    if {"many", "few"} <= means.keys():
        return (
            f"{whole}:\n{100 * means['many']:.0f} % in the classes with many training images, "
            f"{100 * means['few']:.0f} % in those with few"
        )
    return f"{whole}; from {np.nanmin(accuracy):.0f} to {np.nanmax(accuracy):.0f} % by class"
