from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from firstlight.datamodules.manifest import read_manifest


@pytest.fixture
def write(tmp_path):
    """Write a manifest of (path, label, split) rows, and the images it lists."""

    def build(rows, kind="csv", header=("path", "label", "split"), images=True):
        if images:
            for row in rows:
                Image.new("RGB", (4, 4)).save(tmp_path / row[0])
        if kind == "csv":
            lines = [",".join(map(str, row)) for row in [header[: len(rows[0])], *rows]]
            (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
            return tmp_path / "m.csv"
        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=False))
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
        return tmp_path / "m.parquet"

    return build


NAMED = [("a.png", "cat", "train"), ("b.png", "ant", "training"), ("c.png", "cat", "validation")]
NUMBERED = [("a.png", 1, "train"), ("b.png", 0, "train"), ("c.png", 1, "test")]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_names_are_numbered_in_sorted_order(write, tmp_path, kind):
    found = read_manifest(write(NAMED, kind), tmp_path)
    assert list(found) == ["train", "val"]
    assert found["train"].classes == ["ant", "cat"]
    assert found["train"].targets == [1, 0]
    assert found["val"].paths == [str(tmp_path / "c.png")]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_are_class_numbers(write, tmp_path, kind):
    found = read_manifest(write(NUMBERED, kind), tmp_path)
    assert found["train"].targets == [1, 0]
    assert found["test"].targets == [1]
    assert found["train"].classes == ["0", "1"]
    named = read_manifest(write(NUMBERED, kind), tmp_path, ["ant", "cat"])
    assert named["train"].classes == ["ant", "cat"]


def test_labels_with_leading_zeros_are_names(write, tmp_path):
    found = read_manifest(write([("a.png", "007"), ("b.png", "07")]), tmp_path)
    assert list(found) == ["all"]  # no splits
    assert found["all"].classes == ["007", "07"]


def test_absolute_paths_stay(write, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    path = write([(tmp_path / "x.png", "a")], images=False)
    assert read_manifest(path, Path("/elsewhere"))["all"].paths == [str(tmp_path / "x.png")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png", -1, "train"), ("b.png", 0, "train")], "row 1: label -1 is outside"),
        ([("a.png", 0, "train"), ("b.png", 2, "train")], "row 2: label 2 .* no row has label 1"),
        ([("a.png", "x", "train"), ("b.png", "x", "tset")], "row 2: unknown split 'tset'"),
        (
            [("a.png", "x", "train"), ("b.png", "y", "test")],
            "row 2: class 'y' .* no training image",
        ),
        ([("a.png", "", "train")], "row 1: label is empty"),
        ([("a.png", 0, "train"), ("b.png", 10**12, "train")], "row 2: .* no row has label 1"),
        ([("a.png", "x", "train"), ("a.png", "x", "test")], r"rows 1 and 2 both list .*a\.png"),
        ([("a.png", "x", "train"), ("./a.png", "x", "train")], r"rows 1 and 2 both list .*a\.png"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_bad_rows_are_named(write, tmp_path, rows, message, kind):
    with pytest.raises(ValueError, match=message):
        read_manifest(write(rows, kind), tmp_path)


def test_labels_beyond_the_names_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match=r"row 1: label 1 is outside 0\.\.0"):
        read_manifest(write(NUMBERED), tmp_path, ["only"])
    with pytest.raises(ValueError, match="row 1: label 'cat' is not among class_names"):
        read_manifest(write(NAMED), tmp_path, ["ant"])
    with pytest.raises(ValueError, match=r"class 2 \('bee'\) has no training image"):
        read_manifest(write(NUMBERED), tmp_path, ["ant", "cat", "bee"])


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"row 1: no file .*a\.png"):
        read_manifest(write(NAMED, images=False), tmp_path)
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        read_manifest(tmp_path / "none.csv", tmp_path)


def test_strange_tables_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="no column 'label'"):
        read_manifest(write([("a.png", "x")], header=("path", "class")), tmp_path)
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        read_manifest(tmp_path / "m.json", tmp_path)
    (tmp_path / "empty.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match="lists no images"):
        read_manifest(tmp_path / "empty.csv", tmp_path)
    (tmp_path / "latin.csv").write_bytes("path,label\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv cannot be read as \.csv: .*UTF8"):
        read_manifest(tmp_path / "latin.csv", tmp_path)
    (tmp_path / "m.parquet").write_text("path,label")
    with pytest.raises(ValueError, match=r"m\.parquet cannot be read as \.parquet"):
        read_manifest(tmp_path / "m.parquet", tmp_path)


def test_a_label_that_is_not_a_number_is_empty(write, tmp_path):
    rows = [("a.png", 0.0, "train"), ("b.png", float("nan"), "train")]
    with pytest.raises(ValueError, match="row 2: label is empty"):
        read_manifest(write(rows, "parquet"), tmp_path)
