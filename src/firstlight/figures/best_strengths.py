"""Classes by the strength that is best for them, over what chance alone gives."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from firstlight.figures.compared_folder import ComparedFolder
from firstlight.figures.findings import points
from firstlight.figures.palette import BLACK, BLUE, GREY, open_frame
from firstlight.figures.picture import WIDTH, NothingToDrawError, Picture, label

SURE = 0.05
"""P of all bars together below which chance does not explain them."""


def draw_best_strengths(compared: ComparedFolder) -> Picture:
    """Draw how many classes are best at each strength, and where chance alone puts each bar.

    Raises:
        NothingToDrawError: where no line over strength was fitted.
    """
    told = [one["best_strengths"] for one in compared.summary["comparisons"]
            if "best_strengths" in one]  # fmt: skip
    if not told:
        raise NothingToDrawError(
            "classes are not counted by their best strength, which needs three arms or more that "
            "all have one"
        )
    (found,) = told
    classes, chance = found["classes"], found.get("by_chance")
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(classes)), classes, color=BLUE, width=0.6)
    handles: list[Any] = [Patch(color=BLUE, label="classes")]
    if chance is not None:
        for place, (low, median, high) in enumerate(
            zip(*(chance[key] for key in ("low", "median", "high")), strict=True)
        ):
            axes.add_patch(Rectangle((place - 0.42, low), 0.84, high - low, facecolor=GREY,
                                     alpha=0.45, edgecolor="none", zorder=3))  # fmt: skip
            axes.plot([place - 0.42, place + 0.42], [median] * 2, color=BLACK, linewidth=1,
                      zorder=4)  # fmt: skip
        level = f"{100 * compared.settings['level']:.0f} %"
        words = f"chance alone, {level} of each bar"
        handles += [Patch(color=GREY, alpha=0.45, linewidth=0, label=words),
                    Line2D([], [], color=BLACK, linewidth=1, label="its median")]  # fmt: skip
    axes.set_xticks(range(len(classes)), [f"{strength:g}" for strength in found["strengths"]])
    axes.set_ylim(0, 1.05 * max([*classes, *(chance["high"] if chance else [])]))
    axes.set_xlabel(label(f"strength of {compared.factor}") + "\nat which the class is best")
    axes.set_ylabel("classes")
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower left", ncols=3)
    open_frame(axes)
    return Picture("best_strengths", _finding(found), figure, _note(found))


def _finding(found: dict[str, Any]) -> str:
    classes, chance = np.array(found["classes"]), found.get("by_chance")
    total, top = round(classes.sum()), int(classes.argmax())
    most = (f"{classes[top]:,.0f} of {total:,} classes are best at {found['strengths'][top]:g}, "
            "the most")  # fmt: skip
    if chance is None:
        return f"{most}; no draws say what chance alone would give"
    low, high = np.array(chance["low"]), np.array(chance["high"])
    if found["p"] >= SURE:
        return f"{most};\nchance explains that if strength does the same to all"
    far = int(np.maximum(classes - high, low - classes).argmax())
    more = "more" if classes[far] > chance["median"][far] else "fewer"
    return (
        f"{classes[far]:,.0f} of {total:,} classes are best at {found['strengths'][far]:g}, {more} "
        f"than the {low[far]:,.0f} to {high[far]:,.0f}\nof classes that are all alike"
    )


def _note(found: dict[str, Any]) -> str:
    average = (f"At {found['average_best']:g}, best on average, classes are "
               f"{points(found['regret'])} points off their own best")  # fmt: skip
    if "regret_by_chance" in found:
        average += f", by chance alone {points(found['regret_by_chance'][0])}"
    return (
        f"{average}. Chance: strength does the same to all classes, be that much or nothing. A "
        "class for which strengths tie counts in parts."
    )
