"""The accuracy of every class, beside the shot groups."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from firstlight.figures.palette import BLACK, SHOT_COLOURS, open_frame, save
from firstlight.functional import SHOTS, wilson_interval
from firstlight.runfolder import RunFolder, RunFolderError

NAMED = 40
"""Most classes whose names fit under the bars."""


def per_class_figure(run: str | Path, split: str = "test") -> Path:
    """Draw the accuracy of every class, the most frequent first, beside the shot groups.

    Args:
        run: a run folder with the tables ``per_class`` and ``classes``.
        split: which evaluation; its last step is drawn.

    Returns:
        The PNG; an SVG of the same name stands beside it.

    Raises:
        RunFolderError: where the run has no such evaluation.
    """
    folder = RunFolder.open(run)
    rows = folder.read("per_class").to_pylist()
    rows = [row for row in rows if row["split"] == split]
    if not rows:
        raise RunFolderError(f"{run} holds no evaluation of {split!r}")
    last = max(row["step"] for row in rows)
    counts = sorted((r for r in rows if r["step"] == last), key=lambda row: row["class"])
    n = np.array([row["n"] for row in counts], float)
    correct = np.array([row["correct"] for row in counts], float)
    classes = folder.read("classes").to_pydict()
    figure = Figure(figsize=(8.5, 4.4), layout="constrained")
    bars, groups = figure.subplots(1, 2, width_ratios=(3.6, 1), sharey=True)
    _draw_classes(bars, n, correct, classes)
    _draw_groups(groups, n, correct, classes["shot"])
    figure.suptitle(_finding(n, correct, classes["shot"], split), fontsize=11, wrap=True)
    return save(figure, folder.path / "figures" / f"per_class-{split.replace('/', '_')}.png")


def _draw_classes(
    axes: Axes, n: NDArray[Any], correct: NDArray[Any], classes: dict[str, list[Any]]
) -> None:
    known = classes["full_count"][0] is not None
    trained = np.array(classes["full_count"] if known else n, float)
    order = np.argsort(-trained, kind="stable")
    accuracy = 100 * correct / np.where(n > 0, n, np.nan)
    low, high = (100 * bound for bound in wilson_interval(correct, n))
    x = np.arange(len(order))
    colours = [SHOT_COLOURS[classes["shot"][c]] for c in order]
    errors = np.stack([accuracy - low, high - accuracy])[:, order]
    axes.bar(x, accuracy[order], color=colours, width=0.8)
    axes.errorbar(x, accuracy[order], errors, fmt="none", ecolor=BLACK, elinewidth=0.8)
    axes.set_ylabel("accuracy of the class (%), 95 % interval")
    axes.set_ylim(0, 103)
    axes.set_xlabel("class, the most frequent in training first" if known else "class")
    if len(order) <= NAMED:
        labels = [
            f"{classes['name'][c]}\n{int(trained[c]):,}" if known else classes["name"][c]
            for c in order
        ]
        axes.set_xticks(x, labels, fontsize=8, rotation=0 if len(order) <= 12 else 90)
        if known:
            axes.set_xlabel("class, and its training images")
    open_frame(axes)


def _draw_groups(
    axes: Axes, n: NDArray[Any], correct: NDArray[Any], shots: list[str | None]
) -> None:
    accuracy = 100 * correct / np.where(n > 0, n, np.nan)
    means = _means(accuracy, shots)
    for x, name in enumerate(SHOTS):
        if name in means:
            axes.bar(x, means[name], color=SHOT_COLOURS[name], width=0.7)
            axes.text(x, means[name] + 1, f"{means[name]:.0f}", ha="center", fontsize=9)
    axes.set_xticks(range(3), SHOTS, fontsize=8)
    axes.set_xlabel("mean of the group (%)")
    open_frame(axes)


def _means(accuracy: NDArray[Any], shots: list[str | None]) -> dict[str, float]:
    groups = np.array(shots, dtype=object)
    members = {name: accuracy[(groups == name) & ~np.isnan(accuracy)] for name in SHOTS}
    return {name: float(values.mean()) for name, values in members.items() if len(values)}


def _finding(n: NDArray[Any], correct: NDArray[Any], shots: list[str | None], split: str) -> str:
    accuracy = 100 * correct / np.where(n > 0, n, np.nan)
    means = _means(accuracy, shots)
    whole = f"{100 * correct.sum() / n.sum():.0f} % of the {split} images are right"
    if {"many", "few"} <= means.keys():
        return (
            f"{whole}:\n{means['many']:.0f} % in the classes with many training images, "
            f"{means['few']:.0f} % in those with few"
        )
    return f"{whole}; from {np.nanmin(accuracy):.0f} to {np.nanmax(accuracy):.0f} % by class"
