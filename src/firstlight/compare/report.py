"""What ``firstlight compare`` prints: the runs, the question, the worst and best classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from firstlight.compare.comparison import Comparison, Question
from firstlight.compare.other_labels import OtherLabels
from firstlight.compare.runs import ComparedRuns
from firstlight.figures.findings import points
from firstlight.functional import ConfusionShifts, convincing
from firstlight.functional.class_effects import CLAIMS_FROM

QUESTIONS = {
    "test_set": "on this test set: would other seeds say the same of these images?",
    "new_images": "on new images of the classes: would other images and seeds say the same?",
}
SURE = 4
"""Standard errors from which a class is named among those that receive wrong predictions."""
CLOSE = 5
"""Runs an arm from which the claims are good."""


def show(
    console: Console,
    read: ComparedRuns,
    found: Sequence[Comparison],
    question: Question,
    least: float,
    worst: int,
    labels: OtherLabels | None = None,
) -> None:
    """Print everything; arguments as `firstlight.compare.command.compare` has them."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    arms = ", ".join(f"{arm.name} ({len(arm.runs)} runs)" for arm in read.arms)
    say(f"{len(read.scored.targets):,} images of {read.split}, {len(read.names):,} classes; {arms}")
    say(f"The question is asked {QUESTIONS[question]}")
    for note in [*read.notes, *_warnings(read)]:
        say(f"Note: {note}")
    for one in found:
        console.print()
        console.print(_table(one, question, least, worst))
        for line in [*_sentences(one, question, least), *_further(one, read.names, labels, least)]:
            say(line)
        console.print()


def _warnings(read: ComparedRuns) -> list[str]:
    """What the number of runs and classes does not allow."""
    fewest = int(read.scored.replicas.min())
    if fewest == 1:
        return ["one run in an arm: no standard errors; nothing but the null band tells an effect "
                "from chance."]  # fmt: skip
    if fewest < CLAIMS_FROM:
        return [f"{fewest} runs in an arm are too few for q-values, {CLAIMS_FROM} the least: see "
                "the null band."]  # fmt: skip
    if fewest < CLOSE:
        return [f"{fewest} runs in an arm are few: {CLOSE} find most effects of ten points."]
    return []


