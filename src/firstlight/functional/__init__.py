"""WHAT is computed: pure functions of tensors, modules and counts; never Lightning."""

from firstlight.functional.class_summary import (
    confusion_pairs,
    expected_worst_accuracy,
    per_class_rates,
    summarise_classes,
    wilson_interval,
)
from firstlight.functional.long_tail import (
    long_tailed_counts,
    long_tailed_indices,
    stratified_split,
)
from firstlight.functional.mixing import cutmix, mixup
from firstlight.functional.parameter_blocks import parameter_blocks
from firstlight.functional.parameter_groups import parameter_groups
from firstlight.functional.per_class import (
    ExampleScores,
    PerClassCounts,
    rank_of_target,
    score_examples,
)
from firstlight.functional.seeding import fold_in, keyed_generator
from firstlight.functional.sharding import example_positions
from firstlight.functional.shot_groups import SHOTS, ShotGroups, shot_groups

__all__ = [
    "SHOTS",
    "ExampleScores",
    "PerClassCounts",
    "ShotGroups",
    "confusion_pairs",
    "cutmix",
    "example_positions",
    "expected_worst_accuracy",
    "fold_in",
    "keyed_generator",
    "long_tailed_counts",
    "long_tailed_indices",
    "mixup",
    "parameter_blocks",
    "parameter_groups",
    "per_class_rates",
    "rank_of_target",
    "score_examples",
    "shot_groups",
    "stratified_split",
    "summarise_classes",
    "wilson_interval",
]
