"""One comparison of arms, class by class, as the table that is written, drawn and printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firstlight.compare.other_labels import OtherLabels, relabelled_columns
from firstlight.compare.runs import Arm, ComparedRuns
from firstlight.compare.strengths import best_strength_columns
from firstlight.functional import (
    ClassEffects,
    ConfusionShifts,
    NullBand,
    ScoredRuns,
    class_effects,
    confusion_shifts,
    max_t_permutations,
    new_image_effects,
    null_band,
    received,
    select_on_half,
    slope_weights,
    transitions,
)

Floats = NDArray[np.float64]
Question = Literal["test_set", "new_images"]

HALVED = 20
"""Classes picked on half of the seeds."""

_TEXT, _CLASS, _INT, _F64 = pa.string(), pa.int32(), pa.int64(), pa.float64()
CLASS_EFFECTS = pa.schema(
    {"comparison": _TEXT, "class": _CLASS, "name": _TEXT, "n": _INT}
    | dict.fromkeys(
        (
            "accuracy_before", "accuracy_after", "effect", "se", "t", "df", "p", "q", "low", "high",
            "shrunk", "p_family", "effect_centred", "se_centred", "p_centred", "q_centred",
            "se_new_images", "p_new_images", "q_new_images", "low_new_images", "high_new_images",
        ),
        _F64,
    )
    | {"rank": _CLASS, "band_low": _F64, "band_high": _F64, "beyond_band": _CLASS}
    | dict.fromkeys(
        ("broken", "fixed", "no_effect", "received_before", "received_after", "received_se"), _F64
    )
    | {"best_strength": _F64, "best_ties": _CLASS, "regret": _F64, "regret_by_chance": _F64}
    | {"real_n": _INT}
    | dict.fromkeys(
        (
            "real_accuracy_before", "real_accuracy_after", "real_original", "real_effect",
            "real_se", "real_p", "real_q", "real_low", "real_high", "real_moved", "real_moved_se",
        ),
        _F64,
    )
)  # fmt: skip
"""Schema of ``class_effects.parquet``: accuracies and effects as fractions, not points.

