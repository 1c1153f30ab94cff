"""The page that ``firstlight report`` writes: what it is made of, and how it is put together."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from firstlight.figures.picture import Picture

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: what it holds.
        head: the columns.
        rows: a text for every column.
        numbers: columns that are set right, by number.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Example:
    """An image with a word on it.

    Attributes:
        png: its bytes.
        words: below it, and in its place where it is not seen.
    """

    png: bytes
    words: str

    @property
    def uri(self) -> str:
        """The image as an address that needs no network."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Card:
    """A class, what is known of it in short, and examples of its errors."""

    title: str
    facts: Sequence[str]
    examples: Sequence[Example] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page; what it lacks it says.

    Attributes:
        title: of the part.
        lead: a sentence or two before all.
        pictures: drawn one beside the other where there is room.
        tables: below them.
        cards: below those.
        missing: why something is not here, in sentences.
        folded: texts that open on request, by title.
        closed: whether all of it opens on request only.
    """

    title: str
    lead: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()
    missing: Sequence[str] = ()
    folded: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        kind: what is reported on, in a word or two.
        name: of the run or comparison.
        finding: the one sentence.
        notes: what a reader must know before anything else.
        tiles: the few numbers, as (value, what it is).
        facts: what was run, by name.
        sections: in order.
    """

    kind: str
    name: str
    finding: str
    notes: Sequence[str]
    tiles: Sequence[tuple[str, str]]
    facts: Mapping[str, str]
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        return [picture for section in self.sections for picture in section.pictures]

    def html(self) -> str:
        """The whole page: no script, no address, every text escaped.

        A policy in its head forbids the browser to load anything, whatever stands in the data.
        """
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                                  lstrip_blocks=True, finalize=_unbroken)  # fmt: skip
        source = files("firstlight.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
        drawn = {picture.name: Markup(picture.svg()) for picture in self.pictures}
        return environment.from_string(source).render(
            page=self, drawn=drawn, made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
            version=version("firstlight"),
        )  # fmt: skip


def _unbroken(value: object) -> object:
    """Keep a number and its % on one line."""
    return value.replace(" %", "\xa0%") if type(value) is str else value


def write_figures(page: Page, folder: Path) -> list[Path]:
    """Write every figure of the page with its title, as PNG and SVG."""
    return [picture.write(folder) for picture in page.pictures]
