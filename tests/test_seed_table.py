"""Tables over seeds: the numbers, what is refused, and where everything came from."""

import json
import math

import numpy as np
import pytest

from firstlight import cli
from firstlight.run_table import result_of_run
from firstlight.runfolder import RunFolder, RunFolderError
from firstlight.seed_table import (
    Result,
    show_seed_table,
    summarise_seeds,
    write_seed_table,
)


def result(method="CE", seed=0, data="C10", split="test", selection="last", **scores):
    return Result(method, data, seed, scores or {"macro": 0.5}, split, selection, {"commit": "ab"})


def test_means_deviations_and_paired_gains():
    """Oracle: numpy, on scores whose seeds differ far more than the methods do."""
    a, b = np.array([0.30, 0.50, 0.71]), np.array([0.36, 0.55, 0.77])
    results = [result("CE", s, macro=x) for s, x in enumerate(a)]
    results += [result("LA", s, macro=x) for s, x in reversed(list(enumerate(b)))]
    plain, better = summarise_seeds(results, against="CE")
    assert plain.mean["macro"] == pytest.approx(a.mean(), rel=1e-12)
    assert plain.sd["macro"] == pytest.approx(np.std(a, ddof=1), rel=1e-12)
    assert plain.gain == {}
    mean, sd = better.gain["macro"]
    assert mean == pytest.approx((b - a).mean(), rel=1e-12)
    assert sd == pytest.approx(np.std(b - a, ddof=1), rel=1e-9)
    assert sd < 0.01 < better.sd["macro"]
    _, lines = show_seed_table([plain, better], "t")
    assert lines[2:] == [
        "| C10 | CE | 3 | 50.3 ± 20.5 |  |",
        "| C10 | LA | 3 | 56.0 ± 20.5 | +5.7 ± 0.6 |",
    ]


def test_a_single_seed_has_no_deviation_and_selection_on_the_test_set_is_marked():
    rows = summarise_seeds(
        [result(selection="test", macro=0.7)]
        + [result("LA", seed, macro=0.7, ece=math.nan) for seed in (0, 1)]
    )
    assert math.isnan(rows[0].sd["macro"])
    assert math.isnan(rows[1].sd["ece"])
    text = "\n".join(show_seed_table(rows, "t", ["macro", "ece"])[1])
    assert "| CE † | 1 | 70.0 | - |" in text
    assert "†: selected on the data it is reported on" in text
    assert "A single seed has no deviation" in text


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no results"),
        ([result(), result()], "'CE' on 'C10' has seed 0 twice"),
        ([result(), result("LA", split="val")], r"'C10' is evaluated on 'test' and on 'val'"),
        ([result(), result(seed=1, selection="test")], "'last', 'test'.* are mixed"),
        ([result(), result(seed=1, ece=0.1)], "not every seed has 'ece'"),
        ([result(macro=0.1), result(seed=1, macro=math.nan)], "macro is NaN for some seeds only"),
        ([result(), result("LA", seed=5)], "'CE' has no seed 5, 'LA' has"),
        ([result("LA")], r"no method 'CE'; there are \['LA'\]"),
        ([result(selection="best")], "selection is one of .* not 'best'"),
    ],
)
def test_what_does_not_belong_in_one_table_is_refused(results, message):
    with pytest.raises(ValueError, match=message):
        summarise_seeds(results, against="CE")


def evaluated(path, seed, correct, protocol="honest", **run):
    """A run folder as an evaluation of three classes leaves it."""
    folder = RunFolder.create(
        path, seed=seed, recipe_hash="c0ffee00ff", commit="1234", weights="raw",
        dataset="firstlight.datamodules.cifar.CIFAR10DataModule", **run,
    )  # fmt: skip
    folder.write(
        "classes",
        {"class": range(3), "name": list("abc"), "full_count": [500, 50, 5],
         "shot": ["many", "medium", "few"]},
    )  # fmt: skip
    counts = {"class": range(3), "n": [10] * 3, "pred_count": [10] * 3}
    folder.write("per_class", counts | {"correct": [0] * 3}, step=1, epoch=0, split="test")
    folder.write("per_class", counts | {"correct": correct}, step=9, epoch=3, split="test")
    (folder.path / "config.yaml").write_text(
        "model: {init_args: {model_name: net}}\n"
        f"data: {{init_args: {{protocol: {protocol}, imbalance_factor: 100}}}}\n"
    )
    return folder.path


def test_a_run_folder_gives_its_last_evaluation_and_where_it_is_from(tmp_path):
    path = evaluated(tmp_path / "run", 3, [9, 5, 1])
    found = result_of_run(path.parent, selection="last")
    assert (found.method, found.data, found.seed) == ("c0ffee00", "CIFAR10 100", 3)
    wanted = {"micro": 0.5, "macro": 0.5, "min": 0.1, "many": 0.9, "medium": 0.5, "few": 0.1}
    assert found.scores == pytest.approx(wanted)
    assert found.selection == "last"
    assert found.provenance["commit"] == "1234"
    assert found.provenance["epoch"] == 3
    legacy = evaluated(tmp_path / "legacy", 3, [9, 5, 1], "legacy", arm="plain")
    assert result_of_run(legacy, selection="last").selection == "test"
    assert result_of_run(legacy).method == "plain"
    with pytest.raises(RunFolderError, match=r"has 2 below it \(legacy, run\): name one"):
        result_of_run(tmp_path)
    with pytest.raises(RunFolderError, match="no per_class of 'val'; there are: test"):
        result_of_run(path, split="val")


def test_the_command_writes_the_table_with_its_provenance(tmp_path, monkeypatch, capsys):
    runs = [
        f"{method}={evaluated(tmp_path / f'{method}{seed}', seed, [9, 5, few + seed])}"
        for method, few in (("CE", 0), ("LA", 4))
        for seed in range(3)
    ]
    monkeypatch.chdir(tmp_path)
    cli.run("table", [*runs, "--against=CE", "--selection=last", "--output=out.md"])
    text = (tmp_path / "out.md").read_text()
    assert "| CIFAR10 100 | CE | 3 | 50.0 ± 3.3 |" in text
    assert "| 50.0 ± 10.0 | +13.3 ± 0.0 |" in text  # few, and the gain in the mean
    assert "commit 1234" in text
    assert "selection last" in text
    content = json.loads((tmp_path / "out.json").read_text())
    assert len(content["results"]) == 6
    assert "LA" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_leaves_nothing_half(tmp_path):
    target = tmp_path / "dir"
    target.mkdir()
    with pytest.raises(OSError, match="could not write"):
        write_seed_table(target, [result()], "t")  # a folder is in the way of the file
    assert list(tmp_path.iterdir()) == [target]
