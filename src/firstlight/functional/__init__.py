"""WHAT is computed: pure functions of tensors, modules and counts; never Lightning."""

from firstlight.functional.class_summary import (
    confusion_pairs,
    expected_worst_accuracy,
    per_class_rates,
    summarise_classes,
    wilson_interval,
)
from firstlight.functional.per_class import ExampleScores, PerClassCounts, score_examples
from firstlight.functional.seeding import fold_in, keyed_generator
from firstlight.functional.sharding import example_positions
from firstlight.functional.shot_groups import SHOTS, ShotGroups, shot_groups

__all__ = [
    "SHOTS",
    "ExampleScores",
    "PerClassCounts",
    "ShotGroups",
    "confusion_pairs",
    "example_positions",
    "expected_worst_accuracy",
    "fold_in",
    "keyed_generator",
    "per_class_rates",
    "score_examples",
    "shot_groups",
    "summarise_classes",
    "wilson_interval",
]
