"""The files of a tree: found once, kept, and checked at each start for having changed."""

import os
import time
import zipfile
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from firstlight.datamodules.file_table import FileTable, pack

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")

KEPT_FROM = 10_000
"""Trees of fewer files are listed anew at each start, which takes milliseconds."""

_VERSION = 1
_SETTLED = 2 * 10**9  # ns: a folder that changed later may change again within a tick of its clock
_SUFFIXES = tuple(os.fsencode(suffix) for suffix in IMAGE_SUFFIXES)


class TreeIndex(NamedTuple):
    """What a tree holds.

    Attributes:
        folders: paths of all folders relative to the root, sorted; the root's own is "".
        images: the image files, sorted by folder, then by name, as torchvision does.
        counts: number of image files in each folder, int64.
        strange: number of other files in each folder, int64.
        stranger: path of one of them below the root; "" if there is none.
    """

    folders: list[str]
    images: FileTable
    counts: NDArray[np.int64]
    strange: NDArray[np.int64]
    stranger: str


def user_cache() -> Path:
    """Where things are kept that can be made again: ``firstlight`` in ``$XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "firstlight"


def index_tree(root: Path, cache: Path | None = None) -> TreeIndex:
    """List a tree, or take the kept list if no folder has changed since.

    Path, inode and modification time of every folder are compared: that shows files and folders
    that were added, removed or renamed, not new content under an old name. Hidden files and folders
    are left out; links are followed. A tree that changed less than two seconds ago is not kept.

    Args:
        root: an existing folder.
        cache: the folder in which lists are kept; None: ``index`` in `user_cache`. A warning says
            where it cannot be written.

    Raises:
        ValueError: for a link to a folder that it lies in, or a name that is not UTF-8, which no
            table or report can hold; names it.
        OSError: for a folder that cannot be read; names it.
    """
    key = blake2b(os.fsencode(root.absolute()), digest_size=12).hexdigest()
    file = (user_cache() / "index" if cache is None else cache) / f"{key}.npz"
    kept = _load(file)
    if kept is not None:
        if np.array_equal(kept["stamps"], _stamps(root, _unpacked(kept["folders"]))):
            return _index(root, kept)
        rank_zero_info(f"{root} has changed since it was indexed: it is indexed again")
    began = time.time_ns()
    found = _scan(root)
    settled = found["stamps"][:, 0].max() < began - _SETTLED
    if settled and len(found["ends"]) > KEPT_FROM:
        _keep(found, file)
    return _index(root, found)


def _index(root: Path, kept: dict[str, NDArray[Any]]) -> TreeIndex:
    folders = _unpacked(kept["folders"])
    paths = [os.path.join(root, folder) if folder else os.fspath(root) for folder in folders]  # noqa: PTH118  # Path is slow for 10^5 folders
    folder_of = np.repeat(np.arange(len(folders), dtype=np.int32), kept["counts"])
    images = FileTable(paths, folder_of, kept["names"], kept["ends"])
    strangers = _unpacked(kept["stranger"])
    stranger = os.fspath(root / strangers[0]) if kept["stranger"].size else ""
    return TreeIndex(folders, images, kept["counts"], kept["strange"], stranger)


def _stamps(root: Path, folders: list[str]) -> NDArray[np.int64]:
    return np.array([_stamp(os.path.join(root, folder)) for folder in folders], np.int64)  # noqa: PTH118  # as above


def _stamp(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)  # noqa: PTH116  # as above
    except OSError:
        return -1, -1
    return found.st_mtime_ns, found.st_ino & (2**63 - 1)


def _scan(root: Path) -> dict[str, NDArray[Any]]:
    console = Console(stderr=True)
    silent = not console.is_terminal or getattr(rank_zero_only, "rank", 0) != 0
    images: dict[str, list[bytes]] = {}
    strange: dict[str, list[bytes]] = {}
    stamps: dict[str, tuple[int, int]] = {}
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    with Progress(console=console, transient=True, disable=silent) as progress:
        task = progress.add_task(f"Indexing {root}", total=None)
        while pending:
            folder, above = pending.pop()
            path = os.path.join(root, folder)  # noqa: PTH118  # as above
            stamps[folder] = _stamp(path)  # before it is read: a change meanwhile is seen next time
            own = os.stat(path)  # noqa: PTH116  # as above
            place = own.st_dev, own.st_ino  # every disk has inodes of its own
            if place in above:
                raise ValueError(f"{path} is a link to a folder that it lies in: remove the link")
            below, names = _entries(path)
            pending += [(os.path.join(folder, name), (*above, place)) for name in below]  # noqa: PTH118  # as above
            images[folder] = sorted(n for n in names if n.lower().endswith(_SUFFIXES))
            strange[folder] = [n for n in names if not n.lower().endswith(_SUFFIXES)]
            progress.update(task, total=len(images) + len(pending), completed=len(images))
    folders = sorted(images)
    packed, ends = pack([name for folder in folders for name in images[folder]])
    others = [os.path.join(os.fsencode(f), n) for f in folders[1:] for n in strange[f][:1]]  # noqa: PTH118  # as above
    return {
        "folders": _packed([os.fsencode(folder) for folder in folders]),
        "stamps": np.array([stamps[folder] for folder in folders], np.int64),
        "counts": np.array([len(images[folder]) for folder in folders], np.int64),
        "strange": np.array([len(strange[folder]) for folder in folders], np.int64),
        "stranger": _packed(others[:1]),
        "names": packed,
        "ends": ends,
    }


def _entries(path: str) -> tuple[list[str], list[bytes]]:
    below, names = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            _check_name(entry)
            if entry.is_dir():
                below.append(entry.name)
            else:
                names.append(os.fsencode(entry.name))
    return below, names


def _check_name(entry: os.DirEntry[str]) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the name of {os.fsencode(entry.path)!r} is not UTF-8 (unpacked from an archive made "
            "under Windows?): rename it"
        ) from error


def _packed(strings: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"\0".join(strings), np.uint8)


def _unpacked(array: NDArray[np.uint8]) -> list[str]:
    return [os.fsdecode(part) for part in array.tobytes().split(b"\0")]


def _load(file: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            columns = dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there or damaged: made anew
        return None
    return columns if int(columns.pop("version", 0)) == _VERSION else None


def _keep(found: dict[str, NDArray[Any]], file: Path) -> None:
    from firstlight.runfolder import replacing  # loads pyarrow

    try:
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, version=np.array(_VERSION), **found)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of them
    except OSError as error:
        rank_zero_warn(f"{error}: the tree is indexed again at the next start")
