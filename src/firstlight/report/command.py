"""``firstlight report``: one page that says what a run, or a study, did."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from firstlight.compare import compare
from firstlight.report.comparison import comparison_page, study_page
from firstlight.report.page import Page, write_figures
from firstlight.report.run import run_page
from firstlight.runfolder import RunFolder, RunFolderError, replacing
from firstlight.studyfolder import StudyFolder
from firstlight.terminal import console

LARGEST = 5 * 2**20
"""Bytes that a page stays below."""


def report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write one self-contained HTML page, and its figures as PNG and SVG beside it.

    The page loads nothing and runs no script. What a run did not record is said, with what would
    have recorded it.

    Args:
        folders: a run folder, or one that holds a single run; what ``firstlight compare`` made; a
            study folder (``study.json``); or several run folders, which are compared first.
        output: the page, or a folder for ``report.html``; default: the folder that is reported on
            (of several: the comparison's). Figures go to the folder of the same name without its
            suffix.

    Returns:
        The page.

    Raises:
        RunFolderError: where there is no such folder, saying what was looked for.
        ValueError: where runs cannot be compared, as ``firstlight compare`` has it.
    """
    first = Path(folders[0])
    if len(folders) > 1:
        for folder in folders:
            RunFolder.open(folder)
        first = compare(list(folders), out=first.parent / "class_effects")
    page = _page(first)
    target = first / "report.html" if output is None else Path(output)
    if target.is_dir() or not target.suffix:
        target /= "report.html"
    text = page.html()
    if len(text.encode()) > LARGEST:
        # Pictures of errors are what a run may have much of; figures are small by their making.
        raise ValueError(f"the page of {first} would be {len(text.encode()) / 2**20:.1f} MiB: "
                         "remove some of the images in its folder examples")  # fmt: skip
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_figures(page, target.with_suffix(""))
    return target


def _page(folder: Path) -> Page:
    if (folder / "run.json").exists():
        return run_page(RunFolder.open(folder))
    if (folder / "study.json").exists():
        return study_page(folder, StudyFolder.open(folder).study)
    if (folder / "summary.json").exists():
        return comparison_page(folder)
    depths = ("*/run.json", "*/*/run.json", "*/*/*/run.json")
    found = [file.parent for depth in depths for file in sorted(folder.glob(depth))]
    if len(found) == 1:
        return run_page(RunFolder.open(found[0]))
    below = ", ".join(map(str, found[:4]))
    raise RunFolderError(
        f"{folder} is no run, study or comparison: it has no run.json, study.json or summary.json"
        + (f". There are {len(found)} runs below it: {below}" if below else "")
        + ("" if folder.is_dir() else " (there is no such folder)")
    )


def command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight report`` with these arguments."""
    parser = argparse.ArgumentParser(
        prog="firstlight report",
        description="Write one HTML page about a run, a study or a comparison: it opens from disk, "
        "on a phone and in print, and needs no network. The figures go beside it.",
    )
    what = "a run folder, a study, what compare made, or several runs' folders"
    parser.add_argument("folders", nargs="+", metavar="RUN_OR_STUDY", help=what)
    parser.add_argument(
        "--output", help="the page, or a folder for it (default: report.html in the folder)"
    )
    given = parser.parse_args(arguments)
    page = report(given.folders, given.output)
    size = page.stat().st_size / 1024
    console.print(f"The page:    {page} ({size:,.0f} KiB)", soft_wrap=True, highlight=False)
    console.print(f"The figures: {page.with_suffix('')}", soft_wrap=True, highlight=False)
