"""``firstlight study``: a grid of runs from one file, then their comparison."""

from firstlight.study.command import StudyError, study

__all__ = ["StudyError", "study"]
