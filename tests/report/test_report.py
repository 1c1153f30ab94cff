"""``firstlight report``: what its pages say of real, simulated and damaged runs."""

import json
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_cases import change_study, figures, words
from sklearn.metrics import accuracy_score, recall_score

from firstlight import cli
from firstlight.compare import compare
from firstlight.report import report
from firstlight.report.comparison import SO_FAR
from firstlight.runfolder import RunFolder, RunFolderError

pytestmark = pytest.mark.xdist_group("report")  # one worker makes the runs


def test_the_finding_is_the_evaluation(run, run_page):
    """scikit-learn's accuracy and recall on the table of predictions."""
    folder = RunFolder.open(run)
    table = folder.read_last("predictions", "test", ["target", "pred"])
    target, pred = (table[key].to_numpy() for key in ("target", "pred"))
    names = folder.read("classes")["name"].to_pylist()
    recall = recall_score(target, pred, average=None)
    worst = int(recall.argmin())
    right, of = ((pred == target) & (target == worst)).sum(), (target == worst).sum()
    said = words(run_page)
    assert f"{100 * accuracy_score(target, pred):.1f} % of {len(target)} test images are" in said
    assert f"{right} of {of} of the worst class, {names[worst]}" in said
    assert f"mean over classes {100 * recall.mean():.1f} %" in said
    wrong = (pred != target).sum()
    assert f"{wrong} images are classified wrongly" in said


def test_a_run_has_all_its_figures_also_as_files(run_page):
    names, folder = figures(run_page), run_page.with_suffix("")
    assert set(names) == {"per_class-test", "confusions-test", "before_after-prior_corrected-test",
                          "training_curves", "early_training"}  # fmt: skip
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ET.parse(folder / f"{name}.svg")
    said = words(run_page)
    assert "Prior correction, on test data: the mean over classes goes from" in said
    assert "interval 4" in said and "layer3" in said  # the thaws, and why
    assert "model_name: resnet20_cifar" in said and "versions" in said and "torch" in said
    assert run_page.read_text().count("data:image/png;base64,") >= 4
    assert not list(run_page.parent.rglob("*.tmp"))


def test_before_and_after_are_those_of_the_prior(run, run_page):
    """The corrected evaluation is PerClassMonitor's own, which saw the corrected logits."""
    said = words(run_page)
    rows = RunFolder.open(run).read("per_class").to_pylist()
    means = {}
    for split in ("test", "test/prior_corrected", "test/prior_uncorrected"):
        of_split = [row for row in rows if row["split"] == split]
        means[split] = 100 * np.mean([row["correct"] / row["n"] for row in of_split])
    assert means["test"] == pytest.approx(means["test/prior_corrected"])
    before, after = means["test/prior_uncorrected"], means["test"]
    assert f"the mean over classes goes from {before:.1f} to {after:.1f} %" in said


def test_without_a_new_head_the_epochs_are_compared(copied):
    for part in (copied / "per_class").glob("*prior*"):
        part.unlink()
    said = words(report([copied]))
    assert "the first and the last evaluation of the training are compared" in said
    assert "Training, on val: the mean over classes goes from" in said


def test_a_comparison_has_all_its_figures(comparison, comparison_page):
    names, said = figures(comparison_page), words(comparison_page)
    line, arm = "line_over_jitter_0_to_0.3", "jitter_0.3_against_jitter_0"
    assert set(names) == {line, f"{line}-evidence", f"{line}-by_accuracy", "accuracy_by_strength",
                          "worst_by_strength", "best_strengths", f"{arm}-confusions",
                          f"{arm}-receiving", arm, "jitter_0.1_against_jitter_0"}  # fmt: skip
    assert {file.stem for file in comparison_page.with_suffix("").glob("*.svg")} == set(names)
    table = pq.ParquetFile(comparison / "class_effects.parquet").read().to_pylist()
    of_line = [row for row in table if row["comparison"].startswith("line")]
    effects = [row["effect"] for row in of_line]
    sure = [row["effect"] for row in of_line if row["q"] < 0.05 and abs(row["effect"]) >= 0.02]
    lose, gain = sum(e < 0 for e in sure), sum(e > 0 for e in sure)
    assert lose >= 3 and gain >= 3
    assert f"{lose} of 30 classes lose and {gain} gain more than seeds explain" in said
    assert "on this test set: would other seeds say the same of these images?" in said
    assert f"at worst class {int(np.argmin(effects))} by {100 * min(effects):+.1f}" in said


