"""``firstlight compare`` over run folders whose truth is known, and over damaged ones."""

import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from simulated_runs import Cell, runs_of, with_effects, write_runs

from firstlight import cli
from firstlight.compare import compare
from firstlight.compare.comparison import CLASS_EFFECTS
from firstlight.figures import class_effects_figure, class_strengths_figure
from firstlight.figures.class_strengths import half_width
from firstlight.functional import (
    ScoredRuns,
    class_effects,
    confusion_shifts,
    new_image_effects,
    null_band,
    select_on_half,
)
from firstlight.runfolder import RunFolder, RunFolderError

CELL = Cell(60, 50, 0.7, 0.10)
STRENGTHS = [0.0, 0.1, 0.3]
ARMS = [{"arm": f"jitter {s:g}", "factor": "jitter", "strength": s} for s in STRENGTHS]
MOVED = 8


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three arms of three; in the last a few classes are far worse or better, in one less so."""
    generator = np.random.default_rng(0)
    before = CELL.chances(generator)
    after, moved = with_effects(CELL, before, 0.2, MOVED // 2, generator)
    chances = [before, before + (after - before) / 3, after]
    runs = runs_of(CELL, chances, 3, generator)
    paths = write_runs(tmp_path_factory.mktemp("study"), runs, ARMS, generator)
    return paths, runs, moved


@pytest.fixture
def copies(study, tmp_path):
    """The first and the last arm, to be damaged."""
    paths = [study[0][i] for i in (0, 1, 2, 6, 7, 8)]
    return [shutil.copytree(path, tmp_path / path.name) for path in paths]


def table(folder, name, comparison=None):
    """Columns of a table as arrays, missing numbers as NaN."""
    content = pq.ParquetFile(folder / f"{name}.parquet").read()
    found = {key: content[key].to_numpy(zero_copy_only=False) for key in content.column_names}
    if comparison is not None:
        found = {key: values[found["comparison"] == comparison] for key, values in found.items()}
    return found


def rows(folder, comparison):
    return table(folder, "class_effects", comparison)


def test_tables_hold_what_the_functions_say(study, tmp_path):
    """The whole way through folders against the functions on the arrays that were written."""
    paths, runs, moved = study
    out = compare(paths, out=tmp_path / "out", draws=100)
    two = runs.of_arms(0, 2)
    effects = class_effects(two)
    new = new_image_effects(two, effects)
    found = rows(out, "jitter 0.3 against jitter 0")
    for key in ("effect", "se", "p", "q", "low", "high", "shrunk"):
        np.testing.assert_allclose(found[key], getattr(effects, key), rtol=1e-12, err_msg=key)
    for key in ("se", "q", "low"):
        np.testing.assert_allclose(found[f"{key}_new_images"], getattr(new, key), rtol=1e-12)
    np.testing.assert_allclose(found["q_centred"], class_effects(two, centred=True).q)
    np.testing.assert_array_equal(
        np.argsort(found["rank"]), np.argsort(effects.effect, kind="stable")
    )
    band = null_band(two, draws=100)
    np.testing.assert_allclose(found["band_low"][np.argsort(found["rank"])], band.low)
    np.testing.assert_array_equal(found["beyond_band"], band.beyond(effects.effect))
    np.testing.assert_allclose(found["fixed"] - found["broken"], 50 * effects.effect, atol=1e-9)
    np.testing.assert_allclose(found["accuracy_after"] - found["accuracy_before"], effects.effect)
    assert (found["q"][moved] < 0.05).sum() >= MOVED - 1
    assert (found["q"][~moved] < 0.05).sum() <= 1
    assert (found["p_family"][moved] <= 0.1 + 1e-9).sum() >= MOVED - 2  # of 20 relabelings
    line = rows(out, "line over jitter 0 to 0.3")
    means = np.stack([runs.accuracy[runs.arms == a].mean(0) for a in range(3)])
    np.testing.assert_allclose(line["effect"], 0.3 * np.polyfit(STRENGTHS, means, 1)[0], atol=1e-12)


def test_other_tables_add_up(study, tmp_path):
    paths, runs, _ = study
    out = compare(paths, out=tmp_path / "out", draws=20)
    accuracies = table(out, "accuracies")
    np.testing.assert_allclose(accuracies["accuracy"], runs.accuracy.ravel())
    assert accuracies["strength"].tolist() == list(np.repeat(STRENGTHS, 3 * 60))
    shifts = table(out, "confusion_shifts", "jitter 0.3 against jitter 0")
    gone = np.bincount(shifts["target"], shifts["after"] - shifts["before"], minlength=60)
    effect = rows(out, "jitter 0.3 against jitter 0")["effect"]
    np.testing.assert_allclose(gone, -effect, atol=1e-9)
    two = np.isin(runs.arms, (0, 2))
    preds = np.stack([RunFolder.open(p).read("predictions")["pred"].to_numpy() for p in paths])
    expected = confusion_shifts(preds[two], runs.targets, runs.arms[two] // 2)
    moved = expected.before != expected.after
    for key in ("target", "pred", "before", "after", "se", "low", "high"):
        np.testing.assert_allclose(shifts[key], getattr(expected, key)[moved], rtol=1e-12)
    summary = json.loads((out / "summary.json").read_text())
    last = rows(out, "jitter 0.3 against jitter 0")
    wrong = [(run, c) for run in (0, 1, 2, 6, 7, 8) for c in range(60)]
    counts = np.array([((preds[r] == c) & (runs.targets != c)).sum() for r, c in wrong], float)
    before, after = counts.reshape(2, 3, 60)
    np.testing.assert_allclose(last["received_before"], before.mean(0))
    np.testing.assert_allclose(last["received_after"], after.mean(0))
    halves = select_on_half(runs.of_arms(0, 2))
    told = summary["comparisons"][1]["halves"]
    assert told["classes"] == halves.classes.tolist()
    assert told["selected"] == pytest.approx(halves.selected.mean())
    assert told["reported"] == pytest.approx(halves.reported.mean())
    assert summary["images"] == 3000 and summary["split"] == "test" and not summary["notes"]
    assert summary["arms"][0]["seeds"] == ["0", "1", "2"]
    assert len(summary["comparisons"]) == 3
    assert pq.read_schema(out / "class_effects.parquet").equals(CLASS_EFFECTS)
    assert not list(out.rglob("*.tmp"))


def test_prints_question_bands_and_who_lost(study, tmp_path, capsys):
    paths, _, moved = study
    compare(paths, out=tmp_path / "out", draws=50, worst=4)
    printed = capsys.readouterr().out
    assert "on this test set: would other seeds say the same" in printed
    assert "3 runs in an arm are few" in printed
    assert "Confusions that changed most, in points (95 % CI of each by itself, on these" in printed
    assert "Chance alone would make the worst class" in printed
    assert "picked on half of the seeds" in printed
    assert f"{MOVED // 2} classes lose 2 points or more with q < .05" in printed
    assert all(f"class {c} " in printed for c in np.flatnonzero(moved)[:1])
    compare(paths[:6], out=tmp_path / "new", draws=50, question="new_images")
    assert "on new images of the classes" in capsys.readouterr().out


def test_figures_say_what_they_show(study, tmp_path):
    out = compare(study[0], out=tmp_path / "out", draws=50)
    names = {file.stem for file in (out / "figures").glob("*.png")}
    low, high = "jitter_0.1_against_jitter_0", "jitter_0.3_against_jitter_0"
    line = "line_over_jitter_0_to_0.3"
    assert names == {
        low, high, line, f"{line}-evidence", f"{line}-by_accuracy", f"{high}-confusions",
        f"{high}-receiving", "accuracy_by_strength", "worst_by_strength", "best_strengths",
    }  # fmt: skip
    drawn = (out / "figures" / "jitter_0.3_against_jitter_0.svg").read_text()
    assert "4 of 60 classes lose and 4 gain more than seeds" in drawn
    drawn = (out / "figures" / "accuracy_by_strength.svg").read_text()
    assert "From 0 to 0.3 all classes together change by" in drawn
    with pytest.raises(ValueError, match=r"no comparison 'x'; there are: jitter 0\.1 against"):
        class_effects_figure(out, "x")
    assert class_strengths_figure(out).exists()


def test_seed_intervals_are_students():
    """scipy.stats.t.interval of the mean."""
    values = np.array([0.5, 0.6, 0.8, 0.55])
    low, high = scipy.stats.t.interval(0.9, 3, values.mean(), scipy.stats.sem(values))
    assert half_width(values, 0.9) == pytest.approx((high - low) / 2, rel=1e-12)
    assert half_width(values[:1], 0.9) == 0


def test_one_run_an_arm_has_the_band_and_nothing_else(study, tmp_path, capsys):
    pair = [study[0][0], study[0][3]]
    out = compare(pair, out=tmp_path / "out", draws=200)
    found = rows(out, "jitter 0.1 against jitter 0")
    unknown = ("se", "q", "low", "shrunk", "q_new_images", "p_family")
    assert np.isnan([found[key] for key in unknown]).all()
    assert np.isfinite([found[key] for key in ("effect", "band_low", "band_high")]).all()
    shifts = pq.ParquetFile(out / "confusion_shifts.parquet").read()
    assert [shifts[key].null_count for key in ("before", "se", "low", "high")] == [
        0, *[shifts.num_rows] * 3
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "nothing but the null band tells an effect from chance" in printed
    assert "Confusions that changed most, in points: class" in printed
    without = next((out / "figures").glob("*-confusions.svg")).read_text()
    assert "CI" not in without and "interval of the change" not in without
    drawn = next((out / "figures").glob("*against_jitter_0.svg")).read_text()
    assert "too few runs for q-values" in drawn
    with pytest.raises(ValueError, match="beside the null band or not at all"):
        compare(pair, out=tmp_path / "none", draws=0)
    assert not (tmp_path / "none").exists()


def test_two_runs_an_arm_get_no_q(study, tmp_path, capsys):
    paths = study[0]
    out = compare([*paths[:2], *paths[6:8]], out=tmp_path / "out", draws=0)
    found = rows(out, "jitter 0.3 against jitter 0")
    assert np.isnan([found["q"], found["band_low"]]).all() and np.isfinite(found["p"]).all()
    assert "too few for q-values" in capsys.readouterr().out


def test_arms_and_strengths_from_the_command_line(study, tmp_path, monkeypatch, capsys):
    paths = [str(path) for path in study[0]]
    options = ["--arm", f"a={','.join(paths[:3])}", "--arm", f"b={','.join(paths[6:])}"]
    options += ["--arms", "b", "a", "--strengths", "{a: 1, b: 0}", "--draws", "20", "--trend"]
    monkeypatch.setattr(
        sys, "argv", ["firstlight", "compare", *options, "--out", str(tmp_path / "o")]
    )
    cli.main()
    found = rows(tmp_path / "o", "a against b")["effect"]
    np.testing.assert_allclose(found, -class_effects(study[1].of_arms(0, 2)).effect, atol=1e-12)
    assert (tmp_path / "o" / "figures" / "accuracy_by_strength.png").exists()
    capsys.readouterr()
    for wrong in (["--arm", "a"], ["--arm", "a=x", "--arm", "a=y"], ["--strengths", "{a: x}"]):
        monkeypatch.setattr(sys, "argv", ["firstlight", "compare", *wrong])
        with pytest.raises(SystemExit):
            cli.main()
    assert "is given twice" in capsys.readouterr().err


def test_an_old_folder_is_never_overwritten(study, tmp_path):
    made = [compare(study[0][:6], out=tmp_path / "out", draws=5).name for _ in range(2)]
    assert made == ["out", "out-1"]


def rewrite(path, **changes):
    """Change columns of a run's predictions."""
    (file,) = (path / "predictions").glob("*.parquet")
    table = pq.ParquetFile(file).read()
    for name, change in changes.items():
        index = table.column_names.index(name)
        values = change(table[name].to_numpy().copy())
        table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, file)


