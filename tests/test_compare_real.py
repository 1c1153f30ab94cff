"""``firstlight compare --real`` on runs of ImageNet's classes, judged by other labels."""

import json
import pkgutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_runs import Cell, runs_of, write_runs

from firstlight import cli
from firstlight.compare import compare
from firstlight.figures.compared_folder import ComparedFolder
from firstlight.figures.other_labels import draw_other_labels
from firstlight.functional import ScoredRuns, relabelled_effects
from firstlight.report import report
from firstlight.runfolder import RunFolder, RunFolderError

CELL = Cell(1000, 3, 0.7, 0.10)
ARMS = [{"arm": f"crop {s:g}", "factor": "crop", "strength": s} for s in (0.0, 0.5)]
LOST = 7
"""A class that the second arm takes for the next one, which its images show, too."""


def name_images(path, numbers):
    """Give the predictions the names of ImageNet's validation images, numbered from 0."""
    (file,) = (path / "predictions").glob("*.parquet")
    table = pq.ParquetFile(file).read()
    names = [f"val/ILSVRC2012_val_{n + 1:08d}.JPEG" for n in numbers]
    place = table.column_names.index("path")
    pq.write_table(table.set_column(place, "path", pa.array(names, pa.string())), file)


def lose(path, cell):
    """All images of the class are taken for the next one."""
    (file,) = (path / "predictions").glob("*.parquet")
    table = pq.ParquetFile(file).read()
    pred = table["pred"].to_numpy().copy()
    pred[cell.targets == LOST] = LOST + 1
    place = table.column_names.index("pred")
    pq.write_table(table.set_column(place, "pred", pa.array(pred, pa.int32())), file)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two arms of three; of 3,000 images in random places every tenth has no label."""
    root, generator = tmp_path_factory.mktemp("real"), np.random.default_rng(0)
    chances = CELL.chances(generator)
    chances[CELL.targets == LOST] = 0.999
    paths = write_runs(root / "runs", runs_of(CELL, [chances] * 2, 3, generator), ARMS, generator)
    numbers, labels = generator.permutation(50_000)[:3000], [[] for _ in range(50_000)]
    for place, (number, target) in enumerate(zip(numbers, CELL.targets.tolist(), strict=True)):
        several = [(target + 1) % 1000] if target == LOST or place % 4 == 0 else []
        labels[number] = [] if place % 10 == 5 else [target, *several]
    for number, path in enumerate(paths):
        if number > 2:
            lose(path, CELL)
        name_images(path, numbers)
    (root / "real.json").write_text(json.dumps(labels))
    return paths, root / "real.json", [labels[n] for n in numbers]


@pytest.fixture(scope="module")
def compared(study, tmp_path_factory):
    out = compare(study[0], real=study[1], out=tmp_path_factory.mktemp("out") / "out", draws=20)
    return out, pq.ParquetFile(out / "class_effects.parquet").read()


def test_an_effect_on_the_labels_alone_is_none_by_the_others(compared):
    """Class 7 falls from 100 % to 0 by its own label, and not at all by ReaL's."""
    row = compared[1].to_pylist()[LOST]
    n = [place % 10 != 5 for place in range(3 * LOST, 3 * LOST + 3)]
    assert row["real_n"] == sum(n) and row["n"] == 3
    assert row["real_original"] == -1 and row["real_effect"] == 0 and row["real_moved"] == 1
    assert row["real_accuracy_before"] == row["real_accuracy_after"] == 1
    assert row["real_low"] < 0 < row["real_high"]


def test_columns_are_those_of_the_function(study, compared):
    paths, _, labels = study
    preds = np.stack([RunFolder.open(p).read("predictions")["pred"].to_numpy() for p in paths])
    right = [[p in shown for p, shown in zip(row, labels, strict=True)] for row in preds.tolist()]
    runs = ScoredRuns(preds == CELL.targets, CELL.targets, np.repeat([0, 1], 3), 1000)
    found = relabelled_effects(runs, right, [bool(shown) for shown in labels])
    told = {name: compared[1][f"real_{name}"].to_numpy() for name in (
        "n", "original", "effect", "se", "p", "q", "low", "high", "moved", "moved_se")}  # fmt: skip
    for name in ("effect", "se", "p", "q", "low", "high"):
        np.testing.assert_allclose(told[name], getattr(found.relabelled, name), rtol=1e-9)
    for name in ("n", "original", "moved", "moved_se"):
        np.testing.assert_allclose(told[name], getattr(found, name), atol=1e-12)
    summary = json.loads((compared[0] / "summary.json").read_text())
    assert summary["real"]["images"] == 2700 and summary["real"]["unlabelled"] == 300


