"""Lists of images: a CSV or Parquet table of path, label and split."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from firstlight.datamodules.image_files import LabelledFiles
from firstlight.datamodules.lists import first_repeat

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What the names of splits mean, in lower case; those of folders and of a manifest alike."""

UNDIVIDED = "all"
"""Key of the files of data without splits."""


def read_manifest(
    path: Path, root: Path, class_names: list[str] | None = None
) -> dict[str, LabelledFiles]:
    """Read a manifest with the columns ``path``, ``label`` and, if there are splits, ``split``.

    Labels that are all integers are class numbers; others are names, numbered in sorted order, and
    a label such as ``007`` is a name. Rows are counted from 1, a header line left out.

    Args:
        path: the ``.csv`` or ``.parquet`` file.
        root: what relative paths in it are relative to.
        class_names: names by class number; None takes them from the labels.

    Returns:
        The files by split: ``train``, ``val``, ``test``, or all under ``UNDIVIDED`` without a
        column ``split``.

    Raises:
        FileNotFoundError: if the manifest or an image in it does not exist.
        ValueError: for what is no such table; a missing column, an empty or unknown value, a class
            number out of range or left out, a class without a training image, or a file that is
            listed twice; names row and value.
    """
    columns = _read_columns(path)
    labels = columns["label"]
    splits = _splits(columns.get("split"), len(labels), path)
    targets, classes = _number(labels, path, class_names)
    _check_trained(targets, splits, classes, path)
    paths = [str(root / p) for p in columns["path"]]
    _check_once(paths, path)
    missing = next((row for row, p in enumerate(paths) if not Path(p).is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"{path}, row {missing + 1}: no file {paths[missing]}")
    result = {}
    for split in dict.fromkeys(splits):
        rows = [row for row, s in enumerate(splits) if s == split]
        result[split] = LabelledFiles(
            [paths[row] for row in rows], [targets[row] for row in rows], classes
        )
    return result


def _read_columns(path: Path) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise FileNotFoundError(f"no such manifest: {path}")
    if path.suffix.lower() == ".csv":
        # everything as text: a class named 007 must not become the number 7
        text = dict.fromkeys(("path", "label", "split"), pa.string())
        convert = pyarrow.csv.ConvertOptions(column_types=text, null_values=[""])
        read = partial(pyarrow.csv.read_csv, convert_options=convert)
    elif path.suffix.lower() == ".parquet":
        read = pyarrow.parquet.read_table
    else:
        raise ValueError(f"{path}: a manifest is a .csv or .parquet file")
    try:
        table = read(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error
    for name in ("path", "label"):
        if name not in table.column_names:
            raise ValueError(f"{path} has no column {name!r}, only {table.column_names}")
    names = [n for n in ("path", "label", "split") if n in table.column_names]
    columns: dict[str, list[Any]] = {n: table.column(n).to_pylist() for n in names}
    if not columns["path"]:
        raise ValueError(f"{path} lists no images")
    for name, values in columns.items():
        for row, value in enumerate(values):
            if value is None or value == "" or value != value:  # NaN
                raise ValueError(f"{path}, row {row + 1}: {name} is empty")
    return {name: [str(value) for value in values] for name, values in columns.items()}


def _splits(values: list[str] | None, count: int, path: Path) -> list[str]:
    if values is None:
        return [UNDIVIDED] * count
    for row, value in enumerate(values):
        if value.lower() not in SPLITS:
            raise ValueError(
                f"{path}, row {row + 1}: unknown split {value!r}, choose train, val or test"
            )
    return [SPLITS[value.lower()] for value in values]


def _number(
    labels: list[str], path: Path, class_names: list[str] | None
) -> tuple[list[int], list[str]]:
    if all(re.fullmatch(r"-?(0|[1-9]\d*)", label) for label in labels):
        targets = [int(label) for label in labels]
        count = len(class_names) if class_names is not None else max(targets) + 1
        for row, target in enumerate(targets):
            if not 0 <= target < count:
                raise ValueError(
                    f"{path}, row {row + 1}: label {target} is outside 0..{max(count - 1, 0)}"
                )
        present = sorted(set(targets))
        gap = next((number for number, target in enumerate(present) if number != target), None)
        if class_names is None and gap is not None:
            row = targets.index(count - 1)
            raise ValueError(
                f"{path}, row {row + 1}: label {count - 1} implies {count} classes, but no row has "
                f"label {gap}: number the classes from 0 without gaps, or use names"
            )
        return targets, class_names or [str(c) for c in range(count)]
    classes = class_names if class_names is not None else sorted(set(labels))
    numbers = {name: number for number, name in enumerate(classes)}
    for row, label in enumerate(labels):
        if label not in numbers:
            raise ValueError(f"{path}, row {row + 1}: label {label!r} is not among class_names")
    return [numbers[label] for label in labels], list(classes)


def _check_once(paths: list[str], manifest: Path) -> None:
    """Refuse a file in two rows: the cuts, and what is measured, take them for two images."""
    if len(set(paths)) == len(paths):
        return
    repeated = first_repeat(paths)
    rows = [row for row, path in enumerate(paths, 1) if path == repeated]
    raise ValueError(
        f"{manifest}, rows {rows[0]} and {rows[1]} both list {repeated}: one image, one row (to "
        "draw rare classes more often use sampling)"
    )


def _check_trained(targets: list[int], splits: list[str], classes: list[str], path: Path) -> None:
    trained = {t for t, s in zip(targets, splits, strict=True) if s in ("train", UNDIVIDED)}
    for row, target in enumerate(targets):
        if target not in trained:
            raise ValueError(
                f"{path}, row {row + 1}: class {classes[target]!r} occurs in {splits[row]} but has "
                "no training image"
            )
    if len(trained) < len(classes):
        absent = min(set(range(len(classes))) - trained)
        raise ValueError(f"{path}: class {absent} ({classes[absent]!r}) has no training image")