def _table(one: Comparison, question: Question, least: float, worst: int) -> Table:
    columns = one.columns
    order = np.argsort(columns["rank"])
    order = order[columns["rank"][order] >= 0]
    ends = [*order[:worst], *[c for c in order[-worst:] if c not in order[:worst]]]
    table = Table(title=one.name, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    titles = ("class", "n", "before %", "effect", "95 % CI", "shrunk", "q", "null band", "")
    interval = f"{100 * _level(one):.0f} % CI"
    for title in titles:
        table.add_column(interval if "CI" in title else title,
                         justify="left" if title in ("class", "") else "right")  # fmt: skip
    suffix = "" if question == "test_set" else "_new_images"
    reported = convincing(columns["effect"], columns[f"q{suffix}"], least)
    for place, c in enumerate(ends):
        if place == worst and len(ends) > worst:
            table.add_section()
        table.add_row(
            str(columns["name"][c]),
            f"{columns['n'][c]:,}",
            f"{100 * columns['accuracy_before'][c]:.1f}",
            _points(columns["effect"][c]),
            _range(columns[f"low{suffix}"][c], columns[f"high{suffix}"][c]),
            _points(columns["shrunk"][c]),
            _q(columns[f"q{suffix}"][c]),
            _range(columns["band_low"][c], columns["band_high"][c]),
            _marks(reported[c], columns["beyond_band"][c]),
        )
    table.caption = (
        "Effects in points of accuracy. Null band: where chance alone puts the class of this rank. "
        f"●: q < .05 and {100 * least:g} points or more. ○: outside the band."
    )
    table.caption_justify = "left"
    return table


def _level(one: Comparison) -> float:
    return float(one.summary["level"])


def _points(value: float) -> str:
    return "-" if np.isnan(value) else points(value)


def _range(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"


def _q(value: float) -> str:
    return "-" if np.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _marks(reported: bool, beyond: int) -> str:
    return ("●" if reported else "") + ("○" if beyond else "")


def _sentences(one: Comparison, question: Question, least: float) -> list[str]:
    columns, summary = one.columns, one.summary
    effect, beyond = columns["effect"], columns["beyond_band"]
    lines = [f"On average over classes: {_points(float(np.nanmean(effect)))} points."]
    q = columns["q" if question == "test_set" else "q_new_images"]
    if np.isfinite(q).any():
        reported = convincing(effect, q, least)
        centred = convincing(columns["effect_centred"], columns["q_centred"], least)
        lines.append(
            f"{_classes((reported & (effect < 0)).sum())} lose {100 * least:g} points or more with "
            f"q < .05, {_classes((reported & (effect > 0)).sum())} gain; "
            f"{_classes(centred.sum())} differ so from the average change (on this test set)."
        )
    if "worst_by_chance" in summary:
        low, high = summary["worst_by_chance"]
        lines.append(
            f"Chance alone would make the worst class {_range(low, high)}; it is "
            f"{_points(float(np.nanmin(effect)))}. Outside the band of their rank: "
            f"{(beyond < 0).sum():,} below, {(beyond > 0).sum():,} above."
        )
    if "halves" in summary:
        halves = summary["halves"]
        lines.append(
            f"The {len(halves['classes'])} worst, picked on half of the seeds: "
            f"{_points(halves['selected'])} there, {_points(halves['reported'])} on the other half."
        )
    return lines + _receiving(columns)


def _classes(count: Any) -> str:
    return f"{int(count):,} class" + ("" if count == 1 else "es")


def _receiving(columns: dict[str, Any]) -> list[str]:
    growth = np.asarray(columns["received_after"]) - np.asarray(columns["received_before"])
    if np.isnan(growth).all():
        return []
    error = np.asarray(columns["received_se"])
    sure = np.flatnonzero(growth > SURE * error)
    most = sure[np.argsort(-growth[sure], kind="stable")][:3]
    named = [f"{columns['name'][c]} ({growth[c]:+.1f} ± {error[c]:.1f})" for c in most]
    return [f"Most wrong predictions gained, per run: {', '.join(named)}."] if named else []


def _further(
    one: Comparison, names: Sequence[str], labels: OtherLabels | None, least: float
) -> list[str]:
    """What some comparisons have: shifts of confusions, best strengths, other labels."""
    lines = [] if one.shifts is None else _shifted(one.shifts, names, _level(one))
    if "best_strengths" in one.summary:
        lines += _best(one.summary["best_strengths"])
    return lines if labels is None else [*lines, _relabelled(one.columns, labels, least)]


def _shifted(shifts: ConfusionShifts, names: Sequence[str], level: float) -> list[str]:
    named = []
    for row in range(min(3, len(shifts.target))):
        change = shifts.after[row] - shifts.before[row]
        pair = f"{names[shifts.target[row]]} as {names[shifts.pred[row]]} {_points(change)}"
        interval = _range(shifts.low[row], shifts.high[row])
        named.append(pair if interval == "-" else f"{pair} ({interval})")
    told = f" ({100 * level:.0f} % CI of each by itself, on these images)"
    known = len(shifts.se) > 0 and np.isfinite(shifts.se[0])
    line = f"Confusions that changed most, in points{told if known else ''}: {', '.join(named)}."
    return [line] if named else []


def _best(found: dict[str, Any]) -> list[str]:
    bars, average = [], found["average_best"]
    chance = found.get("by_chance")
    for place, (strength, classes) in enumerate(
        zip(found["strengths"], found["classes"], strict=True)
    ):
        bar = f"{strength:g}: {classes:,.0f}"
        if chance is not None:
            bar += f" ({chance['low'][place]:,.0f} to {chance['high'][place]:,.0f})"
        bars.append(bar)
    beside = ""
    if chance is not None:
        beside = f" (if strength did the same to all of them; p {_p(found['p'])} of all together)"
    regret = f"At {average:g}, best on average, classes are {_points(found['regret'])} points off "
    regret += "their own best"
    if chance is not None:
        mean, low, high = found["regret_by_chance"]
        regret += f"; chance alone would make that {_points(mean)} ({_range(low, high)})"
    return [f"Classes by their best strength{beside}: {', '.join(bars)}.", f"{regret}."]


def _p(value: float) -> str:
    """As one would say it: p = .012, or p < .001."""
    return "< .001" if value < 0.001 else f"= {value:.3f}".replace("0.", ".")


def _relabelled(columns: dict[str, Any], labels: OtherLabels, least: float) -> str:
    told, effect, q = labels.summary, columns["real_effect"], columns["real_q"]
    images, unlabelled = (f"{told[key]:,}" for key in ("images", "unlabelled"))
    line, moved = f"By ReaL labels, on the {images} images that have one ", columns["real_moved"]
    line += f"({unlabelled} left out of both sides): "
    if np.isfinite(q).any():
        sure = convincing(effect, q, least)
        lose, gain = ((sure & (np.sign(effect) == sign)).sum() for sign in (-1, 1))
        line += f"{_classes(lose)} lose and {gain:,} gain reportably (on this test set); "
    most = np.argsort(-np.abs(np.nan_to_num(moved)), kind="stable")[:3]
    named = [f"{columns['name'][c]} ({_points(columns['real_original'][c])} by its own label, "
             f"{_points(effect[c])} by ReaL)" for c in most if np.abs(moved[c]) > 0]  # fmt: skip
    return f"{line}furthest apart are {', '.join(named)}." if named else f"{line}no effect differs."
