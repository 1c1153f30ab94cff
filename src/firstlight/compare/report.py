"""What ``firstlight compare`` prints: the runs, the question, the worst and best classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from firstlight.compare.comparison import Comparison, Question
from firstlight.compare.runs import ComparedRuns
from firstlight.figures.findings import points
from firstlight.functional import convincing
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
        for line in _sentences(one, question, least):
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
