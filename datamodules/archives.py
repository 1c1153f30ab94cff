"""Images inside tar files, read where they lie: nothing is extracted."""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from rich.console import Console
from rich.progress import track

from firstlight.datamodules.tree_index import user_cache

_MEMBER = re.compile(r"(.+\.tar)/(.+)@(\d+)\+(\d+)")
_BLOCK = 512  # of a tar file
_COLUMNS = ("name", "offset", "size")
_VERSION = "1"  # of these columns


def member_path(archive: str, offset: int, size: int, name: str) -> str:
    """Return the path by which `member_bytes` knows a member: ``archive/name@offset+size``."""
    return f"{archive}/{name}@{offset}+{size}"


def without_place(path: str) -> str:
    """Return ``archive/name`` of a member, and the path of a file as it is."""
    match = _MEMBER.fullmatch(path)
    return path if match is None else f"{match[1]}/{match[2]}"


def file_of(path: str) -> str:
    """Return the file that a path is read from: a member's archive, or the file itself."""
    match = _MEMBER.fullmatch(path) if path[-1:].isdecimal() else None
    return path if match is None else match[1]


def member_bytes(path: str) -> bytes | None:
    """Return the content of an archive's member, or None for the path of a file.

    The archive is opened for this read alone, so that workers and threads share no position in it.

    Raises:
        FileNotFoundError: if the archive is gone.
        ValueError: if it ends before the member does.
    """
    match = _MEMBER.fullmatch(path) if path[-1:].isdecimal() else None
    if match is None:
        return None
    archive, name, offset, size = match[1], match[2], int(match[3]), int(match[4])
    descriptor = os.open(archive, os.O_RDONLY)
    try:
        content = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(content) < size:
        raise ValueError(f"{archive} ends within its member {name}: it was cut off or replaced")
    return content


def index_archive(archive: Path) -> list[str]:
    """List the files in a tar, those in the tars within it included, as `member_bytes` takes them.

    The headers are read once, 1.28 million of them in about 80 s where the disk keeps up. The
    result is kept under ``$XDG_CACHE_HOME/firstlight`` and holds as long as the archive keeps its
    size and time. A member of an inner ``<folder>.tar`` is named ``<folder>/<name>``.

    Returns:
        Paths in the order of the archive.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no tar or is cut off; says which.
    """
    import pyarrow as pa  # here and below, since it takes a while and most data have no archive

    if not archive.is_file():
        raise FileNotFoundError(f"no such archive: {archive}")
    archive = archive.absolute()
    found = archive.stat()
    fingerprint = f"{_VERSION}-{found.st_size}-{found.st_mtime_ns}"
    cache = _cache_file(archive)
    table = _cached(cache, fingerprint)
    if table is None:
        rows = list(_rows(archive))
        table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)})
        _keep(table.replace_schema_metadata({"fingerprint": fingerprint}), cache)
    columns = (table[name].to_pylist() for name in _COLUMNS)
    return [member_path(str(archive), o, s, n) for n, o, s in zip(*columns, strict=True)]


def _cache_file(archive: Path) -> Path:
    key = hashlib.sha256(str(archive).encode()).hexdigest()[:16]
    return user_cache() / f"{archive.stem}-{key}.parquet"


def _cached(cache: Path, fingerprint: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(cache).read()
    except (OSError, pa.ArrowInvalid):  # not there, or damaged: made anew
        return None
    kept = (table.schema.metadata or {}).get(b"fingerprint", b"").decode()
    return table if kept == fingerprint else None


def _keep(table: Any, cache: Path) -> None:
    import pyarrow.parquet as pq

    from firstlight.runfolder import replacing

    try:
        with replacing(cache) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError as error:
        rank_zero_warn(f"{error}: the archive is indexed again at the next start")


def _rows(archive: Path) -> Iterator[tuple[str, int, int]]:
    console = Console(stderr=True)
    silent = not console.is_terminal or getattr(rank_zero_only, "rank", 0) != 0
    with archive.open("rb") as file:
        members = _members(file, str(archive))
        task = f"Indexing {archive.name}"
        for tar, member in track(members, task, console=console, transient=True, disable=silent):
            name = PurePosixPath(member.name)
            if name.suffix != ".tar":
                yield str(name), member.offset_data, member.size
                continue
            inner = tar.extractfile(member)
            assert inner is not None, "a regular file"
            for _, m in _members(inner, f"{name} in {archive}"):
                path = str(PurePosixPath(name.stem, PurePosixPath(m.name).name))
                yield path, member.offset_data + m.offset_data, m.size


def _members(file: IO[bytes], what: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Regular files of a tar that ends as a tar ends; a library stops silently where one does not.

    ``tarfile`` takes a damaged header, or an end without the zero block, for the end of the data.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    yield tar, member
            file.seek(tar.offset)
            whole = file.read(_BLOCK) == bytes(_BLOCK)
    except tarfile.ReadError as error:
        raise ValueError(f"{what} cannot be read as a tar file ({error}): load it again") from error
    if not whole:
        raise ValueError(f"{what} is cut off or damaged at byte {tar.offset}: load it again")
