"""WHEN it happens in a run: thin Lightning callbacks for anybody's trainer."""

from firstlight.callbacks.per_class import PerClassMonitor
from firstlight.callbacks.prediction_writer import PredictionWriter

__all__ = ["PerClassMonitor", "PredictionWriter"]
