"""Colours told apart by all kinds of colour vision, and how a figure reaches the disk."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from firstlight.runfolder import replacing

# Okabe and Ito's palette.
BLUE, ORANGE, VERMILION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
PURPLE, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#666666", "#222222"

NOT_MEASURED = "#dddddd"

SHOT_COLOURS = {"many": BLUE, "medium": ORANGE, "few": VERMILION, None: GREY}


def open_frame(axes: Axes) -> None:
    """Leave out the lines at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, file: Path) -> Path:
    """Write a figure as PNG and, of the same name, SVG, each whole or not at all.

    Args:
        figure: what to draw.
        file: the PNG's path; its folder is made.

    Returns:
        ``file``.

    Raises:
        OSError: where a file could not be written; none is left then.
    """
    for suffix in (".svg", ".png"):
        with replacing(file.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=160)
    return file
