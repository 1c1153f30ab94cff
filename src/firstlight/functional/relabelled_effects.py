"""Effects on classes by other labels of the same images: which are effects on the labels?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firstlight.functional.class_effects import ClassEffects, class_effects
from firstlight.functional.moderated_t import moderated_t
from firstlight.functional.scored_runs import Floats, ScoredRuns


@dataclass(frozen=True)
class RelabelledEffects:
    """Effects by two ways of judging the same predictions; arrays are (C,), NaN without images.

    Classes are those of the original labels on both sides: the images of a class are the same, only
    what counts as right for them differs.

    Attributes:
        n: images of each class that are judged on both sides.
        original: effect by the original labels, on these images only.
        relabelled: effects by the other labels.
        accuracy: by the other labels, mean over the runs of every arm, (A, C).
        moved: ``relabelled.effect - original``.
        moved_se: its standard error over seeds, the runs judged both ways being the same; class by
            class, without moderation. NaN with one run an arm.
    """

    n: Floats
    original: Floats
    relabelled: ClassEffects
    accuracy: Floats
    moved: Floats
    moved_se: Floats


def relabelled_effects(
    runs: ScoredRuns,
    accepted: ArrayLike,
    labelled: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    trend: bool = False,
    level: float = 0.95,
) -> RelabelledEffects:
    """Test every class for an effect by other labels, beside that by the original ones.

    Images without another label are left out of both sides. An effect that shrinks towards 0 was,
    as far as the other labels are right, one on what the original labels called wrong.

    Args:
        runs: judged by the original labels.
        accepted: whether each run is right by the other labels, (runs, N).
        labelled: which images have another label, (N,).
        weights: of the arms, as in `class_effects`, like ``trend`` and ``level``.
        trend: likewise.
        level: likewise.

    Raises:
        ValueError: where no image has another label, or shapes do not fit.
    """
    kept: NDArray[np.bool_] = np.asarray(labelled, np.bool_)
    right = np.asarray(accepted)
    if right.shape != runs.correct.shape or kept.shape != runs.targets.shape:
        raise ValueError(f"accepted must be {runs.correct.shape}, labelled {runs.targets.shape}; "
                         f"got {right.shape} and {kept.shape}")  # fmt: skip
    if not kept.any():
        raise ValueError("no image has another label")
    targets, arms, classes = runs.targets[kept], runs.arms, runs.num_classes
    original = ScoredRuns(runs.correct[:, kept], targets, arms, classes)
    relabelled = ScoredRuns(right[:, kept], targets, arms, classes)
    first, second, n = original.accuracy, relabelled.accuracy, original.n
    found = class_effects(relabelled, weights, trend=trend, level=level)
    moved = moderated_t(second - first, n, arms, weights, moderate=False)
    means = np.stack([second[arms == arm].mean(0) for arm in range(len(runs.replicas))])
    return RelabelledEffects(n, found.effect - moved.effect, found, means, moved.effect, moved.se)
