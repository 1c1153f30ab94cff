"""Rows that come batch by batch, kept in memory, and in a file where they are too many for it."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

SHARE = 0.25
"""Of free memory, what one set of rows may take: a second set may follow, and a fit copies one."""

UNKNOWN = 4 << 30
"""Bytes taken to be free where the system does not say."""


class RowStore:
    """Collects rows (n, d); those that exceed a quarter of the free memory go to a file.

    The file has no name, so that nothing is left of it however the process ends, and nobody can
    take half of it for all. It is mapped into memory: the system holds as much of it there as there
    is room for. It must lie on a disk, not in a folder that is itself memory. Used as a context,
    the store closes it.

    Args:
        width: d.
        device: where rows are kept while they are in memory.
        folder: what the file lies in; made where it is needed.
        processes: that share the memory.

    Attributes:
        note: says of a file how large it is and where; empty without one.
    """

    def __init__(self, width: int, device: torch.device, folder: Path, processes: int = 1) -> None:
        self.note = ""
        self._width, self._device, self._folder = width, device, folder
        self._free = free_memory(device) // processes
        self._held: list[Tensor] = []
        self._file: IO[bytes] | None = None
        self._count = self._bytes = 0
        self._dtype = torch.float32

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "RowStore":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, rows: Tensor) -> None:
        """Add rows (n, d), all of one type.

        Raises:
            OSError: where they fit neither into memory nor into the folder.
        """
        if not len(rows):
            return
        self._dtype = rows.dtype
        self._count += len(rows)
        self._bytes += rows.numel() * rows.element_size()
        self._held.append(rows.to(self._device))
        if self._file is not None or self._bytes > SHARE * self._free:
            self._write()

    def _write(self) -> None:
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # Open until the context ends.
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            for rows in self._held:
                self._file.write(rows.cpu().contiguous().numpy().data)
        except OSError as error:
            raise OSError(
                f"{_gib(self._bytes)} of rows are more than a quarter of the free memory "
                f"({_gib(self._free)}) and do not fit into {self._folder}: {error}. Make room "
                "there, or take fewer examples"
            ) from error
        self._held = []

    def collected(self) -> Tensor:
        """All rows (N, d), on the device, or on the CPU where they are in a file.

        The file goes with the tensor.
        """
        if self._file is None:
            none = torch.empty(0, self._width, device=self._device, dtype=self._dtype)
            return torch.cat([none, *self._held])
        self._file.flush()
        kind = np.float64 if self._dtype == torch.float64 else np.float32
        mapped = np.memmap(self._file, kind, "r+", shape=(self._count, self._width))
        self.note = (
            f"{_gib(self._bytes)}, more than a quarter of the free memory ({_gib(self._free)}), "
            f"are in a file in {self._folder} that goes when they are no longer needed"
        )
        return torch.from_numpy(mapped)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device; on the CPU also by the limits of control groups.

    Example:
        >>> free_memory(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return max(0, min([_of_system(), *_of_control_groups()]))


def _of_system() -> int:
    with suppress(OSError):
        lines = dict(x.split(":") for x in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    with suppress(AttributeError, ValueError, OSError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return UNKNOWN


def _of_control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What each group that limits memory (version 2) leaves; cached files do not count."""
    found = []
    with suppress(OSError):
        lines = [x for x in own.read_text().splitlines() if x.startswith("0::")]
        inner = root / (lines[0][3:].strip("/") if lines else "")
        for group in (inner, *inner.parents):
            with suppress(OSError, ValueError):  # the outermost group has no limit
                limit = int((group / "memory.max").read_text())
                used = int((group / "memory.current").read_text())
                stat = dict(x.split() for x in (group / "memory.stat").read_text().splitlines())
                found.append(limit - used + int(stat["file"]))
            if group == root:
                break
    return found
