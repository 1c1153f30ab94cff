"""Tables of classifiers before and after: over all classes, and of each class."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from firstlight.callbacks.classes import find_classes
from firstlight.callbacks.labelled_sets import training_counts
from firstlight.callbacks.records import console
from firstlight.functional import ClassifierScores

MOST = 10
"""Classes shown at either end, of those that gained most and paid most."""


def show_comparison(
    trainer: Any,
    title: str,
    scores: Mapping[str, ClassifierScores],
    before: str,
    after: str | None,
    *,
    by_class: str,
    class_names: Sequence[str] | None = None,
    undefined: Mapping[str, str] | None = None,
) -> str:
    """Print classifiers side by side, and of two of them every class.

    Args:
        trainer: says what the classes are called and how often they were trained on.
        title: says on which data.
        scores: by name.
        before: a key of ``scores``.
        after: another, the one that is kept; None: no table by class.
        by_class: title of that table.
        class_names: one a class, where they are given.
        undefined: why rules have no classifier.

    Returns:
        What becomes of accuracy under either prior, in words; empty where nothing is kept.
    """
    num_classes = len(scores[before].counts)
    classes = find_classes(trainer, num_classes, class_names, None, (20, 100))
    prior = training_counts(trainer, num_classes)
    show_scores(title, scores, classes.names, chosen=after, undefined=undefined, prior=prior)
    if after is None:
        return ""
    show_classes(by_class, scores[before], scores[after], classes.names, classes.train_counts)
    return what_falls(scores[before], scores[after], prior)


def show_scores(
    title: str,
    scores: Mapping[str, ClassifierScores],
    names: Sequence[str],
    *,
    chosen: str | None = None,
    undefined: Mapping[str, str] | None = None,
    prior: Tensor | None = None,
) -> None:
    """Print a line for each classifier, the chosen one marked.

    Args:
        title: says on which data.
        scores: by name.
        names: of classes.
        chosen: a key of ``scores``.
        undefined: why rules have no classifier.
        prior: (K,), for a column of accuracy under it; None: no such column.
    """
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0)
    )
    table.add_column("", no_wrap=True)
    columns = ["worst", "mean", "all", *([] if prior is None else ["prior"])]
    for column in [*columns, "ECE", "at T", "T", "Brier"]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("worst class", overflow="fold")
    for name, one in scores.items():
        cells = [one.worst, one.macro, one.micro, *([] if prior is None else [one.under(prior)])]
        table.add_row(
            f"{name} *" if name == chosen else name,
            *(f"{100 * cell:.1f}" for cell in cells),
            _number(one.ece, 3),
            _number(one.ece_scaled, 3),
            _number(one.temperature, 2),
            _number(one.brier, 3),
            names[one.worst_class],
        )
    words = "mean: if classes came equally often"
    if prior is not None:
        words += ", prior: as often as in training"
    table.caption = (
        f"Accuracy in %; {words}.\nat T: ECE after temperature scaling, each half of the examples "
        "at the T that suits the other; T: of all"
    )
    table.caption_justify = "left"
    console.print(table)
    for name, why in (undefined or {}).items():
        console.print(f"{name} is {why}", highlight=False, soft_wrap=True, markup=False)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def show_classes(
    title: str,
    before: ClassifierScores,
    after: ClassifierScores,
    names: Sequence[str],
    train_counts: Sequence[int] | None,
) -> None:
    """Print accuracy before and after of every class, or of those that changed most."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for column in ("before %", "after %", "change", "n", "train n"):
        table.add_column(column, justify="right", no_wrap=True)
    change = after.accuracy - before.accuracy
    present = [k for k in range(len(names)) if before.counts[k] > 0]
    shown = present
    if len(present) > 2 * MOST:
        order = sorted(present, key=lambda k: float(change[k]))
        shown = order[:MOST] + order[-MOST:]
        table.caption = f"the {MOST} that paid most, and the {MOST} that gained most"
    for k in shown:
        table.add_row(
            names[k],
            f"{100 * float(before.accuracy[k]):.1f}",
            f"{100 * float(after.accuracy[k]):.1f}",
            f"{100 * float(change[k]):+.1f}",
            f"{int(before.counts[k]):,}",
            "?" if train_counts is None else f"{train_counts[k]:,}",
        )
    console.print(table)


def what_falls(before: ClassifierScores, after: ClassifierScores, prior: Tensor | None) -> str:
    """Say what became of accuracy under the uniform and the training prior, and which falls."""
    pairs = {"uniform": (before.macro, after.macro)}
    if prior is not None:
        pairs["training"] = (before.under(prior), after.under(prior))
    words = [
        f"under the {name} prior {100 * a:.1f} % becomes {100 * b:.1f} %"
        for name, (a, b) in pairs.items()
    ]
    falls = [name for name, (a, b) in pairs.items() if b < a]
    end = "neither falls" if len(pairs) > 1 else "it does not fall"
    if falls:
        end = f"accuracy under the {' and the '.join(falls)} prior falls"
    unknown = "" if prior is not None else " (the training prior is unknown: no class counts)"
    return f"Accuracy {', '.join(words)}: {end}{unknown}."
