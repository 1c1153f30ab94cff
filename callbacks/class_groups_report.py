"""What PerClassMonitor says about the groups of classes that a data module knows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from firstlight.callbacks.evaluation import Evaluation
from firstlight.callbacks.records import console
from firstlight.functional import group_accuracy, per_class_rates, same_group_share


def report_groups(
    evaluation: Evaluation,
    groups: Mapping[str, Sequence[str]],
    write: Callable[[str, Mapping[str, Any]], Any] | None,
) -> None:
    """Print a line for each kind of group; write the table ``class_groups`` with all of them.

    Its rows have ``kind`` (the kind), ``block`` (the group), ``value`` (mean accuracy of its
    classes) and ``n`` (how many of them have examples); the row of a kind with an empty ``block``
    has the share of examples that were put into the right group, and their number.

    Args:
        evaluation: after `Evaluation.collect`.
        groups: by kind, the name of each class's group; kinds of another number of classes than
            the evaluation's are left aside, as class names of another number are.
        write: takes the table's name and columns; None where there is no run folder.
    """
    accuracy = per_class_rates(evaluation.result)["accuracy"]
    groups = {kind: names for kind, names in groups.items() if len(names) == len(accuracy)}
    if not groups:
        return
    target, pred = evaluation.table["target"], evaluation.table["pred"]
    title = f"{evaluation.split}: by groups of classes"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("group", "number", "right group %", "worst (mean of its classes)"):
        shown.add_column(column, justify="right" if column[0] in "nr" else "left")
    rows: dict[str, list[Any]] = {name: [] for name in ("kind", "block", "value", "n")}
    for kind, names in groups.items():
        found, share = group_accuracy(accuracy, names), same_group_share(target, pred, names)
        worst = int(np.nanargmin(found.mean))
        shown.add_row(kind, str(len(found.names)), f"{100 * share:.1f}",
                      f"{found.names[worst]} {100 * found.mean[worst]:.1f} % "
                      f"({found.classes[worst]} classes)")  # fmt: skip
        rows["kind"] += [kind] * (1 + len(found.names))
        rows["block"] += ["", *found.names]
        rows["value"] += [share, *found.mean.tolist()]
        rows["n"] += [len(target), *found.classes.tolist()]
    console.print(shown)
    if write is not None:
        write("class_groups", rows)
