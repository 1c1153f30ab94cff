"""Figures drawn from the folder of a run or a comparison; each title is what the figure says."""

from firstlight.figures.class_effects import class_effects_figure
from firstlight.figures.class_strengths import class_strengths_figure
from firstlight.figures.early_training import early_training_figure
from firstlight.figures.per_class import per_class_figure

__all__ = [
    "class_effects_figure",
    "class_strengths_figure",
    "early_training_figure",
    "per_class_figure",
]