def test_a_study_lists_its_runs_and_is_compared(study_page):
    said, root = words(study_page), study_page.parent
    assert (root / SO_FAR / "summary.json").exists() and study_page.name == "report.html"
    assert "1 of 10 runs are not finished, and left out: r9" in said
    assert "r9 failed, and is not in the comparison" in said
    assert "r9 ended with -9" in said and "<b>by the kernel</b>" in said
    assert "of 30 classes lose" in said
    assert said.count("finished") >= 9
    assert "jitter 0 against jitter 0.3" in said  # the study's first arm is compared with


@pytest.mark.slow
def test_a_study_s_own_comparison_is_taken(study, comparison):
    shutil.copytree(comparison, study / "mine")
    change_study(study, comparison="mine")
    report([study])
    assert not (study / SO_FAR).exists()


def test_what_finished_is_compared_as_the_study_says(study, capsys):
    change_study(study, compare={"question": "new_images", "least": 0.4})
    assert "on new images of the classes" in words(report([study]))
    report([study])
    assert [p.name for p in study.glob("class_effects*")] == [SO_FAR]


def test_a_study_that_cannot_be_compared_yet_says_why(study):
    described = json.loads((study / "study.json").read_text())
    for number, one in enumerate(described["runs"]):
        one["status"] = "finished" if number == 0 else "waiting"
    change_study(study, status="running", runs=described["runs"])
    said = words(report([study]))
    assert "This study has not ended (its status is running)" in said
    assert "the arms are not compared: a comparison needs two arms or more, got 1 run(s)" in said


def test_a_folder_that_holds_one_run_is_that_run(copied):
    """As that of a logger's version is."""
    page = report([copied.parent])
    assert page == copied.parent / "report.html" and "confusions-test" in figures(page)


@pytest.mark.slow
def test_several_runs_are_compared_first(simulated, monkeypatch, capsys, tmp_path):
    paths = [str(shutil.copytree(path, tmp_path / path.name)) for path in simulated[:4:3]]
    monkeypatch.setattr(sys, "argv", ["firstlight", "report", *paths])
    cli.main()
    (page,) = tmp_path.rglob("report.html")
    assert "jitter 0.1 against jitter 0" in words(page)
    assert "The page:" in capsys.readouterr().out


# ------------------------------------------------------------------ what is missing or damaged


def test_what_was_not_recorded_is_said(simulated, tmp_path):
    """Predictions alone, as some other program may write them."""
    said = words(report([simulated[0]], tmp_path / "page.html"))
    assert "This run recorded no evaluation of its classes" in said
    assert "this run recorded no Fisher trace: add FisherTraceMonitor" in said
    assert "this run recorded no sharpness: add SharpnessMonitor" in said
    assert "this run recorded neither loss nor accuracy over training" in said
    assert "no config.yaml is in the run folder" in said
    assert "no event was recorded" in said


def test_a_run_still_going_says_so(tmp_path):
    folder = RunFolder.create(tmp_path / "going", status="running", run_id="x")
    said = words(report([folder.path]))
    assert "This run has not ended (its status is running)" in said
    counts = {"class": range(3), "n": [4, 4, 4], "correct": [4, 2, 1], "pred_count": [6, 3, 3]}
    folder.write("per_class", counts, step=7, split="val")
    said = words(report([folder.path]))
    assert "58.3 % of 12 validation images are right, 1 of 4 of the worst class, 2" in said
    assert "nothing is shown before and after: one evaluation of one set was recorded" in said
    assert "no predictions of val were recorded" in said
    assert "no example images are in the run folder" in said


