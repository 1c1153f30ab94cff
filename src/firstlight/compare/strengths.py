"""The best strength of every class, as columns and summary of the line over strength."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from firstlight.compare.runs import ComparedRuns
from firstlight.functional import ScoredRuns, best_by_chance, best_strengths


def best_strength_columns(
    runs: ComparedRuns, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each class's best strength and regret, and the histogram beside what chance gives.

    Arms of one strength are taken together. Of strengths that tie for a class the column names the
    least, ``best_ties`` says how many there are, and each counts alike in the histogram.
    """
    strengths, members = np.unique([arm.strength for arm in runs.arms], return_inverse=True)
    scored = runs.scored
    pooled = ScoredRuns(scored.correct, scored.targets, members[scored.arms], scored.num_classes)
    found, present = best_strengths(pooled), pooled.n > 0
    columns = {
        "best_strength": np.where(present, strengths[found.best.argmax(1)], np.nan),
        "best_ties": found.best.sum(1),
        "regret": found.regret,
    }
    summary: dict[str, Any] = {
        "strengths": strengths.tolist(),
        "classes": found.histogram.tolist(),
        "average_best": float(strengths[found.average_best]),
        "regret": float(found.regret[present].mean()),
    }
    if not settings["draws"]:
        return columns, summary
    level, draws = settings["level"], settings["draws"]
    chance = best_by_chance(pooled, draws=draws, level=level, seed=settings["seed"])
    ends = np.quantile(chance.mean_regret, [(1 - level) / 2, (1 + level) / 2])
    summary |= {
        "by_chance": {key: getattr(chance, key).tolist() for key in ("low", "median", "high")},
        "p": chance.p,
        "regret_by_chance": [float(chance.mean_regret.mean()), *map(float, ends)],
    }
    return columns | {"regret_by_chance": chance.regret}, summary
