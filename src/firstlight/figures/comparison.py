"""All figures of a comparison, and what is missing among them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from firstlight.figures.best_strengths import draw_best_strengths
from firstlight.figures.class_effects import (
    draw_by_accuracy,
    draw_evidence,
    draw_sorted_effects,
)
from firstlight.figures.class_strengths import draw_strengths, draw_worst_classes
from firstlight.figures.compared_folder import ComparedFolder
from firstlight.figures.moved_predictions import draw_confusion_shifts, draw_receiving_classes
from firstlight.figures.other_labels import draw_other_labels
from firstlight.figures.picture import NothingToDrawError, Picture


@dataclass(frozen=True)
class Drawn:
    """Figures of one kind.

    Attributes:
        pictures: those that could be drawn.
        missing: why others could not, in sentences.
    """

    pictures: list[Picture]
    missing: list[str]


def comparison_pictures(compared: ComparedFolder) -> dict[str, Drawn]:
    """Draw what a comparison says of its classes.

    Returns:
        ``effects``, of the last comparison, which is the line over strength where there is one;
        ``strengths``, what strength does; ``labels``, effects by other labels; ``moved``, where
        predictions went between the first arm and the last; ``others``, sorted effects of the other
        comparisons.
    """
    *others, main = compared.comparisons
    arms = compared.between_arms[-1:]
    return {
        "effects": draw(
            partial(one, compared, main)
            for one in (draw_sorted_effects, draw_evidence, draw_by_accuracy)
        ),
        "strengths": draw(
            partial(one, compared)
            for one in (draw_strengths, draw_worst_classes, draw_best_strengths)
        ),
        "labels": draw(
            partial(draw_other_labels, compared, name)
            for name in ([main] if compared.summary.get("real") else [])
        ),
        "moved": draw(
            partial(one, compared, last)
            for last in arms
            for one in (draw_confusion_shifts, draw_receiving_classes)
        ),
        "others": draw(partial(draw_sorted_effects, compared, name) for name in others),
    }


def draw(drawers: Iterable[Callable[[], Picture]]) -> Drawn:
    """Draw; what cannot be drawn says why."""
    pictures, missing = [], []
    for one in drawers:
        try:
            pictures.append(one())
        except NothingToDrawError as error:
            missing.append(str(error))
    return Drawn(pictures, list(dict.fromkeys(missing)))