def test_the_figure_names_the_class_that_leaves_the_diagonal(compared):
    folder = ComparedFolder.open(compared[0])
    name = "crop 0.5 against crop 0"
    picture = draw_other_labels(folder, name)
    assert "class 7 changes by -100.0 points by its own label, by 0.0 by ReaL" in picture.finding
    assert "2,700 images" in picture.note and "300 have none" in picture.note
    columns = folder.effects(name)
    (axes,) = picture.figure.axes
    dots = next(line for line in axes.lines if line.get_marker() == ".").get_xydata()
    both = np.stack([columns["real_original"], columns["real_effect"]], 1)
    np.testing.assert_allclose(dots, 100 * both[np.isfinite(both).all(1)])
    named = axes.texts[-1].get_text().split("\n")
    assert named[0] == "1 class 7" and len(named) == 5
    page = report([compared[0]]).read_text()
    assert "By other labels" in page and "crop_0.5_against_crop_0-real" in page


def test_printed_with_the_images_left_out(study, tmp_path, monkeypatch, capsys):
    paths, real, _ = study
    command = ["firstlight", "compare", *map(str, paths), "--real", str(real), "--draws", "5"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    cli.main()
    said = capsys.readouterr().out
    assert "on the 2,700 images that have one (300 left out of both sides)" in said
    assert "furthest apart are class 7 (-100.0 by its own label, 0.0 by ReaL)" in said


def test_timms_copy(study, tmp_path):
    out = compare(study[0], real="timm", out=tmp_path / "out", draws=5)
    labels = json.loads(pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json"))
    paths = RunFolder.open(study[0][0]).read("predictions")["path"].to_pylist()
    told = json.loads((out / "summary.json").read_text())["real"]
    known = sum(bool(labels[int(path[-13:-5]) - 1]) for path in paths)
    assert told == {"labels": "timm", "images": known, "unlabelled": 3000 - known}


def test_without_other_labels_nothing_is_said(study, tmp_path, capsys):
    out = compare(study[0], out=tmp_path / "out", draws=5)
    assert not list(out.rglob("*-real.png")) and "ReaL" not in capsys.readouterr().out
    table = pq.ParquetFile(out / "class_effects.parquet").read()
    assert table["real_effect"].null_count == 1000 and table["real_n"].null_count == 1000


def test_refuses_other_images_and_labels(study, tmp_path):
    paths, real, _ = study
    (tmp_path / "none.json").write_text(json.dumps([[]] * 50_000))
    with pytest.raises(ValueError, match="accepts no label for any image"):
        compare(paths, real=tmp_path / "none.json", out=tmp_path / "out", draws=5)
    generator = np.random.default_rng(1)
    two = Cell(1000, 1, 0.7, 0.1)
    runs = runs_of(two, [two.chances(generator)] * 2, 2, generator)
    made = write_runs(tmp_path / "runs", runs, ARMS, generator)
    with pytest.raises(RunFolderError, match="is no ILSVRC2012_val"):
        compare(made, real=real, out=tmp_path / "out", draws=5)
    for path in made:
        name_images(path, range(1000))
    name_images(made[2], [1, 0, *range(2, 1000)])
    with pytest.raises(ValueError, match=r"run-0 and .*run-2 have other images in their places"):
        compare(made, real=real, out=tmp_path / "out", draws=5)
    few = Cell(10, 5, 0.7, 0.1)
    runs = runs_of(few, [few.chances(generator)] * 2, 2, generator)
    made = write_runs(tmp_path / "few", runs, ARMS, generator)
    with pytest.raises(RunFolderError, match="has 10 classes"):
        compare(made, real=real, out=tmp_path / "out", draws=5)
    assert not (tmp_path / "out").exists()
