"""Chunk files of litdata, read where they lie or through a cache of those in object storage.

litdata writes and loads them. Its own reader goes through them in an order that depends on workers
and processes, and leaves some examples out: a run could not be resumed exactly with others.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstlight.datamodules.chunk_cache import ChunkCache
from firstlight.datamodules.image_files import Encoded
from firstlight.datamodules.samplers import MIXED

FORMAT = ["bytes", "int", "int", "bytes", "int"]
"""litdata's types of an item: the file's content, target, number, name, and `checksum`.

The name is no str: litdata puts the image in the place of one that is an image's path.
"""


class Chunk(NamedTuple):
    """One file of a split: its name, how many examples it holds, and its size in bytes."""

    file: str
    examples: int
    size: int


def checksum(content: bytes, target: int, number: int, name: bytes) -> int:
    """CRC-32 of all that an item says."""
    return crc32(content, crc32(b"%d %d %b" % (target, number, name)))


class ChunkedExamples(Sequence[Encoded]):
    """The examples of one split, by number, each checked as it is read.

    Args:
        folder: of the chunk files, local or below the cache's root.
        chunks: the files in order; examples are numbered through them.
        targets: class numbers, of which an item's checksum tells.
        cached: where files in object storage come from; None: ``folder`` is a local path.
    """

    def __init__(
        self,
        folder: str,
        chunks: Sequence[Chunk],
        targets: Sequence[int],
        cached: ChunkCache | None,
    ) -> None:
        self.chunks, self._targets = list(chunks), targets
        self._folder, self._cached = folder, cached
        self.ends = torch.tensor([chunk.examples for chunk in chunks], dtype=torch.int64).cumsum(0)
        self._ends: NDArray[np.int64] = self.ends.numpy()
        # in shared memory: workers that outlive an epoch have to see the next one
        self._order = torch.arange(len(chunks))
        self._order.share_memory_()  # type: ignore[no-untyped-call]  # torch has not typed it
        self._open: OrderedDict[int, tuple[int, NDArray[np.uint32]]] = OrderedDict()
        self._lock = threading.Lock()

    def announce(self, order: Tensor) -> None:
        """Tell the order in which chunks will be read, to worker processes too."""
        self._order.copy_(order)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: Any) -> Any:
        """Return the content and name of an example, or a list of them for a slice.

        Raises:
            FileNotFoundError: if its chunk is gone; names it.
            OSError: if the chunk cannot be loaded from object storage; names it.
            ValueError: if the chunk was changed, cut off or damaged; names it.
        """
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        chunk = int(np.searchsorted(self._ends, number, "right"))
        first = int(self._ends[chunk]) - self.chunks[chunk].examples
        with self._lock:
            file, offsets = self._opened(chunk)
            start, end = offsets[number - first : number - first + 2].tolist()
            item = os.pread(file, max(0, end - start), start)
        try:
            return _parsed(item, self._targets[number], number)
        except (ValueError, StructError) as error:
            raise self._damaged(chunk, f"example {number}: {error}") from error

    def _opened(self, chunk: int) -> tuple[int, NDArray[np.uint32]]:
        if chunk not in self._open:
            file = self._descriptor(chunk)
            while len(self._open) >= 2 * MIXED:
                os.close(self._open.popitem(last=False)[1][0])
            count = self.chunks[chunk].examples
            head = os.pread(file, 4 * (count + 2), 0)
            table = np.frombuffer(head[: len(head) // 4 * 4], np.uint32)
            size = os.fstat(file).st_size
            if size != self.chunks[chunk].size or len(table) < count + 2 or table[0] != count:
                os.close(file)
                raise self._damaged(chunk, f"{size} bytes")
            self._open[chunk] = file, table[1:]
            self._expect_next(chunk)
        self._open.move_to_end(chunk)
        return self._open[chunk]

    def _descriptor(self, chunk: int) -> int:
        file, _, size = self.chunks[chunk]
        if self._cached is not None:
            return self._cached.open(f"{self._folder}/{file}", size)
        path = Path(self._folder, file)
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is gone: copy or pack the images again") from None

    def _expect_next(self, chunk: int) -> None:
        if self._cached is None:
            return
        place = int((self._order == chunk).nonzero()[0])
        for following in self._order[place + 1 : place + 1 + MIXED].tolist():
            file, _, size = self.chunks[following]
            self._cached.expect(f"{self._folder}/{file}", size)

    def _damaged(self, chunk: int, what: str) -> ValueError:
        where = Path(self._folder, self.chunks[chunk].file)
        again = "copy or pack it again"
        if self._cached is not None:
            where, again = self._cached.folder / where, "delete it, and it is loaded again"
        return ValueError(f"{where} was cut off, changed or damaged ({what}): {again}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self) -> None:
        for file, _ in getattr(self, "_open", {}).values():
            os.close(file)


def _parsed(item: bytes, target: int, number: int) -> Encoded:
    """Take an item apart: five sizes, uint32, then five values; compare its checksum."""
    sizes = unpack_from(f"<{len(FORMAT)}I", item)
    ends = np.cumsum([4 * len(FORMAT), *sizes]).tolist()
    content, name, kept = (item[ends[i] : ends[i + 1]] for i in (0, 3, 4))
    if checksum(content, target, number, name) != int.from_bytes(kept, "little"):
        raise ValueError("its checksum differs")
    return Encoded(content, os.fsdecode(name))
