"""Fisher trace and sharpness against step, by block, with what happened to the run."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from firstlight.figures.findings import NAMES, course, largest_block
from firstlight.figures.measurements import Series, measured_tables, read_marks, read_series
from firstlight.figures.panels import (
    Panel,
    draw_blocks,
    draw_legend,
    draw_marks,
    draw_panel,
    height_of_blocks,
    share_steps,
)
from firstlight.figures.picture import WIDTH, Picture
from firstlight.runfolder import RunFolder, RunFolderError

FISHER = "fisher_trace"
FEW = 5
"""Most lines in one panel."""


def early_training_figure(run: str | Path) -> Path:
    """Draw the Fisher trace and the sharpness of a run against its steps.

    One panel for the Fisher trace, one for its blocks where there are several (the stem at the
    bottom, the head at the top), one for every kind of sharpness. Bands are two standard errors.
    Steps are on a logarithmic axis that begins with a linear piece, so that step 0 shows. Vertical
    lines mark thawed blocks and changes of the learning rate. Measures of the user's own follow, a
    panel each; one that has blocks and no total is drawn by its largest blocks.

    Args:
        run: a run folder with the table ``fisher_trace``, ``sharpness``, or another measure's.

    Returns:
        ``<run>/figures/early_training.png``; an SVG of the same name stands beside it.

    Raises:
        RunFolderError: where the run has none of them.
    """
    folder = RunFolder.open(run)
    return draw_early_training(folder, 6.4).write(folder.path / "figures")


def draw_early_training(folder: RunFolder, width: float = WIDTH) -> Picture:
    """See `early_training_figure`; ``width`` in inches."""
    fisher, sharpness = read_series(folder, FISHER), read_series(folder, "sharpness")
    panels = [*_panels(fisher, sharpness), *_other_panels(folder)]
    blocks = _blocks(fisher)
    if not panels:
        raise RunFolderError(
            f"{folder.path} has nothing to draw: it holds no measurements. Train with "
            "FisherTraceMonitor or SharpnessMonitor, or measure its checkpoints: firstlight "
            "measure CHECKPOINTS"
        )
    figure, axes = _layout(panels, blocks, width)
    every = np.concatenate([line.steps for _, lines in panels for line in lines.values()])
    share_steps(axes, every)
    if blocks:
        draw_blocks(axes[1], blocks)
    for one, (key, lines) in zip(axes[:1] + axes[1 + bool(blocks) :], panels, strict=True):
        draw_panel(one, key, lines)
    draw_legend(figure, panels, blocks, draw_marks(axes, read_marks(folder)))
    return Picture("early_training", _sentences(panels, blocks), figure)


def _panels(
    fisher: dict[str, dict[str, Series]], sharpness: dict[str, dict[str, Series]]
) -> list[Panel]:
    """The totals: all kinds of Fisher trace together, every kind of sharpness by itself."""
    traces = {kind: blocks[""] for kind, blocks in fisher.items() if "" in blocks}
    kinds = [*NAMES, *(kind for kind in sharpness if kind not in NAMES)]
    totals = [(k, {k: sharpness[k][""]}) for k in kinds if "" in sharpness.get(k, {})]
    return [*([(FISHER, traces)] if traces else []), *totals]


def _other_panels(folder: RunFolder) -> list[Panel]:
    """Measures beside the two: a panel for every kind, of its total or of its largest blocks."""
    panels: list[Panel] = []
    for table in measured_tables(folder):
        if table in (FISHER, "sharpness"):
            continue
        for kind, series in read_series(folder, table).items():
            name = table if kind in ("", table) else f"{table}: {kind}"
            largest = sorted(series, key=lambda b: -np.nanmax(np.abs(series[b].values), initial=0))
            chosen = [b for b in series if b in largest[:FEW]]
            panels.append((name, {name: series[""]} if "" in series
                           else {b: series[b] for b in chosen}))  # fmt: skip
    return panels


def _blocks(fisher: dict[str, dict[str, Series]]) -> dict[str, Series]:
    """Blocks of the first kind of Fisher trace, where there are several with a number."""
    kinds = [blocks for blocks in fisher.values() if "" in blocks]
    found = {name: one for name, one in (kinds[0] if kinds else {}).items() if name}
    several = len(found) > 1 and any((one.finite.values > 0).any() for one in found.values())
    return found if several else {}


def _layout(
    panels: list[Panel], blocks: dict[str, Series], width: float
) -> tuple[Figure, list[Axes]]:
    heights = [2.4 if key == FISHER else 1.9 for key, _ in panels]
    if blocks:
        heights.insert(1, height_of_blocks(blocks))
    figure = Figure(figsize=(width, 1.2 + sum(heights)))
    figure.set_layout_engine("constrained", w_pad=0.1)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    return figure, list(grid[:, 0])


def _sentences(panels: list[Panel], blocks: dict[str, Series]) -> str:
    """How the Fisher trace moved, and the first kind of sharpness."""
    said = []
    for key, lines in panels[: 2 if panels[0][0] == FISHER else 1]:
        total = next(iter(lines.values()))
        said.append(course("The Fisher trace" if key == FISHER else NAMES.get(key, key), total))
        if key == FISHER and blocks and (largest := largest_block(total, blocks)):
            said[-1] += f"; {largest}"
    return "\n".join(said)
