"""Figures of early training over run folders made up to be hard to draw."""

import functools
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from firstlight.figures import early_training_figure
from firstlight.figures import panels as drawing
from firstlight.figures.findings import course, largest_block, short
from firstlight.figures.measurements import Series, aligned, read_series
from firstlight.figures.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION, save
from firstlight.runfolder import RunFolder, RunFolderError

BLOCKS = ["stem", "layer1", "layer2", "head"]
STEPS = [*range(0, 100, 10), *range(100, 2001, 100)]


def bump(step):
    """0.5 at the start and at the end, about 30 near step 54."""
    return 30 * math.exp(-((math.log1p(step) - 4) ** 2) / 2) + 0.5


def write_trace(folder, step, value, blocks=BLOCKS, se=0.03, kind="importance"):
    values = [value, *[value / len(blocks)] * len(blocks)]
    columns = {"kind": kind, "block": ["", *blocks], "value": values, "n": 256}
    errors = None if se is None else [abs(se * v) for v in values]
    folder.write("fisher_trace", {**columns, "se": errors}, step=step)


def write_sharpness(folder, step, value, se=0.001, kind="average"):
    columns = {"kind": [kind], "block": [""], "value": [value], "se": [se], "n": [256]}
    folder.write("sharpness", columns, step=step)


def event(folder, step, kind, block=""):
    folder.write("events", {"kind": [kind], "block": [block]}, step=step, split=kind)


def both(folder):
    for step in STEPS:
        write_trace(folder, step, bump(step))
        write_sharpness(folder, step, 0.02 * math.exp(-step / 400))
    event(folder, 100, "thaw", "layer2")
    event(folder, 1000, "lr")


def one(folder):
    write_trace(folder, 0, 12.0)
    write_sharpness(folder, 0, 0.02)


def diverged(folder):
    for step in STEPS:
        value = bump(step) if step < 300 else math.inf if step < 600 else math.nan
        write_trace(folder, step, value, se=0.03 if step < 300 else None)
        write_sharpness(folder, step, math.nan if step >= 300 else 0.01)


def only_nan(folder):
    for step in STEPS:
        write_trace(folder, step, math.nan)


def no_errors(folder):
    for step in STEPS:
        write_trace(folder, step, bump(step), se=0.0)
        write_sharpness(folder, step, 0.1, se=None)