def describe(path, **values):
    RunFolder.open(path).update(**values)


def nan_at_5(values):
    values[5] = np.nan
    return values


def truncate(path):
    (file,) = (path / "predictions").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:1000])


def same_as(path, other):
    shutil.rmtree(path / "predictions")
    shutil.copytree(other / "predictions", path / "predictions")


DAMAGES = {
    "truncated": (lambda p: truncate(p[1]), RunFolderError, r"run-1.predictions.*cannot be read"),
    "NaN": (lambda p: rewrite(p[4], p_true=nan_at_5), ValueError, "run-7: p_true is NaN for 1 of"),
    "other labels": (
        lambda p: rewrite(p[3], target=lambda y: y[::-1]),
        ValueError, "run-0 and .*run-6 have different test sets: as many images",
    ),
    "fewer images": (
        lambda p: [RunFolder.open(p[3]).truncate(0), RunFolder.open(p[3]).write(
            "predictions", {"idx": [0], "target": [0], "pred": [1], "p_true": 0.5, "p_pred": 0.5,
                            "nll": 0.7}, split="test")],
        ValueError, "3,000 images and 1",
    ),
    "other names": (
        lambda p: RunFolder.open(p[2]).write("classes", {"class": [0], "name": ["cat"]}),
        ValueError, "run-0 and .*run-2 have different class lists",
    ),
    "other class hash": (
        lambda p: describe(p[2], classes_sha256="0"), ValueError, "different class lists",
    ),
    "no seed": (lambda p: describe(p[2], seed=None), ValueError, "run-2 has no seed in run.json"),
    "no arm": (lambda p: describe(p[2], arm=None), ValueError, "run-2 does not say which arm"),
    "one seed twice": (lambda p: describe(p[2], seed="0"), ValueError, "has seed 0 more than once"),
    "one run twice": (
        lambda p: describe(p[5], run_id="0" * 12), ValueError, "are the same run",
    ),
    "a copy's predictions": (
        lambda p: same_as(p[5], p[0]), ValueError, "run-8 and .*run-0 hold the same predictions",
    ),
    "strengths within an arm": (
        lambda p: describe(p[1], strength=3.0), ValueError, "'jitter 0' differ in their strength",
    ),
    "no predictions": (
        lambda p: shutil.rmtree(p[4] / "predictions"), RunFolderError, "run-7 holds no predictions",
    ),
    "empty cells": (
        lambda p: rewrite(p[1], pred=lambda y: [None, *y[1:]]), ValueError, "empty cells",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_refuses(copies, damage, tmp_path):
    harm, error, words = DAMAGES[damage]
    harm(copies)
    with pytest.raises(error, match=words):
        compare(copies, out=tmp_path / "out", draws=5)
    assert not (tmp_path / "out").exists()


def test_refuses_one_run_and_one_arm(study, tmp_path):
    for few in (study[0][:1], study[0][:3]):
        with pytest.raises(ValueError, match="needs two arms or more"):
            compare(few, out=tmp_path / "out")
    with pytest.raises(ValueError, match="are the same run"):
        compare([study[0][0], study[0][3]], arm={"again": [study[0][0]]}, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"question": "both"}, "question is one of"),
        ({"least": 5}, "two points"),
        ({"level": 95}, "level in"),
        ({"worst": 0}, "worst must be"),
        ({"arms": ["jitter 0", "x"]}, "different names among jitter 0, jitter 0.1"),
        ({"split": "val"}, "no predictions of 'val'; there are: test"),
    ],
)
def test_refuses_arguments(study, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        compare(study[0], out=tmp_path / "out", **settings)


def test_says_what_else_differs(copies, tmp_path, capsys):
    describe(copies[0], recipe_hash="1", resolution=32, status="running")
    describe(copies[1], recipe_hash="2", resolution=64)
    describe(copies[2], factor="jitter")
    compare(copies, out=tmp_path / "out", draws=5)
    printed = capsys.readouterr().out
    assert "'jitter 0' have 2 different recipes" in printed
    assert "The runs differ in resolution: 32, 64" in printed
    assert "Not marked as finished" in printed and "run-0" in printed


def test_the_last_step_of_the_right_split_is_read(copies, tmp_path):
    """Predictions of an earlier step and of another split stand beside those compared."""
    expected = rows(compare(copies, out=tmp_path / "a", draws=5), "jitter 0.3 against jitter 0")
    wrong = {"idx": [0], "target": [0], "pred": [1], "p_true": 0.5, "p_pred": 0.5, "nll": 0.7}
    for path in copies:
        folder = RunFolder.open(path)
        folder.write("predictions", wrong, step=10, split="test")
        folder.write("predictions", wrong, step=5000, split="val")
    found = rows(compare(copies, out=tmp_path / "b", draws=5), "jitter 0.3 against jitter 0")
    np.testing.assert_array_equal(found["effect"], expected["effect"])


def test_classes_without_images_stay_empty(tmp_path):
    generator = np.random.default_rng(0)
    runs = runs_of(CELL, [CELL.chances(generator)] * 2, 3, generator)
    wide = ScoredRuns(runs.correct, runs.targets, runs.arms, 62)
    paths = write_runs(tmp_path / "runs", wide, ARMS[:2], generator)
    found = rows(compare(paths, out=tmp_path / "out", draws=5), "jitter 0.1 against jitter 0")
    assert np.isnan(found["effect"]).tolist() == [False] * 60 + [True] * 2
    assert found["n"].tolist()[-2:] == [0, 0]
