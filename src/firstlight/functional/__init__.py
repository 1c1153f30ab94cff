"""WHAT is computed: pure functions of tensors, modules and counts; never Lightning."""

from firstlight.functional.best_strengths import (
    BestByChance,
    BestStrengths,
    best_by_chance,
    best_strengths,
)
from firstlight.functional.calibration import Calibration, calibration, fit_temperature
from firstlight.functional.class_count_loss import ClassCountLoss
from firstlight.functional.class_effects import (
    ClassEffects,
    Halves,
    NewImageEffects,
    benjamini_hochberg,
    class_effects,
    convincing,
    new_image_effects,
    select_on_half,
    shrink_effects,
)
from firstlight.functional.class_groups import GroupAccuracy, group_accuracy, same_group_share
from firstlight.functional.class_summary import (
    confusion_pairs,
    expected_worst_accuracy,
    per_class_rates,
    summarise_classes,
    wilson_interval,
)
from firstlight.functional.class_weights import (
    ClassWeights,
    RuleUndefinedError,
    class_weights,
    effective_dimension,
)
from firstlight.functional.classifier_scores import ClassifierScores, ScoreSums, score_classifier
from firstlight.functional.confusion_shifts import ConfusionShifts, confusion_shifts
from firstlight.functional.deep_feature_reweighting import deep_feature_reweighting
from firstlight.functional.effect_variance import (
    EffectVariance,
    effect_variance,
    widening_factor,
)
from firstlight.functional.fisher_penalty import fisher_penalty
from firstlight.functional.fisher_trace import FisherTrace, fisher_trace
from firstlight.functional.head_baselines import (
    NearestClassMean,
    best_tau,
    class_balanced_retraining,
    label_over_smoothing,
    learnable_weight_scaling,
    tau_normalise,
)
from firstlight.functional.head_features import HeadFeatures
from firstlight.functional.head_rules import RULES, HeadRule
from firstlight.functional.hessian import TopEigenvalue, edge_of_stability, hessian_top_eigenvalue
from firstlight.functional.logistic_head import fit_logistic_head
from firstlight.functional.long_tail import (
    long_tailed_counts,
    long_tailed_indices,
    stratified_split,
)
from firstlight.functional.long_tail_losses import (
    BalancedSoftmaxLoss,
    CDTLoss,
    ClassBalancedLoss,
    CosineHead,
    CostSensitiveLoss,
    FocalLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    VectorScalingLoss,
)
from firstlight.functional.max_t import MaxT, max_t_permutations
from firstlight.functional.measuring import (
    estimate_batch_norm,
    untouched_batch_norms,
    warm_batch_norm,
)
from firstlight.functional.mixing import cutmix, mixup
from firstlight.functional.moderated_t import (
    ModeratedT,
    VariancePrior,
    moderate_variances,
    moderated_t,
)
from firstlight.functional.noise_schedule import NoiseSchedule
from firstlight.functional.null_band import NullBand, null_band
from firstlight.functional.parameter_blocks import parameter_blocks
from firstlight.functional.parameter_groups import parameter_groups
from firstlight.functional.per_class import (
    ExampleScores,
    PerClassCounts,
    rank_of_target,
    score_examples,
)
from firstlight.functional.perturb_weights import (
    NoiseRule,
    NoiseSummary,
    Perturbation,
    noise_groups,
    perturb_weights,
    summarise_noise,
)
from firstlight.functional.prior_correction import (
    EffectivePrior,
    PriorDistance,
    correct_logits,
    effective_prior,
    prior_distance,
    prior_offset,
)
from firstlight.functional.ranks import Ranks
from firstlight.functional.real_labels import (
    MultiLabelAccuracy,
    accepted_predictions,
    multi_label_accuracy,
)
from firstlight.functional.relabelled_effects import RelabelledEffects, relabelled_effects
from firstlight.functional.retrain_last_layer import RetrainedHeads, retrain_last_layer
from firstlight.functional.retrained_head import RetrainedHead
from firstlight.functional.ridge_search import RidgeSearch, leave_one_out_ridge, search_ridges
from firstlight.functional.scored_runs import ScoredRuns, slope_weights
from firstlight.functional.seeding import fold_in, keyed_generator
from firstlight.functional.sharding import example_positions
from firstlight.functional.sharpness import Sharpness, average_sharpness
from firstlight.functional.shot_groups import SHOTS, ShotGroups, shot_groups
from firstlight.functional.squared_head import (
    equal_leverage_weights,
    fit_squared_head,
    leave_one_out_midpoint,
)
from firstlight.functional.sufficient_statistics import LastLayerStatistics
from firstlight.functional.transitions import Received, Transitions, received, transitions
from firstlight.functional.two_class_theory import TwoClassErrors, two_class_errors
from firstlight.functional.unfreezing_interval import (
    StabilityRule,
    UnfreezingInterval,
    unfreezing_interval,
)
from firstlight.functional.worst_case import worst_case_sharpness