def late_blocks(folder):
    for step in STEPS:
        write_trace(folder, step, bump(step), blocks=BLOCKS[3 - min(step // 200, 3) :])
    for number, block in enumerate(BLOCKS[2::-1]):
        event(folder, 200 * (number + 1), "thaw", block)


def thirty_blocks(folder):
    for step in STEPS:
        write_trace(folder, step, bump(step), blocks=[f"blocks.{i}.a_long_name" for i in range(30)])


def six_decades(folder):
    for step in STEPS:
        write_trace(folder, step, 1e3 / (1 + step) ** 2)
        write_sharpness(folder, step, 1 / (1 + step) ** 2)


def negative(folder):
    for step in STEPS:
        write_sharpness(folder, step, 10 * math.exp(-step / 40) - 0.001)


def long_run(folder):
    for step in [*range(0, 500, 10), *range(500, 1_000_001, 10_000)]:
        write_trace(folder, step, bump(step))
    event(folder, 300_000, "lr")


def lr_at_every_step(folder):
    both(folder)
    for step in range(0, 2000, 5):
        event(folder, step, "lr")


def zeros(folder):
    for step in STEPS:
        write_trace(folder, step, 0.0)


def two_estimators(folder):
    for step in STEPS:
        columns = {"kind": ["importance", "label"], "block": ["", ""], "n": 64}
        folder.write("fisher_trace", {**columns, "value": [1.0, 2.0 + step]}, step=step)


def own_measures(folder):
    for step in STEPS:
        folder.write("norms", {"kind": ["l2"], "block": [""], "value": [bump(step)]}, step=step)
        blocks = {"kind": "per_block", "block": [f"b{i}" for i in range(9)]}
        folder.write("drift", {**blocks, "value": [i - 3.0 for i in range(9)]}, step=step)


HARD = [both, one, diverged, only_nan, no_errors, late_blocks, thirty_blocks, six_decades, negative,
        long_run, lr_at_every_step, zeros, two_estimators, own_measures]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draws each run once; returns the words in its figure."""

    @functools.cache
    def draw(make):
        folder = RunFolder.create(tmp_path_factory.mktemp("runs") / make.__name__)
        make(folder)
        figure = early_training_figure(folder.path)
        assert figure == folder.path / "figures/early_training.png"
        assert figure.read_bytes()[:4] == b"\x89PNG"
        assert sorted(p.suffix for p in figure.parent.iterdir()) == [".png", ".svg"]
        return " ".join(re.findall(r"<!-- (.*?) -->", figure.with_suffix(".svg").read_text()))

    return draw


@pytest.mark.parametrize("make", HARD, ids=lambda make: make.__name__)
def test_hard_runs_are_drawn_without_a_warning(make, drawn):
    assert "step (optimiser updates)" in drawn(make)


@pytest.mark.parametrize(
    ("make", "said", "left_out"),
    [
        (both, ["The Fisher trace peaks at step 50", "falls to 0.55 by step 2,000",
                "Average sharpness falls from 0.02 at step 0", "layer2", "a block thaws",
                "learning rate changes", "± 2 standard errors", "256 examples"], ["not finite"]),
        (one, ["The Fisher trace is 12 ± 0.36 at step 0"], ["peaks"]),
        (diverged, ["is no number from step 300 on", "18 of 30 not finite"], ["inf"]),
        (only_nan, ["never a finite number", "no finite value"], ["by block"]),
        (no_errors, ["Average sharpness stays near 0.1 up to step 2,000"], ["standard errors"]),
        (late_blocks, ["Fisher trace by block", "not measured"], []),
        (lr_at_every_step, ["(400 times, not drawn)"], []),
        (zeros, ["The Fisher trace stays near 0"], ["by block"]),
        (two_estimators, ["importance", "label"], []),
        (own_measures, ["norms: l2", "drift: per_block", "b8"], ["Fisher", "b3"]),
        (negative, ["Average sharpness falls from 10 at step 0 to -0.001"], ["Fisher"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_figure_says_what_the_tables_hold(make, said, left_out, drawn):
    text = drawn(make)
    for words in said:
        assert words in text, words
    for words in left_out:
        assert words not in text, words


def test_a_run_without_measurements_is_refused(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"holds no measurements.*FisherTraceMonitor"):
        early_training_figure(folder.path)
    with pytest.raises(RunFolderError, match="is no run folder"):
        early_training_figure(tmp_path)


def series(*values, se=0.0, steps=None):
    steps = np.arange(len(values)) * 100.0 if steps is None else np.array(steps, float)
    return Series(steps, np.array(values, float), np.full(len(values), se), 256)


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (series(2, 21, 1), "peaks at step 100, 10 times its start, and falls to 1 by step 200"),
        (series(-2, 21, 1), "peaks at step 100, at 21, and falls to 1 by step 200"),
        (series(4, 1, 3), "falls from 4 to 1 at step 100 and is back at 3 by step 200"),
        (series(1, 2, 3), "rises from 1 at step 0 to 3 at step 200"),
        (series(3, 2, 1), "falls from 3 at step 0 to 1 at step 200"),
        (series(3, 2, 1, se=0.472), "stays near 2 up to step 200"),  # 2.003 = 3 x 1.414 x 0.472
        (series(3, 2, 1, se=0.47), "falls from 3 at step 0 to 1 at step 200"),  # 1.994
        (series(1, 1.02, 0.99), "stays near 1 up to step 200"),
        (series(1, 2, math.nan), "rises from 1 at step 0 to 2 at step 100, "
         "and is no number from step 200 on"),
        (series(math.nan), "was measured, and never a finite number"),
        (series(1234.0, se=20), "is 1,200 ± 20 at step 0"),
    ],
)  # fmt: skip
def test_the_finding_is_the_course_of_the_numbers(one, sentence):
    assert course("It", one) == f"It {sentence}"


def test_numbers_are_said_with_two_digits():
    assert [short(v) for v in (0.0, 77.7, 1e6, -0.00012)] == ["0", "78", "1e+06", "-0.00012"]


def test_the_largest_block_is_named_where_one_stands_out():
    total = series(10, 10)
    assert largest_block(total, {"a": series(6, 6), "b": series(4, 4)}) == "a carries most of it"
    several = {name: series(3, 3) for name in "abcdefgh"}
    assert largest_block(total, several) is None
    several["h"] = series(9, 9)  # 9 of 30
    assert largest_block(total, several) == "h carries the largest part, 30 %"


def test_blocks_stand_in_the_order_of_the_network_however_late_they_come(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    late_blocks(folder)
    blocks = read_series(folder, "fisher_trace")["importance"]
    assert [name for name in blocks if name] == BLOCKS
    steps = blocks[""].steps
    measured = np.isfinite(aligned({name: blocks[name] for name in BLOCKS}, steps))
    assert measured.sum(1).tolist() == [(steps >= s).sum() for s in (600, 400, 200, 0)]


def test_a_panel_draws_the_values_and_two_standard_errors():
    axes = Figure().subplots()
    one = series(1.0, 5.0, 2.0, se=0.25)
    drawing.draw_panel(axes, "average", {"average": one})
    (line,) = axes.get_lines()
    assert np.array_equal(line.get_xydata(), [[0, 1], [100, 5], [200, 2]])
    corners = axes.collections[0].get_paths()[0].vertices
    assert {tuple(c) for c in corners} >= {(0, 0.5), (0, 1.5), (100, 4.5), (100, 5.5), (200, 2.5)}


def test_the_band_of_an_eigenvalue_is_its_residual():
    figure = Figure()
    axes = figure.subplots()
    lines = {"lambda_max": series(1.0, 5.0, se=0.25)}
    drawing.draw_panel(axes, "lambda_max", lines)
    corners = axes.collections[0].get_paths()[0].vertices
    assert {tuple(c) for c in corners} >= {(0, 0.75), (0, 1.25), (100, 4.75), (100, 5.25)}
    assert "± residual" in axes.get_title(loc="left")
    drawing.draw_legend(figure, [("lambda_max", lines)], {}, [])
    assert not figure.legends


def test_steps_are_logarithmic_and_zero_shows():
    figure = Figure()
    axes = list(figure.subplots(2, 1, sharex=True))
    drawing.share_steps(axes, np.array([0.0, 10, 100, 1000]))
    low, high = axes[0].get_xlim()
    assert (low, high) == (0, 1000)
    place = axes[0].transData.transform([(s, 1) for s in (0, 10, 100, 1000)])[:, 0]
    assert place[3] - place[2] == pytest.approx(place[2] - place[1], rel=1e-6)
    assert place[1] > place[0]


def test_cells_of_the_heat_map_hold_the_blocks_values():
    axes = Figure().subplots()
    blocks = {"stem": series(1.0, 100.0), "head": series(10.0, math.nan)}
    drawing.draw_blocks(axes, blocks)
    (mesh,) = [c for c in axes.collections if hasattr(c, "get_coordinates")]
    assert mesh.get_array().filled(-1).tolist() == [[1, 100], [10, -1]]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (1, 100)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem", "head"]


def test_noise_between_nearly_equal_blocks_is_not_stretched_over_all_colours():
    axes = Figure().subplots()
    drawing.draw_blocks(axes, {"stem": series(1.0), "head": series(1.01)})
    (mesh,) = [c for c in axes.collections if hasattr(c, "get_coordinates")]
    assert mesh.norm.vmax / mesh.norm.vmin == pytest.approx(10)


def test_colours_are_told_apart_without_red_and_green_receptors():
    """Against Machado et al. (2009), deuteranomaly and protanomaly of severity 1."""
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
              [-0.011820, 0.042940, 0.968881]]  # fmt: skip
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
              [-0.003882, -0.048116, 1.051998]]  # fmt: skip
    colours = [BLUE, ORANGE, VERMILION, GREEN, PURPLE]
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    for matrix in (np.eye(3), deutan, protan):
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.4)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[~np.eye(5, dtype=bool)].min() > 0.12


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    figure = Figure()

    def full(temporary, **_):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="No space left on device"):
        save(figure, tmp_path / "figures/it.png")
    assert not list((tmp_path / "figures").iterdir())
