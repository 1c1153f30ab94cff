"""WHEN it happens in a run: thin Lightning callbacks for anybody's trainer."""

from firstlight.callbacks.fisher_trace import FisherTraceMonitor
from firstlight.callbacks.gradual_unfreezing import GradualUnfreezing
from firstlight.callbacks.last_layer_retraining import LastLayerRetraining
from firstlight.callbacks.per_class import PerClassMonitor
from firstlight.callbacks.prediction_writer import PredictionWriter
from firstlight.callbacks.prior_correction import PriorCorrection
from firstlight.callbacks.probe import ProbeMonitor
from firstlight.callbacks.sharpness import SharpnessMonitor
from firstlight.callbacks.weight_noise import WeightNoise

__all__ = [
    "FisherTraceMonitor",
    "GradualUnfreezing",
    "LastLayerRetraining",
    "PerClassMonitor",
    "PredictionWriter",
    "PriorCorrection",
    "ProbeMonitor",
    "SharpnessMonitor",
    "WeightNoise",
]
