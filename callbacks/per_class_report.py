"""What PerClassMonitor shows at the end: the worst classes, as a table and as pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from firstlight.callbacks.classes import Classes
from firstlight.callbacks.evaluation import Evaluation
from firstlight.callbacks.records import console, forked_random_states
from firstlight.functional import (
    confusion_pairs,
    expected_worst_accuracy,
    per_class_rates,
    wilson_interval,
)
from firstlight.functional.batches import INPUT_KEYS
from firstlight.runfolder import replacing

LARGEST = 96
"""Pixels of an example's longer side."""

PER_CLASS = 4
"""Examples kept of each of the worst classes."""


def worst_classes(counts: dict[str, Tensor], how_many: int) -> list[int]:
    """Classes with examples, by ascending accuracy, the lower index first on a tie."""
    accuracy = per_class_rates(counts)["accuracy"]
    order = np.argsort(accuracy, kind="stable")  # NaN sorts last
    return [int(c) for c in order[:how_many] if not np.isnan(accuracy[c])]


def show_worst(evaluation: Evaluation, classes: Classes, how_many: int) -> None:
    """Print the worst classes with their intervals and what they are taken for."""
    counts = evaluation.result
    worst = worst_classes(counts, how_many)
    if not worst:
        return
    rates = per_class_rates(counts)
    n, correct = counts["n"].double().numpy(), counts["correct"].double().numpy()
    low, high = wilson_interval(correct, n)
    title = f"{evaluation.split}: the {len(worst)} worst classes"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    left = ("class", "taken for", "shots")
    titles = ("class", "acc. %", "95 % CI", "prec. %", "n", "taken for", "shots", "train n")
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right")
    trained = classes.train_counts
    for c in worst:
        precision = rates["precision"][c]
        table.add_row(
            classes.names[c],
            f"{100 * rates['accuracy'][c]:.1f}",
            f"{100 * low[c]:.0f} to {100 * high[c]:.0f}",
            "never" if np.isnan(precision) else f"{100 * precision:.1f}",
            f"{int(n[c]):,}",
            _taken_for(evaluation, classes, c),
            classes.shots[c] or "",
            "?" if trained is None else f"{trained[c]:,}",
        )
    micro, present = correct.sum() / n.sum(), n[n > 0]
    chance = expected_worst_accuracy(len(present), int(np.median(present)), micro)
    table.caption = (
        f"accuracy {100 * micro:.1f} %, mean over classes {100 * np.nanmean(rates['accuracy']):.1f}"
        f" %; were all classes equally good, the worst would show about {100 * chance:.0f} %"
    )
    console.print(table)


def _taken_for(evaluation: Evaluation, classes: Classes, c: int) -> str:
    of_class = evaluation.table["target"] == c
    _, pred, count = confusion_pairs(
        evaluation.table["target"][of_class], evaluation.table["pred"][of_class]
    )
    return f"{classes.names[pred[0]]} ({count[0]})" if len(count) else ""


def save_examples(folder: Path, evaluation: Evaluation, how_many: int, datamodule: Any) -> str:
    """Write the costliest errors of the worst classes as PNG, in place of earlier ones.

    Images are read from the data set again, by index, under forked random states. Float images are
    brought back to colours by the data module's ``mean`` and ``std``, and stretched to their own
    range where there is none.

    Returns:
        What kept the images from being read, or "".
    """
    for old in (folder / "examples").glob("*.png"):
        old.unlink()
    with forked_random_states():
        return _save(folder, evaluation, how_many, datamodule)


def _save(folder: Path, evaluation: Evaluation, how_many: int, datamodule: Any) -> str:
    table = evaluation.table
    for c in worst_classes(evaluation.result, how_many):
        errors = np.flatnonzero((table["target"] == c) & (table["pred"] != c))
        for row in errors[np.argsort(-table["nll"][errors], kind="stable")][:PER_CLASS]:
            index = int(table["idx"][row])
            image = _image(evaluation.dataset, index, datamodule)
            if image is None:
                return (
                    f"PerClassMonitor: no example images of {evaluation.split}: its data set "
                    f"({type(evaluation.dataset).__name__}) gives no images (C, H, W) by index."
                )
            with replacing(folder / "examples" / f"{c}_{index}.png") as temporary:
                image.save(temporary, format="PNG")
    return ""


def _image(dataset: Any, index: int, datamodule: Any) -> Image.Image | None:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return None
    item = dataset[index]
    if isinstance(item, Mapping):
        item = next((item[key] for key in INPUT_KEYS if key in item), None)
    elif isinstance(item, tuple | list):
        item = item[0]
    if isinstance(item, Tensor):
        if item.ndim != 3 or item.shape[0] not in (1, 3):
            return None
        pixels = _to_uint8(item.detach().cpu(), datamodule).permute(1, 2, 0).numpy()
        item = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    if not isinstance(item, Image.Image):
        return None
    image = item.convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    return image


def _to_uint8(image: Tensor, datamodule: Any) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    mean, std = getattr(datamodule, "mean", None), getattr(datamodule, "std", None)
    image = image.float()
    if mean is not None and std is not None and len(mean) == len(image):
        image = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    else:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)
