"""A drawn figure with the sentence that it says: as files, and as part of a page."""

import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.figure import Figure

from firstlight.figures.palette import BLACK, GREY, NOT_MEASURED, save

WIDTH = 4.8
"""Inches: text of 9 points stays readable where a phone shows the figure at three quarters."""

INK = {
    BLACK.lower(): "currentColor",
    "#000000": "currentColor",
    GREY.lower(): "var(--grey)",
    "#ffffff": "var(--card)",
    NOT_MEASURED: "var(--line)",
}
"""What a page's own colours stand for, so that a figure follows it into the dark."""

MANY = 2000
"""Marks from which they are drawn as pixels, so that a file stays small."""


class NothingToDrawError(ValueError):
    """Says what a figure lacks, and how to get it."""


@dataclass(frozen=True)
class Picture:
    """A figure without its title, and the title.

    Attributes:
        name: of its files.
        finding: the sentence that it says.
        figure: what is drawn.
        note: what a reader has to know beside the axes.
    """

    name: str
    finding: str
    figure: Figure
    note: str = ""

    def write(self, folder: Path) -> Path:
        """Write ``<name>.png`` and ``<name>.svg`` with the title; return the PNG's path."""
        characters = int(self.figure.get_figwidth() * 72 / 5.6)
        lines = "\n".join(fill(line, characters) for line in self.finding.split("\n"))
        title = self.figure.suptitle(label(lines, most=None), x=0.01, ha="left", fontsize=10)
        with _any_script():
            file = save(self.figure, folder / f"{self.name}.png")
        title.remove()
        self.figure._suptitle = None  # type: ignore[attr-defined]  # or it keeps its room
        return file

    def svg(self) -> str:
        """As an element of an HTML page: text as text, colours the page's, ids its own."""
        with (
            rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}),
            StringIO() as buffer,
            _any_script(),
        ):
            self.figure.savefig(buffer, format="svg", facecolor="none", dpi=160,
                                metadata={"Date": None})  # fmt: skip
            drawn = buffer.getvalue()
        drawn = drawn[drawn.index("<svg") :]
        drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
        drawn = re.sub(r"(<svg\b[^>]*?) width=\"[^\"]*\"", r"\1", drawn, count=1)
        drawn = re.sub(r"(<svg\b[^>]*?) height=\"[^\"]*\"", r"\1", drawn, count=1)
        drawn = re.sub(r"<!--.*?-->", "", drawn, flags=re.DOTALL)
        own = re.sub(r"\W", "_", self.name)
        drawn = re.sub(r'\bid="', f'id="{own}-', drawn)
        drawn = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{own}-", drawn)
        return re.sub(
            r"((?:fill|stroke): )(#[0-9a-f]{6})",
            lambda found: found[1] + INK.get(found[2], found[2]),
            drawn,
        )


@contextmanager
def _any_script() -> Iterator[None]:
    """Names of classes may be in scripts that the font lacks: boxes in the PNG, text in a page."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


def label(text: object, most: int | None = 24) -> str:
    r"""Text from data as matplotlib shall show it: shortened, no control codes, no mathematics.

    Example:
        >>> print(label("a $10 note"), label("x" * 30, most=8))
        a \$10 note xxxxxx…
    """
    kept = (c if c == "\n" or unicodedata.category(c)[0] != "C" else "\ufffd" for c in str(text))
    shown = "".join(kept)
    if most is not None:
        shown = shown.replace("\n", " ")
        shown = shown if len(shown) <= most else f"{shown[: most - 2]}…"
    return shown.replace("$", r"\$")
