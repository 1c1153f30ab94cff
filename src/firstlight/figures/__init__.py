"""Figures drawn from a run folder; each title is the sentence that the figure says."""

from firstlight.figures.early_training import early_training_figure
from firstlight.figures.per_class import per_class_figure

__all__ = ["early_training_figure", "per_class_figure"]
