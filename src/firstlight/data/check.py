"""``firstlight data check``: is there anything in this data set that training should not meet?"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from firstlight.data.findings import Example, Finding, findings
from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.examination import ImageFacts, examine, pixel_hash
from firstlight.datamodules.image_files import ImageFiles, for_each_file
from firstlight.runfolder import replacing

SHOWN = 5
"""Places of a finding that are printed; the report has all."""

_STYLE = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def data_check(data: "ImageDataModule[Any]", output: str | Path = "data_check") -> list[Finding]:
    """Decode every image of a DataModule, look for what spoils training, and write a report.

    Looked for: files that cannot be read; pictures in the training data and in another part, with
    two labels, or twice (equal in every pixel); classes without images; images that are huge,
    turned by EXIF, animated, misnamed, not RGB, long or enlarged.

    Args:
        data: set up here if it is not; the parts are those that a run with its seed would use.
        output: folder for ``report.md`` and ``files.parquet`` (part, class, and what is in each
            image); an earlier report is replaced.

    Returns:
        The findings, errors first. Cost: every image decoded once, under a progress bar.

    Raises:
        OSError: where data are missing or the report cannot be written.
        ValueError: for data that a run would refuse, as it would.
    """
    data.setup("fit")
    examples = list(_examples(data))
    found = findings(examples, list(data.parts), data.class_names, data.img_size)
    folder = Path(output)
    _write_files(examples, data.class_names, folder / "files.parquet")
    with replacing(folder / "report.md") as temporary:
        temporary.write_text(_report(data, examples, found), encoding="utf-8")
    _print(data, examples, found, folder)
    return found


def _examples(data: "ImageDataModule[Any]") -> Iterator[Example]:
    for part, images in data.parts.items():
        if isinstance(images, ImageFiles):
            facts: Any = for_each_file(examine, images.sources, f"Checking {part}")
        else:
            facts = (_in_memory(part, number, image) for number, (image, _) in enumerate(images))
        for label, fact in zip(images.targets, facts, strict=True):
            yield Example(part, label, fact)


def _in_memory(part: str, number: int, image: Any) -> ImageFacts:
    pixels = image.numpy()
    return ImageFacts(
        f"{part}[{number}]",
        pixels.nbytes,
        width=pixels.shape[2],
        height=pixels.shape[1],
        pixels=pixel_hash(pixels),
    )


def _write_files(examples: list[Example], classes: list[str], path: Path) -> None:
    columns = {name: [getattr(e.facts, name) for e in examples] for name in ImageFacts._fields}
    columns = {
        "part": [e.part for e in examples],
        "class": [classes[e.label] for e in examples],
        **columns,
    }
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pa.table(columns), temporary)


def _counts(data: "ImageDataModule[Any]", examples: list[Example]) -> list[tuple[str, list[int]]]:
    """The images of every class by part, the largest class in training first."""
    counted = Counter((e.label, e.part) for e in examples)
    rows = [
        (name, [counted[label, part] for part in data.parts])
        for label, name in enumerate(data.class_names)
    ]
    return sorted(rows, key=lambda row: -row[1][0])


def _report(data: "ImageDataModule[Any]", examples: list[Example], found: list[Finding]) -> str:
    lines = ["# Data check", "", "    " + data.summary().replace("\n", "\n    "), "", "## Findings"]
    if not found:
        lines += ["", "Nothing was found."]
    for finding in found:
        lines += ["", f"### {finding.severity}: {finding}", ""]
        lines += [f"- `{place}`" for place in finding.places]
    parts = list(data.parts)
    lines += ["", "## Images by class", "", "| class | " + " | ".join(parts) + " |"]
    lines += ["|---|" + "---:|" * len(parts)]
    lines += [
        f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in _counts(data, examples)
    ]
    return "\n".join(lines) + "\n"


def _print(
    data: "ImageDataModule[Any]", examples: list[Example], found: list[Finding], folder: Path
) -> None:
    console = Console()
    rows = _counts(data, examples)
    table = Table(title=f"{len(examples):,} images by class", box=None, title_justify="left")
    table.add_column("class")
    for part in data.parts:
        table.add_column(part, justify="right")
    shown = rows if len(rows) <= 2 * SHOWN + 1 else [*rows[:SHOWN], None, *rows[-SHOWN:]]
    for row in shown:
        if row is None:
            table.add_row(f"... {len(rows) - 2 * SHOWN} more")
        else:
            table.add_row(escape(row[0]), *(f"{n:,}" for n in row[1]))
    console.print(table)
    sides = np.array([(e.facts.width, e.facts.height) for e in examples if e.facts.pixels])
    if len(sides):
        low, middle, high = (
            " x ".join(f"{v:.0f}" for v in np.quantile(sides, q, axis=0)) for q in (0, 0.5, 1)
        )
        console.print(f"width x height: smallest {low}, median {middle}, largest {high}\n")
    for finding in found:
        console.print(f"[{_STYLE[finding.severity]}]{finding.severity}[/] ", end="")
        console.print(str(finding), markup=False, soft_wrap=True)
        for place in finding.places[:SHOWN]:
            console.print(f"    {place}", markup=False, highlight=False, soft_wrap=True)
        if len(finding.places) > SHOWN:
            console.print(f"    and {len(finding.places) - SHOWN:,} more in the report")
    if not found:
        console.print("Nothing was found.")
    console.print(f"\nReport: {folder / 'report.md'}; every image: {folder / 'files.parquet'}")
