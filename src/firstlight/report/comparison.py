"""What the report says of a comparison of arms, and of a study."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.compare import compare
from firstlight.compare.report import QUESTIONS
from firstlight.figures.compared_folder import Columns, ComparedFolder
from firstlight.figures.comparison import Drawn, comparison_pictures
from firstlight.figures.evaluations import main_split, read_classes, read_evaluations
from firstlight.figures.findings import points
from firstlight.report.errors import percent
from firstlight.report.page import Page, Section, Table
from firstlight.runfolder import RunFolder, RunFolderError

LISTED = 8
"""Classes in the table at either end."""

SO_FAR = "class_effects_so_far"

PARTS = {
    "effects": ("Which classes change", ""),
    "strengths": ("What strength does", ""),
    "labels": ("By other labels", "The same predictions on the same images, by ReaL labels."),
    "moved": ("Where predictions went", "Between the first arm and the last."),
    "others": ("The other comparisons", ""),
}
"""Titles and leads of sections, by what is drawn in them."""


def comparison_page(path: Path) -> Page:
    """Read what ``firstlight compare`` made into a page."""
    compared = ComparedFolder.open(path)
    return Page("Comparison", path.resolve().name, _finding(compared), _notes(compared),
                _tiles(compared), _facts(compared), _sections(compared))  # fmt: skip


def study_page(path: Path, study: dict[str, Any]) -> Page:
    """Read a study into a page: its comparison, and how each of its runs ended.

    Runs that are not finished are listed and left out. Where nothing was compared, the finished
    runs are compared now, into the folder `SO_FAR` in the study's, which each report makes anew.
    """
    listed, notes = _runs(path, study["runs"])
    name = str(study.get("name") or path.resolve().name)
    notes += [str(one) for one in study.get("omissions") or []]
    status = study.get("status")
    if status not in ("finished", None):
        notes.insert(0, f"This study has not ended (its status is {status}).")
    facts = {key: _plain(study[key]) for key in ("factor", "split", "seeds", "base", "set")
             if study.get(key)}  # fmt: skip
    try:
        compared = ComparedFolder.open(_comparison(path, study))
    except ValueError as error:
        told = Section("Not in this report", missing=[f"the arms are not compared: {error}"])
        return Page("Study", name, "The arms of this study are not compared yet", notes, [], facts,
                    [listed, told])  # fmt: skip
    sections = [*_sections(compared), listed]
    return Page("Study", name, _finding(compared), [*notes, *_notes(compared)], _tiles(compared),
                {**facts, **_facts(compared)}, sections)  # fmt: skip


def _plain(value: Any) -> str:
    """A value of a study's file without the brackets."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _comparison(path: Path, study: dict[str, Any]) -> Path:
    """The folder of the study's comparison, or of one of what has finished so far."""
    if study.get("comparison"):
        return path / str(study["comparison"])
    finished = [run for run in study["runs"] if run.get("status") == "finished"]
    there = {run["arm"] for run in finished}
    arms = [arm["arm"] for arm in study.get("arms", []) if arm["arm"] in there]
    runs = [path / run["folder"] for run in finished]
    out = path / SO_FAR
    shutil.rmtree(out, ignore_errors=True)  # of the report before
    return compare(runs, arms=arms if len(arms) > 1 else None, split=study.get("split"), out=out,
                   **(study.get("compare") or {}))  # fmt: skip


def _runs(path: Path, runs: list[dict[str, Any]]) -> tuple[Section, list[str]]:
    """A table of the study's runs, and what a reader has to know of them first."""
    rows, missing, folded = [], [], {}
    for run in runs:
        accuracy, worst = "-", "-"
        if run.get("status") == "finished":
            try:
                accuracy, worst = _ends(path / run["folder"])
            except RunFolderError as error:
                missing.append(f"{run['id']}: {error}")
        ended = run.get("error") or {}
        rows.append([str(run["id"]), str(run.get("arm")), str(run.get("seed")),
                     str(run.get("status")), accuracy, worst])  # fmt: skip
        if ended:
            lines = ended.get("lines") or []
            text = lines if isinstance(lines, str) else "\n".join(map(str, lines))
            folded[f"{run['id']} ended with {ended.get('exit')}"] = text
    left = [str(run["id"]) for run in runs if run.get("status") != "finished"]
    notes = []
    if left:
        notes.append(f"{len(left)} of {len(runs)} runs are not finished, and left out: "
                     f"{', '.join(left[:6])}{', …' if len(left) > 6 else ''}.")  # fmt: skip
    head = ("run", "arm", "seed", "status", "accuracy", "worst class")
    table = Table(f"{len(runs):,} runs", head, rows, (4, 5))
    return Section("Runs", tables=[table], missing=missing, folded=folded,
                   closed=len(rows) > 40), notes  # fmt: skip


def _ends(path: Path) -> tuple[str, str]:
    """Accuracy over images, and of the worst class by name, of a run's last evaluation."""
    folder = RunFolder.open(path)
    evaluations = read_evaluations(folder)
    counts = evaluations[main_split(evaluations)][-1]
    classes = read_classes(folder, len(counts.n))
    summary = counts.summary(classes)
    worst = classes.names[int(summary["worst_class"])]
    return percent(summary["micro"]), f"{percent(summary['min'])} ({worst})"


