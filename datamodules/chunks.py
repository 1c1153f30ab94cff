"""Chunk files of litdata, read where they lie or through a cache of those in object storage."""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from re import fullmatch
from struct import error as StructError
from struct import unpack_from
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from firstlight.datamodules.image_files import Encoded
from firstlight.datamodules.samplers import MIXED

REMOTE = ("s3://", "gs://", "azure://", "r2://", "local:")
"""What a root begins with that litdata loads from."""

FORMAT = ["bytes", "int", "int", "bytes", "int"]
"""litdata's types of an item: the file's content, target, number, name, and `checksum`.

The name is no str: litdata puts the image in the place of one that is an image's path.
"""

_PATIENCE = 600.0  # seconds for another process to load a chunk


class Chunk(NamedTuple):
    """One file of a split: its name, how many examples it holds, and its size in bytes."""

    file: str
    examples: int
    size: int


def checksum(content: bytes, target: int, number: int, name: bytes) -> int:
    """CRC-32 of all that an item says."""
    return crc32(content, crc32(b"%d %d %b" % (target, number, name)))


def bytes_of(size: int | str) -> int:
    """Return a size in bytes: a number, or one with KB, MB, GB or TB (powers of 1000).

    Raises:
        ValueError: for anything else, or nothing.
    """
    match = fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(size).strip().upper())
    found = 0 if match is None else int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " "))
    if found < 1:
        raise ValueError(f"a size is a number of bytes, or such as '100GB', not {size!r}")
    return found


def need_litdata() -> None:
    """Raise ImportError, naming the extra, where litdata is not installed."""
    try:
        import litdata  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "packing images, and reading packs from object storage, need litdata: "
            "pip install 'firstlight[streaming]'"
        ) from error


def download(root: str, name: str, path: Path) -> None:
    """Load ``root/name`` to ``path``, all or nothing.

    Raises:
        OSError: if it cannot be loaded or written; names both.
    """
    url = f"{root.rstrip('/')}/{name}"
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _downloader(root, os.getpid()).download_file(url, str(partial))
        if not partial.exists():  # litdata is silent about some files that are not there
            raise FileNotFoundError("there is no such file")
        partial.replace(path)
    except Exception as error:  # of any storage's client
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        advice = "Free space, lower max_cache_size, or give another cache_dir"
        if not full:
            advice = "Is the pack complete there, and may it be read?"
        raise OSError(f"cannot load {url} to {path.parent} ({error}). {advice}") from error
    finally:
        for left in path.parent.glob(f"{partial.name}*"):
            left.unlink(missing_ok=True)


@cache  # by process: clients of object storage do not survive a fork
def _downloader(root: str, process: int) -> Any:
    need_litdata()
    from litdata.streaming.downloader import get_downloader

    return get_downloader(root, "", [])


class ChunkCache:
    """Files of a pack in object storage, kept on this machine up to a size, and shared by it.

    The files used longest ago make room. Whoever has one open goes on reading it.

    Args:
        root: URL of the pack.
        folder: of this pack's files.
        limit: bytes that all files in the folder above may take, about.
    """

    def __init__(self, root: str, folder: Path, limit: int) -> None:
        self.root, self.folder, self.limit = root, folder, limit
        self._loading: set[str] = set()

    def fetch(self, name: str, size: int) -> Path:
        """Return the path of a file, loaded if it is not here.

        Raises:
            OSError: if it cannot be loaded or written; names it.
            ValueError: if it has another size than ``size`` where it comes from.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{path}.lock", timeout=_PATIENCE):
                if not _has_size(path, size):
                    self._make_room(size)
                    download(self.root, name, path)
                    if not _has_size(path, size):
                        found = path.stat().st_size
                        path.unlink()
                        raise ValueError(
                            f"{self.root}/{name} has {found} bytes, not {size} as pack.json says: "
                            "it was cut off or replaced; upload it again"
                        )
                os.utime(path)
        except Timeout as error:
            raise TimeoutError(f"{path}: another process is loading it since long") from error
        return path

    def expect(self, name: str, size: int) -> None:
        """Begin to load a file that will be asked for; what goes wrong is raised when it is."""
        if name not in self._loading and not _has_size(self.folder / name, size):
            self._loading.add(name)
            _downloader(self.root, os.getpid())  # before there are threads
            threading.Thread(target=self._try, args=(name, size), daemon=True).start()

    def _try(self, name: str, size: int) -> None:
        with suppress(OSError, ValueError):
            self.fetch(name, size)
        self._loading.discard(name)

    def _make_room(self, size: int) -> None:
        found = []
        for path in self.folder.parent.glob("*/*/*.bin*"):  # half loaded ones of killed runs too
            if path.suffix == ".lock":
                continue
            try:
                state = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            found.append((state.st_mtime_ns, state.st_size, path))
        total = size + sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= bytes_


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


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
        if self._cached is None:
            path = Path(self._folder, file)
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise FileNotFoundError(f"{path} is gone: copy or pack the images again") from None
        for _ in range(3):
            path = self._cached.fetch(f"{self._folder}/{file}", size)
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # made room for another
                continue
        raise OSError(f"{path} is deleted as soon as it is loaded: raise max_cache_size")

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