@pytest.mark.parametrize("table", ["predictions", "fisher_trace", "per_class", "events"])
def test_a_truncated_part_is_named_and_the_rest_shown(copied, table):
    ends = "*-test.parquet" if table == "predictions" else "*.parquet"
    part = sorted((copied / table).glob(ends))[-1]
    part.write_bytes(part.read_bytes()[:-20])
    said = words(report([copied]))
    assert "Some files of this run cannot be read; they are named at the end" in said
    assert f"{table}/{part.name} cannot be read" in said
    left = {"predictions": {"training_curves", "early_training"}, "per_class": set(),
            "fisher_trace": {"confusions-test"}, "events": {"confusions-test"}}  # fmt: skip
    assert left[table] <= set(figures(copied / "report.html"))
    assert "model_name: resnet20_cifar" in said


def test_without_a_readable_table_of_classes_they_have_numbers(copied):
    part = copied / "classes.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    page = report([copied])
    assert "classes.parquet cannot be read" in words(page)
    assert "confusions-test" in figures(page)


def test_a_page_without_a_suffix_is_a_folder(copied, tmp_path):
    page = report([copied], tmp_path / "page")
    assert page == tmp_path / "page" / "report.html"
    assert list((tmp_path / "page" / "report").glob("*.png"))


def test_nan_predictions_are_no_obstacle(copied):
    for part in (copied / "predictions").glob("*-test.parquet"):
        table = pq.ParquetFile(part).read()
        bad = {name: np.full(table.num_rows, np.nan, np.float32) for name in ("p_true", "p_pred")}
        for name, values in bad.items():
            at = table.column_names.index(name)
            table = table.set_column(at, table.schema.field(name), [values])
        pq.write_table(table, part)
    page = report([copied])
    assert "confusions-test" in figures(page) and "nan" not in words(page).lower().split()


def test_a_diverged_run_says_where(tmp_path):
    folder = RunFolder.create(tmp_path / "run", status="failed")
    for step, loss in ((10, 2.0), (20, 1.0), (30, np.nan)):
        columns = {"key": ["train/loss", "val/loss", "val/top1"], "value": [loss, loss, 0.1]}
        folder.write("scalars", columns, step=step, split="train")
    said = words(report([folder.path]))
    assert "This run did not end by itself (its status is failed)" in said
    assert "the validation loss is no number at the end" in said


def test_refuses_what_is_no_run(simulated, comparison, tmp_path):
    with pytest.raises(RunFolderError, match=r"no run, study or comp.*There are 9 runs below"):
        report([simulated[0].parent])
    with pytest.raises(RunFolderError, match="there is no such folder"):
        report([tmp_path / "nowhere"])
    copy = shutil.copytree(comparison, tmp_path / "copy")
    file = copy / "class_effects.parquet"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RunFolderError, match=r"class_effects\.parquet cannot be read"):
        report([copy])
    (copy / "summary.json").write_text("{")
    with pytest.raises(RunFolderError, match="not a comparison's summary"):
        report([copy])
    (copy / "study.json").write_text('{"runs": 3}')
    with pytest.raises(RunFolderError, match="not a study's description"):
        report([copy])
    (copy / "study.json").write_text('{"schema_version": 99, "runs": []}')
    with pytest.raises(RunFolderError, match="schema version 99"):
        report([copy])
    with pytest.raises(RunFolderError, match="is no run folder"):
        report([simulated[0], tmp_path])
    assert not list(tmp_path.rglob("report.html"))


def test_the_command_line_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["firstlight", "report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"firstlight report: .* is no run, study or comp"):
        cli.main()


def test_runs_of_the_first_schema_are_read(tmp_path):
    copy = shutil.copytree(Path(__file__).parents[1] / "data" / "runfolder-v1", tmp_path / "old")
    assert report([copy]).exists()


def test_one_run_an_arm_says_that_it_is_little(simulated, tmp_path):
    out = compare([simulated[0], simulated[6]], out=tmp_path / "out", draws=50)
    said = words(report([out]))
    assert "1 run(s) in an arm: no q-values" in said
    assert "no effects against their p-values, since too few runs an arm give no q-values" in said
    assert "leave the band that chance alone gives" in said