def _main(compared: ComparedFolder) -> tuple[str, Columns]:
    name = compared.comparisons[-1]
    return name, compared.effects(name)


def _finding(compared: ComparedFolder) -> str:
    """The one sentence: on average, and for which classes."""
    name, columns = _main(compared)
    effect, reported = columns["effect"], compared.reported(columns)
    mean = points(float(np.nanmean(effect)))
    worst = int(np.argmin(effect))
    if not np.isfinite(compared.asked(columns, "q")).any():
        said = "too few runs for more than a look at the null band"
        if np.isfinite(columns["band_low"]).all():
            outside = int((columns["beyond_band"] != 0).sum())
            said = f"{outside:,} of {len(effect):,} classes leave the band that chance alone gives"
    elif reported.any():
        lose, gain = _sides(effect, reported)
        said = f"{lose:,} of {len(effect):,} classes lose and {gain:,} gain more than seeds explain"
        if reported[worst]:
            said += f", at worst {columns['name'][worst]} by {points(effect[worst])}"
    else:
        said = f"no class of {len(effect):,} changes by more than seeds explain"
    return f"{name}: {mean} points on average; {said}, {compared.where}"


def _sides(effect: NDArray[Any], reported: NDArray[np.bool_]) -> tuple[int, int]:
    """How many classes lose and gain reportably."""
    return int((reported & (effect < 0)).sum()), int((reported & (effect > 0)).sum())


def _notes(compared: ComparedFolder) -> list[str]:
    arms = compared.summary["arms"]
    fewest = min(len(arm["seeds"]) for arm in arms)
    notes = list(compared.summary.get("notes", []))
    if fewest < 3:
        notes.append(f"{fewest} run(s) in an arm: no q-values; only the null band tells an effect "
                     "from chance.")  # fmt: skip
    elif fewest < 5:
        notes.append(f"{fewest} runs in an arm are few: five find most effects of ten points.")
    return notes


def _tiles(compared: ComparedFolder) -> list[tuple[str, str]]:
    _, columns = _main(compared)
    effect, reported = columns["effect"], compared.reported(columns)
    low, high = int(np.argmin(effect)), int(np.argmax(effect))
    tiles = [(points(float(np.nanmean(effect))), "points on average over classes")]
    if np.isfinite(compared.asked(columns, "q")).any():
        lose, gain = _sides(effect, reported)
        tiles += [
            (f"{lose:,}", "classes lose reportably"),
            (f"{gain:,}", "classes gain reportably"),
        ]
    tiles += [(points(effect[low]), f"worst class, {columns['name'][low]}"),
              (points(effect[high]), f"best class, {columns['name'][high]}")]  # fmt: skip
    if np.isfinite(columns["band_low"]).all():
        first = int(np.argmin(columns["rank"]))
        band = (points(columns[key][first]) for key in ("band_low", "band_high"))
        tiles.append((" to ".join(band), "where chance alone puts the worst class"))
    return tiles


def _facts(compared: ComparedFolder) -> dict[str, str]:
    summary, settings = compared.summary, compared.settings
    arms = [f"{arm['arm']} (seeds {', '.join(map(str, arm['seeds']))})" for arm in summary["arms"]]
    images = f"{summary['images']:,} of {summary['split']}"
    return {
        "arms": "; ".join(arms),
        "images": f"{images}, {summary['classes']:,} classes",
        "question": QUESTIONS[settings["question"]],
        "reported": f"q < .05 and {100 * settings['least']:g} points or more",
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "compared by": f"firstlight {summary['firstlight']}",
        "folder": str(compared.path),
    }


def _sections(compared: ComparedFolder) -> list[Section]:
    pictures = comparison_pictures(compared)
    asked = f"The question is asked {QUESTIONS[compared.settings['question']]}"
    sections = []
    for part, (title, lead) in PARTS.items():
        drawn: Drawn = pictures[part]
        if drawn.pictures or drawn.missing:
            sections.append(
                Section(title, asked if part == "effects" else lead, drawn.pictures,
                        [_table(compared)] if part == "effects" else [], missing=drawn.missing,
                        closed=part == "others")
            )  # fmt: skip
    return sections


def _table(compared: ComparedFolder) -> Table:
    """The classes at either end, with intervals."""
    name, columns = _main(compared)
    order = np.argsort(columns["rank"], kind="stable")
    ends = [*order[:LISTED], *(c for c in order[-LISTED:] if c not in order[:LISTED])]
    reported = compared.reported(columns)
    q, low, high = (compared.asked(columns, key) for key in ("q", "low", "high"))
    rows = [
        [str(columns["name"][c]), f"{columns['n'][c]:,}", percent(columns["accuracy_before"][c]),
         points(columns["effect"][c]), _range(low[c], high[c]),
         "-" if np.isnan(columns["shrunk"][c]) else points(columns["shrunk"][c]), _q(q[c]),
         _range(columns["band_low"][c], columns["band_high"][c]), "reported" if reported[c] else ""]
        for c in ends
    ]  # fmt: skip
    interval = f"{100 * compared.settings['level']:.0f} % interval"
    head = ("class", "images", "before", "effect", interval, "shrunk", "q", "null band", "")
    return Table(f"{name}: the classes at either end, effects in points", head, rows,
                 tuple(range(1, 8)))  # fmt: skip


def _range(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{points(low)} to {points(high)}"


def _q(value: float) -> str:
    return "-" if np.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")
