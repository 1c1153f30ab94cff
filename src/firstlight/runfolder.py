"""The one schema of what a run writes and others read.

A run folder holds ``run.json``, ``config.yaml``, the table ``classes.parquet``, tables that grow
with the run as folders of Parquet parts ``<table>/<step:09d>-<split or all>.parquet``, and
``examples/*.png``. Every file is written to a temporary name in its own folder and renamed, so
that a reader never sees half of one, and a killed writer leaves at most a file that no reader
looks at. Nothing here knows about trainers.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1

_STEP = [("step", pa.int64()), ("epoch", pa.int32())]


def _table(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([*_STEP, *columns.items()])


_INT, _CLASS, _F64, _F32, _STR = pa.int64(), pa.int32(), pa.float64(), pa.float32(), pa.string()

MEASURE = _table(
    kind=_STR, block=_STR, value=_F64, se=_F64, per_parameter=_F64, n=_CLASS, seconds=_F32
)
"""Schema of every table that `TABLES` does not name: one measured quantity each."""

CLASSES = pa.schema(
    {"class": _CLASS, "name": _STR, "train_count": _INT, "full_count": _INT, "shot": _STR}
)

TABLES: dict[str, pa.Schema] = {
    "scalars": _table(key=_STR, value=_F64),
    "events": _table(kind=_STR, block=_STR, reason=_STR, trainable=_INT),
    "per_class": _table(
        split=_STR,
        **{"class": _CLASS},
        n=_INT,
        correct=_INT,
        pred_count=_INT,
        confidence=_F64,
        ece=_F64,
        nll=_F64,
        brier=_F64,
    ),
    "predictions": _table(
        split=_STR,
        idx=_INT,
        target=_CLASS,
        pred=_CLASS,
        p_true=_F32,
        p_pred=_F32,
        nll=_F32,
        brier=_F32,
        rank_true=_CLASS,
        path=_STR,
    ),
    "confusions": _table(split=_STR, target=_CLASS, pred=_CLASS, count=_INT),
    "shifts": _table(
        set=_STR,
        section=_STR,
        n=_INT,
        top1=_F64,
        macro=_F64,
        worst_class=_CLASS,
        worst=_F64,
        change=_F64,
    ),
    "shift_classes": _table(set=_STR, section=_STR, **{"class": _CLASS}, n=_INT, correct=_INT),
}

RUN_KEYS = (
    "run_id",
    "status",
    "seed",
    "arm",
    "factor",
    "strength",
    "recipe_hash",
    "dataset",
    "split",
    "targets_sha256",
    "classes_sha256",
    "eval_transform",
    "resolution",
    "weights",
    "versions",
    "commit",
)
"""Keys of ``run.json`` beside ``schema_version``; None where unknown."""


class RunFolderError(ValueError):
    """A run folder that is missing, damaged, or written by a newer version."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it there if, and only if, the block succeeds.

    Raises:
        OSError: as the block or the rename raised it, with a sentence on what was left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # processes of two machines that share the folder may have one number
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        message = f"could not write {path} ({error.strerror or error}); nothing was left behind"
        raise OSError(error.errno, f"{message}. Free space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def new_folder(path: str | Path) -> Path:
    """Make a folder that did not exist, at ``path`` or the first free ``path-1``, ``path-2``..."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 0
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def fingerprint(values: object) -> str:
    """sha256 of a value's JSON, to tell whether two runs saw the same thing."""
    return sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


class RunFolder:
    """One run's folder; `create` a new one, `open` an old one.

    Attributes:
        path: the folder.
        run: contents of ``run.json``.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.run = run

    @classmethod
    def create(cls, path: str | Path, **run: Any) -> "RunFolder":
        """Make a folder that did not exist, at ``path`` or the first free ``path-1``, ``path-2``...

        Args:
            path: where; parents are made.
            run: values for `RUN_KEYS`.

        Raises:
            TypeError: on a key that is not in `RUN_KEYS`.
        """
        folder = cls(
            new_folder(path), {"schema_version": SCHEMA_VERSION, **dict.fromkeys(RUN_KEYS)}
        )
        folder.update(**run)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open a folder that a run made.

        Raises:
            RunFolderError: where there is no readable ``run.json``, or a newer version's.
        """
        file = Path(path) / "run.json"
        try:
            run = json.loads(file.read_text())
            version = run["schema_version"]
        except FileNotFoundError:
            raise RunFolderError(f"{path} is no run folder: {file} does not exist") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunFolderError(f"{file} is not a run's description ({error!r})") from error
        if version > SCHEMA_VERSION:
            raise RunFolderError(
                f"{file} has schema version {version}, this firstlight reads up to "
                f"{SCHEMA_VERSION}: update firstlight"
            )
        return cls(Path(path), run)

    def update(self, **run: Any) -> None:
        """Change keys of ``run.json``; see `RUN_KEYS`."""
        unknown = set(run) - set(RUN_KEYS)
        if unknown:
            raise TypeError(f"unknown keys for run.json: {sorted(unknown)}; known: {RUN_KEYS}")
        self.run.update(run)
        with replacing(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(self.run, indent=1) + "\n")

    def write(
        self,
        table: str,
        columns: Mapping[str, Any],
        *,
        step: int = 0,
        epoch: int = 0,
        split: str | None = None,
    ) -> Path:
        """Write one part of a table, replacing a part of the same step and split.

        Args:
            table: a key of `TABLES`, ``"classes"``, or any other name (schema `MEASURE`).
            columns: arrays or scalars (repeated) by column name; missing ones become null.
            step: optimiser updates so far, in every row; ignored for ``classes``.
            epoch: likewise.
            split: part of the file's name, and a column where the schema has one.

        Returns:
            The file written.

        Raises:
            ValueError: on a column that the schema does not have.
            OSError: where the file could not be written; none is left then.
        """
        if table == "classes":
            schema, file = CLASSES, self.path / "classes.parquet"
            fixed: dict[str, Any] = {}
        else:
            if not re.fullmatch(r"\w+", table):
                raise ValueError(f"a table's name has letters, digits and '_' only, not {table!r}")
            schema = TABLES.get(table, MEASURE)
            file = self.path / table / f"{step:09d}-{_as_name(split or 'all')}.parquet"
            fixed = {"step": step, "epoch": epoch}
            if "split" in schema.names:
                fixed["split"] = split
        unknown = set(columns) - set(schema.names)
        if unknown:
            raise ValueError(f"table {table!r} has no column {sorted(unknown)}: {schema.names}")
        with replacing(file) as temporary:
            pq.write_table(_as_table({**columns, **fixed}, schema), temporary, compression="zstd")
        return file

    def read(self, table: str) -> pa.Table:
        """Read all parts of a table, in the order of steps; empty where nothing was written.

        Raises:
            RunFolderError: naming the part that cannot be read.
        """
        schema = CLASSES if table == "classes" else TABLES.get(table, MEASURE)
        file = self.path / f"{table}.parquet"
        files = [file] if file.exists() else sorted((self.path / table).glob("[0-9]*.parquet"))
        return pa.concat_tables([schema.empty_table(), *(_read(f, schema) for f in files)])

    def splits(self, table: str) -> list[str]:
        """Splits that a table has parts of, as they stand in the names of files."""
        files = (self.path / table).glob("[0-9]*.parquet")
        return sorted({file.stem.partition("-")[2] for file in files})

    def has(self, table: str, split: str) -> bool:
        """Whether a table has a part of a split."""
        return _as_name(split) in self.splits(table)

    def read_last(self, table: str, split: str, columns: Sequence[str]) -> pa.Table:
        """Read some columns of the last step's part of one split.

        Raises:
            RunFolderError: where there is none, saying which splits there are, or naming the part
                that cannot be read.
        """
        files = sorted((self.path / table).glob(f"[0-9]*-{_as_name(split)}.parquet"))
        if not files:
            there = ", ".join(self.splits(table)) or "none"
            raise RunFolderError(f"{self.path} has no {table} of {split!r}; there are: {there}")
        fields = TABLES.get(table, MEASURE)
        return _read(files[-1], pa.schema([fields.field(name) for name in columns]))

    def truncate(self, step: int) -> list[Path]:
        """Remove the parts written after ``step``, which a resumed run will write again."""
        later = [file for file in self.path.glob("*/[0-9]*.parquet") if int(file.name[:9]) > step]
        for file in later:
            file.unlink()
        return later


def _as_name(split: str) -> str:
    return re.sub(r"[^\w.-]+", "_", split)


def _as_table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    def is_scalar(value: Any) -> bool:
        return value is None or isinstance(value, str | int | float)

    rows = next((len(v) for v in columns.values() if not is_scalar(v)), 1)
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        arrays.append(pa.array([value] * rows if is_scalar(value) else value, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        # Not read_table: it would add columns from folder names.
        part = pq.ParquetFile(file).read(columns=schema.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise RunFolderError(f"{file} cannot be read ({error}); remove it to go on") from error
    # Columns that an older version did not write are null.
    return _as_table({name: part[name].combine_chunks() for name in part.column_names}, schema)