Best strengths are of the line over strength only. ``real_*`` are by ReaL labels, over seeds on the
``real_n`` images that have one: ``real_original`` is the original labels' effect on these.
"""


@dataclass(frozen=True)
class Comparison:
    """What two arms, or a slope over all, do to every class.

    Attributes:
        name: of the comparison.
        before: the arm compared with, or of least strength.
        after: the other, or of most strength.
        slope: whether the effect is the fitted line's change from the least strength to the most.
        columns: by the names of `CLASS_EFFECTS`, each (C,); those that it lacks are null.
        summary: what holds for all classes together, as plain values.
        shifts: of confusions between the two arms; None of a line.
    """

    name: str
    before: Arm
    after: Arm
    slope: bool
    columns: dict[str, Any]
    summary: dict[str, Any]
    shifts: ConfusionShifts | None = None

    def table(self) -> pa.Table:
        """Rows of ``class_effects.parquet``."""
        rows = len(self.columns["class"])
        columns = {"comparison": [self.name] * rows, **self.columns}
        arrays = [
            pa.array(
                columns.get(field.name, [None] * rows),
                type=field.type,
                from_pandas=True,  # NaN, here "unknown", becomes null
            )
            for field in CLASS_EFFECTS
        ]
        return pa.Table.from_arrays(arrays, schema=CLASS_EFFECTS)


def compare_arms(
    runs: ComparedRuns,
    first: int,
    second: int,
    settings: Mapping[str, Any],
    labels: OtherLabels | None = None,
) -> Comparison:
    """Compare two arms by their numbers; see `compare` for the settings."""
    before, after = runs.arms[first], runs.arms[second]
    scored = runs.scored.of_arms(first, second)
    rows = np.flatnonzero(np.isin(runs.scored.arms, (first, second)))
    members = (runs.scored.arms[rows] == second).astype(int)
    columns, summary = _tested(scored, None, runs, settings)
    moved = transitions(scored)
    fp = received(runs.pred[rows], scored.targets, members, scored.num_classes)
    columns |= {
        "accuracy_before": scored.accuracy[scored.arms == 0].mean(0),
        "accuracy_after": scored.accuracy[scored.arms == 1].mean(0),
        "broken": moved.broken,
        "fixed": moved.fixed,
        "no_effect": moved.no_effect,
        "received_before": fp.before,
        "received_after": fp.after,
        "received_se": fp.se,
    }
    if labels is not None:
        columns |= relabelled_columns(scored, labels, rows, None, (0, 1), settings)
    shifts = confusion_shifts(runs.pred[rows], scored.targets, members, level=settings["level"])
    name = f"{after.name} against {before.name}"
    named = {"comparison": name, "slope": False}
    return Comparison(name, before, after, False, columns, named | summary, shifts)


def compare_strengths(
    runs: ComparedRuns, settings: Mapping[str, Any], labels: OtherLabels | None = None
) -> Comparison:
    """Fit a line over the strengths of all arms; the effect is its change over their range."""
    strengths = np.array([arm.strength for arm in runs.arms], np.float64)
    weights = slope_weights(strengths) * np.ptp(strengths)
    columns, summary = _tested(runs.scored, weights, runs, settings)
    low, high = int(strengths.argmin()), int(strengths.argmax())
    accuracy, members = runs.scored.accuracy, runs.scored.arms
    unknown = np.full(runs.scored.num_classes, np.nan)
    columns |= {
        "accuracy_before": accuracy[members == low].mean(0),
        "accuracy_after": accuracy[members == high].mean(0),
        **dict.fromkeys(("broken", "fixed", "no_effect"), unknown),
        **dict.fromkeys(("received_before", "received_after", "received_se"), unknown),
    }
    best, histogram = best_strength_columns(runs, settings)
    columns |= best
    if labels is not None:
        rows = np.arange(len(members))
        columns |= relabelled_columns(runs.scored, labels, rows, weights, (low, high), settings)
    factor = runs.arms[0].factor or "strength"
    name = f"line over {factor} {strengths.min():g} to {strengths.max():g}"
    named = {"comparison": name, "slope": True, "best_strengths": histogram}
    return Comparison(name, runs.arms[low], runs.arms[high], True, columns, named | summary)


def _tested(
    scored: ScoredRuns, weights: Floats | None, runs: ComparedRuns, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns and summary that any contrast of arms has."""
    level, trend, seed = settings["level"], settings["trend"], settings["seed"]
    effects = class_effects(scored, weights, level=level, trend=trend)
    centred = class_effects(scored, weights, centred=True, level=level, trend=trend)
    new = new_image_effects(scored, effects, weights, level=level)
    several = bool(scored.replicas.min() > 1)
    family = np.full_like(effects.p, np.nan)
    if effects.df > 0:
        family = max_t_permutations(scored, weights, trend=trend, seed=seed).p
    columns = {
        "class": np.arange(scored.num_classes),
        "name": runs.names,
        "n": scored.n.astype(np.int64),
        "df": np.full_like(effects.p, effects.df),
        **{key: getattr(effects, key) for key in ("effect", "se", "t", "p", "q", "low", "high")},
        "shrunk": effects.shrunk,
        "p_family": family,
        **{f"{key}_centred": getattr(centred, key) for key in ("effect", "se", "p", "q")},
        **{f"{key}_new_images": getattr(new, key) for key in ("se", "p", "q", "low", "high")},
    }
    summary: dict[str, Any] = {"level": level, "df": effects.df, "d0": _plain(effects.d0)}
    if several:
        halves = select_on_half(scored, weights, worst=HALVED, seed=seed)
        summary["halves"] = {
            "classes": halves.classes.tolist(),
            "selected": float(halves.selected.mean()),
            "reported": float(halves.reported.mean()),
        }
    band, drawn = _band(scored, weights, effects, settings)
    return columns | band, summary | drawn


def _band(
    scored: ScoredRuns, weights: Floats | None, effects: ClassEffects, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each class's rank, the null band there, and the extremes that chance gives."""
    order = np.argsort(effects.effect, kind="stable")[: int((scored.n > 0).sum())]
    rank = np.full(len(effects.effect), -1)
    rank[order] = np.arange(len(order))
    low, high = np.full((2, len(rank)), np.nan)
    if not settings["draws"]:
        beyond = np.zeros(len(rank), np.int64)
        return {"rank": rank, "band_low": low, "band_high": high, "beyond_band": beyond}, {}
    band: NullBand = null_band(
        scored, weights, draws=settings["draws"], level=settings["level"], seed=settings["seed"]
    )
    low[order], high[order] = band.low, band.high
    columns = {
        "rank": rank, "band_low": low, "band_high": high, "beyond_band": band.beyond(effects.effect)
    }  # fmt: skip
    summary = {
        "phi": _plain(band.phi),
        "widened": band.widened,
        "worst_by_chance": [float(band.low[0]), float(band.high[0])],
        "best_by_chance": [float(band.low[-1]), float(band.high[-1])],
    }
    return columns, summary


def _plain(value: float) -> float | str | None:
    """As JSON holds it: infinity by name, unknown as null."""
    return "infinity" if np.isposinf(value) else None if np.isnan(value) else float(value)
