"""``firstlight report``: one page about a run, a comparison or a study."""

from firstlight.report.command import report

__all__ = ["report"]
