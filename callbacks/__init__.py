"""WHEN it happens in a run: thin Lightning callbacks for anybody's trainer."""

from firstlight.callbacks.per_class import PerClassMonitor

__all__ = ["PerClassMonitor"]
