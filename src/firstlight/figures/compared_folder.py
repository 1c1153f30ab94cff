"""The folder that ``firstlight compare`` makes, as its figures read it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from firstlight.functional import convincing
from firstlight.runfolder import RunFolderError

Columns = dict[str, NDArray[Any]]
LONGEST = 100
"""Characters of a comparison's name in that of a file."""
QUESTIONS = {"test_set": "on this test set", "new_images": "on new images"}


@dataclass(frozen=True)
class ComparedFolder:
    """Tables of one comparison, as arrays; missing numbers are NaN.

    Attributes:
        path: the folder.
        summary: contents of ``summary.json``.
    """

    path: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "ComparedFolder":
        """Open a folder.

        Raises:
            RunFolderError: where ``firstlight compare`` made no such folder.
        """
        file = Path(path) / "summary.json"
        try:
            summary = json.loads(file.read_text())
            comparisons = [one["comparison"] for one in summary["comparisons"]]
        except FileNotFoundError:
            raise RunFolderError(f"{path} holds no comparison: {file} does not exist") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunFolderError(f"{file} is not a comparison's summary ({error!r})") from error
        if not comparisons:
            raise RunFolderError(f"{file} lists no comparison")
        return cls(Path(path), summary)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``compare`` was told."""
        settings: dict[str, Any] = self.summary["settings"]
        return settings

    @property
    def comparisons(self) -> list[str]:
        """Names, in order; a line over strength comes last."""
        return [one["comparison"] for one in self.summary["comparisons"]]

    @property
    def between_arms(self) -> list[str]:
        """Those of two arms."""
        return [c["comparison"] for c in self.summary["comparisons"] if not c.get("slope")]

    @property
    def factor(self) -> str:
        """What the arms differ by."""
        told = [arm["factor"] for arm in self.summary["arms"] if arm["factor"]]
        return told[0] if told else "strength"

    @property
    def where(self) -> str:
        """The question that q-values answer, in words."""
        return QUESTIONS[self.settings["question"]]

    def file_name(self, comparison: str, end: str = "") -> str:
        """A comparison's name, and what is drawn of it, as that of a file, no other's."""
        names = [re.sub(r"[^\w.-]+", "_", one)[:LONGEST] for one in self.comparisons]
        number = self.comparisons.index(comparison) if comparison in self.comparisons else 0
        twice = names.count(names[number]) > 1
        return f"{names[number]}{f'-{number + 1}' if twice else ''}{end}"

    def effects(self, comparison: str) -> Columns:
        """Rows of ``class_effects.parquet``, of the classes that have images.

        Raises:
            ValueError: where there is no such comparison.
        """
        columns = self.read("class_effects")
        rows = columns["comparison"] == comparison
        if not rows.any():
            there = sorted(set(columns["comparison"]))
            raise ValueError(f"{self.path} has no comparison {comparison!r}; there are: "
                             f"{', '.join(there)}")  # fmt: skip
        rows &= columns["rank"] >= 0
        return {name: values[rows] for name, values in columns.items()}

    def read(self, table: str) -> Columns:
        """All rows of a table.

        Raises:
            RunFolderError: where it cannot be read.
        """
        file = self.path / f"{table}.parquet"
        try:
            content = pq.ParquetFile(file).read()
        except (pa.ArrowInvalid, OSError) as error:
            raise RunFolderError(f"{file} cannot be read ({error})") from error
        return {name: content[name].to_numpy(zero_copy_only=False)
                for name in content.column_names}  # fmt: skip

    def asked(self, columns: Columns, name: str) -> NDArray[Any]:
        """``p``, ``q``, ``se``, ``low`` or ``high`` for the question that was asked."""
        return columns[name + ("" if self.settings["question"] == "test_set" else "_new_images")]

    def reported(self, columns: Columns) -> NDArray[np.bool_]:
        """Which effects are: q below .05, and large enough."""
        return convincing(columns["effect"], self.asked(columns, "q"), self.settings["least"])