__all__ = [
    "RULES",
    "SHOTS",
    "BalancedSoftmaxLoss",
    "BestByChance",
    "BestStrengths",
    "CDTLoss",
    "Calibration",
    "ClassBalancedLoss",
    "ClassCountLoss",
    "ClassEffects",
    "ClassWeights",
    "ClassifierScores",
    "ConfusionShifts",
    "CosineHead",
    "CostSensitiveLoss",
    "EffectVariance",
    "EffectivePrior",
    "ExampleScores",
    "FisherTrace",
    "FocalLoss",
    "GroupAccuracy",
    "Halves",
    "HeadFeatures",
    "HeadRule",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LastLayerStatistics",
    "LogitAdjustedLoss",
    "MaxT",
    "ModeratedT",
    "MultiLabelAccuracy",
    "NearestClassMean",
    "NewImageEffects",
    "NoiseRule",
    "NoiseSchedule",
    "NoiseSummary",
    "NullBand",
    "PerClassCounts",
    "Perturbation",
    "PriorDistance",
    "Ranks",
    "Received",
    "RelabelledEffects",
    "RetrainedHead",
    "RetrainedHeads",
    "RidgeSearch",
    "RuleUndefinedError",
    "ScoreSums",
    "ScoredRuns",
    "Sharpness",
    "ShotGroups",
    "StabilityRule",
    "TopEigenvalue",
    "Transitions",
    "TwoClassErrors",
    "UnfreezingInterval",
    "VariancePrior",
    "VectorScalingLoss",
    "accepted_predictions",
    "average_sharpness",
    "benjamini_hochberg",
    "best_by_chance",
    "best_strengths",
    "best_tau",
    "calibration",
    "class_balanced_retraining",
    "class_effects",
    "class_weights",
    "confusion_pairs",
    "confusion_shifts",
    "convincing",
    "correct_logits",
    "cutmix",
    "deep_feature_reweighting",
    "edge_of_stability",
    "effect_variance",
    "effective_dimension",
    "effective_prior",
    "equal_leverage_weights",
    "estimate_batch_norm",
    "example_positions",
    "expected_worst_accuracy",
    "fisher_penalty",
    "fisher_trace",
    "fit_logistic_head",
    "fit_squared_head",
    "fit_temperature",
    "fold_in",
    "group_accuracy",
    "hessian_top_eigenvalue",
    "keyed_generator",
    "label_over_smoothing",
    "learnable_weight_scaling",
    "leave_one_out_midpoint",
    "leave_one_out_ridge",
    "long_tailed_counts",
    "long_tailed_indices",
    "max_t_permutations",
    "mixup",
    "moderate_variances",
    "moderated_t",
    "multi_label_accuracy",
    "new_image_effects",
    "noise_groups",
    "null_band",
    "parameter_blocks",
    "parameter_groups",
    "per_class_rates",
    "perturb_weights",
    "prior_distance",
    "prior_offset",
    "rank_of_target",
    "received",
    "relabelled_effects",
    "retrain_last_layer",
    "same_group_share",
    "score_classifier",
    "score_examples",
    "search_ridges",
    "select_on_half",
    "shot_groups",
    "shrink_effects",
    "slope_weights",
    "stratified_split",
    "summarise_classes",
    "summarise_noise",
    "tau_normalise",
    "transitions",
    "two_class_errors",
    "unfreezing_interval",
    "untouched_batch_norms",
    "warm_batch_norm",
    "widening_factor",
    "wilson_interval",
    "worst_case_sharpness",
]
