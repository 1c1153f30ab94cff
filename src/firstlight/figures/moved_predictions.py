"""Where predictions went: pairs of classes confused more, and classes that receive more."""

import numpy as np

from firstlight.figures.compared_folder import Columns, ComparedFolder
from firstlight.figures.confusions import MOST, rows_figure
from firstlight.figures.findings import points
from firstlight.figures.palette import BLUE, GREY, VERMILION
from firstlight.figures.picture import NothingToDrawError, Picture, label

BELOW = 0.3
"""Of a row's height: how far below it an interval is drawn."""

SURE = 4
"""Standard errors from which a class is said to receive more."""


def draw_confusion_shifts(compared: ComparedFolder, comparison: str) -> Picture:
    """Draw how often a class was taken for another before and after, for the largest changes.

    A grey bar below each row is the change's interval over seeds, laid off from the open mark; none
    is drawn where an arm has a single run.

    Raises:
        NothingToDrawError: where predictions did not move, or of a line over strength.
    """
    table = compared.read("confusion_shifts")
    rows = table["comparison"] == comparison
    if not rows.any():
        raise NothingToDrawError(f"{comparison}: no confusion of two classes changed")
    table = {name: values[rows] for name, values in table.items()}
    change = table["after"] - table["before"]
    order = np.argsort(-np.abs(change), kind="stable")[:MOST]
    known = "se" in table and bool(np.isfinite(table["se"]).all())
    figure, axes = rows_figure(len(order))
    for place, row in enumerate(order):
        colour = VERMILION if change[row] > 0 else BLUE
        before, after = 100 * table["before"][row], 100 * table["after"][row]
        axes.plot([before, after], [place, place], color=colour, linewidth=2)
        axes.plot(before, place, "o", color="white", markeredgecolor=colour, markersize=5.5)
        axes.plot(after, place, "o", color=colour, markersize=5.5)
        if known:
            ends = [max(0.0, before + 100 * table[end][row]) for end in ("low", "high")]
            axes.plot(ends, [place + BELOW] * 2, "|-", color=GREY, markersize=5, linewidth=1.2)
    names = [f"{label(table['target_name'][r], 13)} as {label(table['pred_name'][r], 13)}"
             for r in order]  # fmt: skip
    axes.set_yticks(range(len(order)), names, fontsize=9)
    words = "images of the class so predicted (%)\nopen mark: before, full: after"
    level = f"{100 * compared.settings['level']:.0f} %"
    if known:
        words = words.replace("open mark", "open") + f", bar: {level} CI"
    axes.set_xlabel(words)
    axes.set_xlim(left=0)
    top = order[0]
    verb = "is now" if change[top] > 0 else "is no longer so often"
    return Picture(
        compared.file_name(comparison, "-confusions"),
        f"{comparison}:\n{table['target_name'][top]} {verb} taken for {table['pred_name'][top]}: "
        f"{100 * table['before'][top]:.1f} % before, {100 * table['after'][top]:.1f} % after"
        f"{_interval(table, top, level) if known else ''}, the largest shift",
        figure,
        f"Orange: more often than before, blue: less often. {_sureness(known, level)}",
    )


def _interval(table: Columns, row: int, level: str) -> str:
    low, high = (points(table[end][row]) for end in ("low", "high"))
    return f" ({level} interval of the change {low} to {high} points)"


def _sureness(known: bool, level: str) -> str:
    if not known:
        return "Without intervals, for want of runs: the largest of many shifts is partly chance."
    return (
        f"Bars: {level} interval of the change, laid off from the open mark, for other seeds on "
        "these images and each pair by itself: the largest of many shifts is partly chance."
    )


def draw_receiving_classes(compared: ComparedFolder, comparison: str) -> Picture:
    """Draw the classes whose wrong predictions received changed most, with standard errors.

    Raises:
        NothingToDrawError: of a line over strength, or where nothing changed.
    """
    columns = compared.effects(comparison)
    growth = columns["received_after"] - columns["received_before"]
    if np.isnan(growth).all() or not growth.any():
        raise NothingToDrawError(f"{comparison}: no class receives more or fewer predictions")
    error = np.nan_to_num(columns["received_se"])
    order = np.argsort(-np.abs(growth), kind="stable")[:MOST]
    order = order[np.argsort(-growth[order], kind="stable")]
    figure, axes = rows_figure(len(order))
    colours = [VERMILION if growth[row] > 0 else BLUE for row in order]
    axes.barh(range(len(order)), growth[order], color=colours, height=0.65)
    axes.errorbar(growth[order], range(len(order)), xerr=2 * error[order], fmt="none",
                  ecolor=GREY, elinewidth=1.2, capsize=2.5)  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(order)), [label(columns["name"][row], 20) for row in order],
                    fontsize=9)  # fmt: skip
    axes.set_xlabel("change of wrong predictions received, a run\n(± 2 standard errors)")
    return Picture(
        compared.file_name(comparison, "-receiving"),
        f"{comparison}:\n{_receives(columns)}",
        figure,
        "False positives: images of other classes that are taken for this one.",
    )  # fmt: skip


def _receives(columns: Columns) -> str:
    growth = columns["received_after"] - columns["received_before"]
    error = columns["received_se"]
    top, low = int(np.nanargmax(growth)), int(np.nanargmin(growth))
    if growth[top] <= 0:
        return f"no class receives more wrong predictions, {columns['name'][low]} fewest of all"
    said = f"{columns['name'][top]} receives {growth[top]:+.1f} wrong predictions a run"
    if np.isnan(error[top]):
        return f"{said}, the most; one run in an arm gives no standard error"
    if growth[top] > SURE * error[top]:
        return f"{said} (± {error[top]:.1f}), the most"
    return (
        f"no class receives more wrong predictions by {SURE} standard errors; "
        f"{columns['name'][top]} has {growth[top]:+.1f} ± {error[top]:.1f}"
    )
