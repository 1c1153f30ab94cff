"""Files of object storage, loaded by litdata and kept on this machine up to a size."""

import errno
import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from re import fullmatch
from time import time
from typing import Any

from filelock import FileLock, Timeout

REMOTE = ("s3://", "gs://", "azure://", "r2://", "local:")
"""What a root begins with that litdata loads from."""

_PATIENCE = 600.0  # seconds for another process to load a file


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
        import litdata  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise ImportError(
            "packing images, and reading packs from object storage, need litdata: "
            "pip install 'firstlight[streaming]'"
        ) from error


def download(root: str, name: str, path: Path, size: int | None = None) -> int:
    """Load ``root/name`` to ``path``, all or nothing, and return it opened for reading.

    Raises:
        OSError: if it cannot be loaded or written, or has another size than ``size``; names it.
    """
    url = f"{root.rstrip('/')}/{name}"
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _downloader(root, os.getpid()).download_file(url, str(partial))
        if not partial.exists():  # litdata is silent about some files that are not there
            raise FileNotFoundError("there is no such file")
        found = partial.stat().st_size
        if size not in (None, found):
            raise ValueError(f"it has {found} bytes, not {size} as pack.json says")
        file = os.open(partial, os.O_RDONLY)
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
    return file


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

    def open(self, name: str, size: int) -> int:
        """Return a file opened for reading, loaded if it is not here.

        Others may make room of it the next moment: what is open stays readable.

        Raises:
            OSError: if it cannot be loaded or written, or has another size than ``size`` where it
                comes from; names it.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{path}.lock", timeout=_PATIENCE):
                file = _opened(path, size)
                if file is None:
                    self._make_room(size)
                    file = download(self.root, name, path, size)
        except Timeout as error:
            raise TimeoutError(f"{path}: another process is loading it since long") from error
        with suppress(FileNotFoundError):  # another process made room
            os.utime(path)
        return file

    def expect(self, name: str, size: int) -> None:
        """Begin to load a file that will be asked for; what goes wrong is raised when it is."""
        if name not in self._loading and not (self.folder / name).exists():
            self._loading.add(name)
            _downloader(self.root, os.getpid())  # before there are threads
            threading.Thread(target=self._try, args=(name, size), daemon=True).start()

    def _try(self, name: str, size: int) -> None:
        with suppress(OSError):
            os.close(self.open(name, size))
        self._loading.discard(name)

    def _make_room(self, size: int) -> None:
        found = []
        for path in self.folder.parent.glob("*/*/*.bin*"):
            with suppress(FileNotFoundError):  # another process made room
                state = path.stat()
                loading = path.name.startswith(".") and time() - state.st_mtime < _PATIENCE
                if path.suffix != ".lock" and not loading:
                    found.append((state.st_mtime_ns, state.st_size, path))
        total = size + sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= bytes_


def _opened(path: Path, size: int) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(file).st_size == size:
        return file
    os.close(file)
    return None
