"""Lists of millions of paths in little memory, which worker processes share."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class FileTable(Sequence[str]):
    """Paths, each kept as its folder's number and its name among the bytes of all names.

    A list of Python strings takes about 150 bytes a path, in every worker process: counting
    references to them copies the memory that a fork shares. Here a path takes its name and 12
    bytes, in arrays that nothing writes to.

    Args:
        folders: paths of the folders.
        folder_of: int32 (N,), the number of each file's folder.
        names: uint8, the names of all files in the file system's encoding, one after another.
        ends: int64 (M + 1,), where each name ends, from 0 on.
        rows: int32 (N,), which name each file has; None: the i-th the i-th.
    """

    def __init__(
        self,
        folders: Sequence[str],
        folder_of: NDArray[np.int32],
        names: NDArray[np.uint8],
        ends: NDArray[np.int64],
        rows: NDArray[np.int32] | None = None,
    ) -> None:
        self.folders, self.folder_of = folders, folder_of
        self._names, self._ends, self._rows = names, ends, rows

    @classmethod
    def of(cls, paths: Iterable[str]) -> "FileTable":
        """Make a table of paths; one that is a table already is returned as it is."""
        if isinstance(paths, cls):
            return paths
        numbers: dict[str, int] = {}
        folder_of, names = [], []
        for path in paths:
            folder, name = os.path.split(path)
            folder_of.append(numbers.setdefault(folder, len(numbers)))
            names.append(os.fsencode(name))
        return cls(list(numbers), np.array(folder_of, np.int32), *pack(names))

    def __len__(self) -> int:
        return len(self.folder_of)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> "FileTable": ...
    def __getitem__(self, number: int | slice) -> "str | FileTable":
        if isinstance(number, slice):
            return self.take(np.arange(len(self))[number])
        folder = self.folders[self.folder_of[number]]
        row = number % len(self) if self._rows is None else self._rows[number]
        name = self._names[self._ends[row] : self._ends[row + 1]].tobytes()
        return os.path.join(folder, os.fsdecode(name))  # noqa: PTH118  # Path is slow for 10^6 files

    def take(self, index: Any) -> "FileTable":
        """Return the files at ``index``, integers, in that order; names are not copied."""
        index = np.asarray(index)
        rows = index.astype(np.int32) if self._rows is None else self._rows[index]
        return FileTable(self.folders, self.folder_of[index], self._names, self._ends, rows)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} files in {len(self.folders)} folders)"


def pack(names: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of all names, and where each ends, from 0 on."""
    ends = np.zeros(len(names) + 1, np.int64)
    np.cumsum([len(name) for name in names], out=ends[1:])
    return np.frombuffer(b"".join(names), np.uint8), ends
