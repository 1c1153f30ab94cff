"""Loss and accuracy over training, as far as the run folder or the logger beside it knows them."""

import csv
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from firstlight.figures.evaluations import Counts, read_evaluations
from firstlight.figures.measurements import Floats, read_marks
from firstlight.figures.palette import BLUE, ORANGE, VERMILION, open_frame
from firstlight.figures.panels import draw_marks
from firstlight.figures.picture import WIDTH, NothingToDrawError, Picture
from firstlight.runfolder import RunFolder

KEYS: dict[tuple[str, str], tuple[str, ...]] = {
    ("loss", "training"): ("train/loss", "train_loss", "train_loss_epoch", "train/loss_epoch",
                           "loss", "loss_epoch"),
    ("loss", "validation"): ("val/loss", "val_loss", "valid_loss", "valid/loss", "validation_loss"),
    ("accuracy", "training"): ("train/top1", "train_acc", "train/acc", "train_accuracy",
                               "train/accuracy", "train_acc_epoch", "acc", "accuracy"),
    ("accuracy", "validation"): ("val/top1", "val_acc", "val/acc", "val_accuracy", "val/accuracy",
                                 "valid_acc"),
}  # fmt: skip
"""Usual names, ours first, of what is drawn."""

COLOURS = {"training": (BLUE, "o"), "validation": (ORANGE, "s"), "test": (VERMILION, "D")}
UNITS = {"loss": "loss (nats)", "accuracy": "accuracy (%)"}


@dataclass(frozen=True)
class Curve:
    """One quantity over training: accuracies in percent.

    Attributes:
        steps: optimiser updates, increasing.
        values: one each.
    """

    steps: Floats
    values: Floats


Curves = dict[tuple[str, str], Curve]
"""By quantity and stage."""


def read_curves(folder: RunFolder) -> tuple[Curves, str]:
    """Return what is known, and where from, in words.

    From the table ``scalars``; else from the file that Lightning's CSVLogger writes beside the
    folder; accuracies that neither has from the counts of classes.
    """
    found, source = _named(_scalars(folder)), "as the module logged it"
    if not found:
        file = folder.path.parent / "metrics.csv"
        found, source = _named(_csv(folder)), f"from {file.name} of the logger beside the run"
    evaluations = read_evaluations(folder)
    for stage, split in {"training": "train", "validation": "val", "test": "test"}.items():
        if ("accuracy", stage) not in found and split in evaluations:
            found["accuracy", stage] = _counted(evaluations[split])
    return found, source


def _counted(series: list[Counts]) -> Curve:
    values = [100 * one.correct.sum() / one.n.sum() for one in series]
    return Curve(np.array([one.step for one in series], float), np.array(values))


def _scalars(folder: RunFolder) -> dict[str, dict[float, float]]:
    table = folder.read("scalars").to_pydict()
    found: dict[str, dict[float, float]] = {}
    for step, key, value in zip(table["step"], table["key"], table["value"], strict=True):
        found.setdefault(key, {})[step] = np.nan if value is None else value
    return found


def _csv(folder: RunFolder) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {}
    try:
        with (folder.path.parent / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if key and key not in ("step", "epoch") and value:
                        found.setdefault(key, {})[float(row["step"])] = float(value)
    except (FileNotFoundError, KeyError, ValueError, TypeError):
        return {}  # another program's file
    return found


def _named(logged: dict[str, dict[float, float]]) -> Curves:
    curves = {}
    for place, names in KEYS.items():
        name = next((name for name in names if name in logged), None)
        if name is not None:
            steps = sorted(logged[name])
            values = np.array([logged[name][step] for step in steps], float)
            values = np.where(np.isfinite(values), values, np.nan)
            scale = 100 if place[0] == "accuracy" and np.nanmax(values, initial=0) <= 1 else 1
            curves[place] = Curve(np.array(steps, float), scale * values)
    return curves


def draw_training_curves(folder: RunFolder) -> Picture:
    """Draw loss and accuracy against steps, with what happened to the run.

    Raises:
        NothingToDrawError: where neither is known.
    """
    curves, source = read_curves(folder)
    shown = [quantity for quantity in UNITS if any(place[0] == quantity for place in curves)]
    if not shown:
        raise NothingToDrawError(
            "this run recorded neither loss nor accuracy over training: add PerClassMonitor, which "
            "keeps what the module logs"
        )
    figure = Figure(figsize=(WIDTH, 0.9 + 2.1 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, quantity in zip(panels, shown, strict=True):
        for stage, (colour, mark) in COLOURS.items():
            curve = curves.get((quantity, stage))
            if curve is not None:
                many = len(curve.steps) > 60
                axes.plot(curve.steps, curve.values, color=colour, marker="" if many else mark,
                          markersize=3.5, linewidth=1.5, label=stage)  # fmt: skip
        values = np.concatenate([c.values for place, c in curves.items() if place[0] == quantity])
        positive = values[values > 0]
        if quantity == "loss" and len(positive) == len(values) and values.max() > 30 * values.min():
            axes.set_yscale("log")
        axes.set_ylabel(UNITS[quantity])
        axes.legend(frameon=False, fontsize=9)
        open_frame(axes)
    panels[-1].set_xlabel("step (optimiser updates)")
    panels[-1].xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    marks = draw_marks(list(panels), read_marks(folder))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", fontsize=9, frameon=False)
    return Picture("training_curves", _finding(curves), figure, f"Once an epoch, {source}.")


def _finding(curves: Curves) -> str:
    for stage in ("validation", "training", "test"):
        curve = curves.get(("accuracy", stage))
        if curve is None or not np.isfinite(curve.values).any():
            continue
        best = int(np.nanargmax(curve.values))
        said = f"{stage.capitalize()} accuracy ends at {curve.values[-1]:.1f} %"
        if curve.values[-1] < curve.values[best] - 0.05:
            said += f", after {curve.values[best]:.1f} % at step {curve.steps[best]:,.0f}"
        training = curves.get(("accuracy", "training"))
        if stage == "validation" and training is not None:
            said += f"; training accuracy at {training.values[-1]:.1f} %"
        return said + _overfits(curves)
    loss = next(curve for place, curve in curves.items() if place[0] == "loss")
    return f"The loss goes from {loss.values[0]:.3g} to {loss.values[-1]:.3g}"


def _overfits(curves: Curves) -> str:
    """Where the validation loss was lowest, if it has risen by a tenth since."""
    curve = curves.get(("loss", "validation"))
    if curve is None or not np.isfinite(curve.values).any():
        return ""
    if not np.isfinite(curve.values[-1]):
        return "; the validation loss is no number at the end"
    low = int(np.nanargmin(curve.values))
    if curve.values[-1] <= 1.1 * curve.values[low]:
        return ""
    return (f"; the validation loss was lowest at step {curve.steps[low]:,.0f} and has risen from "
            f"{curve.values[low]:.2f} to {curve.values[-1]:.2f}")  # fmt: skip
