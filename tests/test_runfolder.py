"""The run folder under faults that are real: killed writers, truncated files, a full disk."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from firstlight.runfolder import CLASSES, MEASURE, TABLES, RunFolder, RunFolderError, replacing

VERSION_1 = Path(__file__).parent / "data" / "runfolder-v1"


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "firstlight", seed=3)


def test_a_new_folder_never_overwrites(tmp_path):
    paths = [RunFolder.create(tmp_path / "run").path.name for _ in range(3)]
    assert paths == ["run", "run-1", "run-2"]


def test_description_is_read_back(folder):
    folder.update(status="finished", strength=0.5)
    run = RunFolder.open(folder.path).run
    assert (run["seed"], run["status"], run["strength"], run["arm"]) == (3, "finished", 0.5, None)


def test_unknown_description_keys_are_refused(folder):
    with pytest.raises(TypeError, match=r"sede"):
        folder.update(sede=1)


def test_tables_are_read_in_the_order_of_steps(folder):
    for step in (100, 5, 1_000_000):
        folder.write("scalars", {"key": "a", "value": float(step)}, step=step, epoch=step // 100)
    table = folder.read("scalars")
    assert table.schema.types[:2] == [pa.int64(), pa.int32()]
    assert table["value"].to_pylist() == [5.0, 100.0, 1e6]
    assert table["epoch"].to_pylist() == [0, 1, 10_000]


def test_splits_share_a_step_and_keep_their_names(folder):
    for split in ("val", "test/cifar-10 c"):
        folder.write("confusions", {"target": [1], "pred": [2], "count": [3]}, step=7, split=split)
    assert sorted(folder.read("confusions")["split"].to_pylist()) == ["test/cifar-10 c", "val"]


def test_a_part_is_replaced_by_its_like(folder):
    for value in (1.0, 2.0):
        folder.write("sharpness", {"kind": "average", "value": value, "se": 0.1}, step=7)
    assert folder.read("sharpness")["value"].to_pylist() == [2.0]


def test_other_measures_have_one_schema(folder):
    folder.write("my_measure", {"value": [1.0, 2.0], "block": ["", "stem"]}, step=1)
    assert folder.read("my_measure").schema.equals(MEASURE)


def test_classes_and_nothing_yet(folder):
    folder.write("classes", {"class": range(2), "name": ["crane", "crane"]})
    assert folder.read("classes")["name"].to_pylist() == ["crane", "crane"]
    assert folder.read("predictions").num_rows == 0
    assert folder.read("predictions").schema.equals(TABLES["predictions"])


def test_unknown_columns_are_refused(folder):
    with pytest.raises(ValueError, match=r"no column .'acc'"):
        folder.write("per_class", {"acc": [1.0]}, step=0)
    assert not (folder.path / "per_class").exists()


@pytest.mark.parametrize("name", ["../per_class", "a/b", ""])
def test_tables_stay_inside_the_folder(folder, name):
    with pytest.raises(ValueError, match=r"letters, digits"):
        folder.write(name, {"value": 1.0}, step=0)


def test_resuming_forgets_what_came_after(folder):
    for step in (10, 20, 30):
        folder.write("scalars", {"key": "a", "value": 0.0}, step=step)
    assert len(folder.truncate(20)) == 1
    assert folder.read("scalars")["step"].to_pylist() == [10, 20]


def test_truncated_part_is_named(folder):
    part = folder.write("scalars", {"key": ["a"] * 100, "value": np.arange(100.0)}, step=10)
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(RunFolderError, match=r"000000010-all.parquet cannot be read"):
        folder.read("scalars")


def test_no_folder_and_newer_folder_are_refused(folder, tmp_path):
    with pytest.raises(RunFolderError, match=r"is no run folder"):
        RunFolder.open(tmp_path)
    (folder.path / "run.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RunFolderError, match=r"schema version 99.*update firstlight"):
        RunFolder.open(folder.path)
    (folder.path / "run.json").write_text('{"schema_ver')
    with pytest.raises(RunFolderError, match=r"not a run's description"):
        RunFolder.open(folder.path)


KILLED = """
import os, signal, sys
from pathlib import Path
from firstlight.runfolder import RunFolder, replacing
folder = RunFolder.open(sys.argv[1])
with replacing(folder.path / "scalars" / "000000010-all.parquet") as temporary:
    temporary.write_bytes(b"half of")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_nothing_that_is_read(folder):
    folder.write("scalars", {"key": "a", "value": 1.0}, step=5)
    run = subprocess.run([sys.executable, "-c", KILLED, str(folder.path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert folder.read("scalars")["step"].to_pylist() == [5]


FULL = """
import resource, signal, sys
import numpy as np
from firstlight.runfolder import RunFolder
folder = RunFolder.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # writes beyond it fail, as on a full disk
try:
    values = np.random.default_rng(0).random(5000)
    folder.write("scalars", {"key": ["a"] * 5000, "value": values}, step=10)
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_reported_and_leaves_nothing(folder):
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(folder.path)], capture_output=True, text=True, check=True
    )
    assert "000000010-all.parquet" in run.stdout
    assert "nothing was left behind" in run.stdout
    assert list((folder.path / "scalars").iterdir()) == []


def test_a_failed_block_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(RuntimeError, match=r"half-way"), replacing(file) as temporary:
        temporary.write_text("new")
        raise RuntimeError("half-way")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_version_1_stays_readable():
    folder = RunFolder.open(VERSION_1)
    assert folder.run["schema_version"] == 1
    assert folder.read("classes").schema.equals(CLASSES)
    for table, schema in TABLES.items():
        rows = folder.read(table)
        assert rows.schema.equals(schema)
        assert rows.num_rows == 2, table
    assert folder.read("fisher_trace")["value"].to_pylist() == [3.0, 1.0]
    assert folder.read("per_class")["ece"].to_pylist()[0] == 0.125
