"""The demo and its figures, in small."""

import sys

import pytest

from firstlight import cli
from firstlight.figures import per_class_figure
from firstlight.runfolder import RunFolder, RunFolderError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["firstlight", "demo", "--epochs=3", "--output=run"])
        cli.main()
    return folder


def test_the_demo_leaves_a_run_folder_and_a_figure(demo):
    (description,) = demo.rglob("firstlight/run.json")
    folder = RunFolder.open(description.parent)
    assert folder.run["status"] == "finished"
    assert folder.run["dataset"] == "firstlight.datamodules.digits.DigitsDataModule"
    table = folder.read("per_class").to_pydict()
    assert sum(table["n"]) == 359
    assert folder.read("classes")["full_count"].to_pylist()[0] == 139
    assert (folder.path / "figures/per_class-test.png").read_bytes()[:4] == b"\x89PNG"
    assert "accuracy of the class" in (folder.path / "figures/per_class-test.svg").read_text()


def test_the_demo_ends_with_every_class_before_and_after_prior_correction(demo):
    (description,) = demo.rglob("prior_correction/run.json")
    events = RunFolder.open(description.parent).read("events").to_pylist()
    assert [event["kind"] for event in events] == ["prior"]
    assert "becomes" in events[0]["reason"]


def test_the_demo_measures_its_first_steps_and_draws_both_curves(demo):
    (description,) = demo.rglob("firstlight/run.json")
    folder = RunFolder.open(description.parent)
    for table in ("fisher_trace", "sharpness"):
        totals = [row for row in folder.read(table).to_pylist() if not row["block"]]
        assert [row["step"] for row in totals] == [0, 5, 10, 15, 20]
        assert all(row["value"] > 0 and row["se"] > 0 and row["n"] == 128 for row in totals)
    drawn = (folder.path / "figures/early_training.svg").read_text()
    assert "<!-- Fisher trace (nats² / weight²), 128 examples -->" in drawn
    assert "<!-- average sharpness (nats), 128 examples -->" in drawn


def test_the_figure_says_what_the_tables_say(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write(
        "classes",
        {"class": range(3), "name": ["a", "b", "c"], "full_count": [500, 50, 5],
         "shot": ["many", "medium", "few"]},
    )  # fmt: skip
    counts = {"class": range(3), "n": [10, 10, 20], "correct": [10, 5, 2], "pred_count": [10] * 3}
    folder.write("per_class", counts, step=1, split="test")
    figure = per_class_figure(folder.path)
    svg = figure.with_suffix(".svg").read_text()
    assert "<!-- 42 % of the test images are right:" in svg  # 17 of 40
    assert "100 % in the classes with many training images, 10 % in those with few" in svg


def test_a_run_without_that_evaluation_is_refused(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"no evaluation of 'val'"):
        per_class_figure(folder.path, "val")
