"""Every image file decoded once, before training, and what is done about those that cannot be."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from firstlight.datamodules.archives import file_of
from firstlight.datamodules.file_table import FileTable
from firstlight.datamodules.image_files import (
    DAMAGE,
    LabelledFiles,
    decode,
    for_each_file,
    read_bytes,
)
from firstlight.datamodules.tree_index import user_cache
from firstlight.functional.ranks import Ranks, gather_or_raise

OnBadImage = Literal["raise", "skip"]

KEPT_FROM = 5_000
"""Results for fewer files are not kept: they are found again in seconds."""

_SHOWN = 10


def check_policy(on_bad_image: str, max_bad_images: int, verify: bool | None) -> None:
    """Raise ValueError for values that cannot be right."""
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image is one of {get_args(OnBadImage)}, got {on_bad_image!r}")
    if max_bad_images < 0:
        raise ValueError(f"max_bad_images is a number of files, got {max_bad_images}")
    if on_bad_image == "skip" and verify is False:
        raise ValueError(
            "on_bad_image='skip' drops bad images before training, so that counts and epochs are "
            "right; verify=False would not find them: leave out one of the two"
        )


def without_bad_images(
    sets: Mapping[str, LabelledFiles], on_bad_image: OnBadImage, limit: int
) -> dict[str, LabelledFiles]:
    """Return the files of every split that can be decoded.

    Args:
        sets: files by split.
        on_bad_image: ``raise``: at the first bad file; ``skip``: leave bad files out, and warn.
        limit: how many may be left out.

    Raises:
        ValueError: for a bad file, more of them than ``limit``, or a class that loses all of its
            training images; names them.
    """
    good: dict[str, LabelledFiles] = {}
    bad: dict[str, str] = {}
    for split, files in sets.items():
        found = find_bad_images(files.paths)
        bad |= {files.paths[number]: reason for number, reason in found.items()}
        good[split] = _without(files, set(found))
    if not bad:
        return dict(sets)
    if on_bad_image == "raise":
        raise ValueError(
            f"{next(iter(bad.values()))}. {len(bad)} of the images cannot be read; "
            "on_bad_image='skip' leaves such images out"
        )
    if len(bad) > limit:
        raise ValueError(
            f"{len(bad)} images cannot be read, more than max_bad_images={limit}: {_listed(bad)}"
        )
    for split, files in good.items():
        if lost := sorted(set(sets[split].targets) - set(files.targets)):
            raise ValueError(
                f"none of the images of class {files.classes[lost[0]]!r} in {split!r} can be read: "
                f"{_listed(bad)}"
            )
    rank_zero_warn(f"{len(bad)} images cannot be read and are left out: {_listed(bad)}")
    return good


def find_bad_images(paths: Sequence[str]) -> dict[int, str]:
    """Decode every file; return what is wrong, by number. Processes share the work: collective.

    Results for many files are kept in `user_cache` and hold as long as all paths, sizes and
    times are the same.
    """
    ranks = Ranks.current()
    digest = digest_of_files(paths) if len(paths) >= KEPT_FROM else "few"
    record = user_cache() / "verified" / f"{digest}.json"
    # all or none: a process that finds what another has just written would not join the work
    kept = _load(record) if len(paths) >= KEPT_FROM else None
    if all(ranks.gather({ranks.rank: kept is not None})):
        return kept or {}
    error, found = None, {}
    try:
        share = FileTable.of(paths)[ranks.rank :: ranks.world]
        reasons = for_each_file(_problem, share, "Checking images")
        found = {ranks.rank + ranks.world * i: r for i, r in enumerate(reasons) if r is not None}
    except Exception as caught:
        error = caught
    bad = {
        n: r for one in gather_or_raise(ranks, {ranks.rank: found}, error) for n, r in one.items()
    }
    bad = dict(sorted(bad.items()))
    if len(paths) >= KEPT_FROM and ranks.rank == 0:
        _keep(bad, record)
    return bad


def _problem(path: str) -> str | None:
    try:
        with Image.open(BytesIO(read_bytes(path))) as image:
            if image.format == "JPEG":
                image.draft(None, (1, 1))  # reads all of the file, makes an eighth of the pixels
                image.load()
                return None
    except (FileNotFoundError, *DAMAGE):
        pass
    try:
        decode(path)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def _without(files: LabelledFiles, bad: set[int]) -> LabelledFiles:
    if not bad:
        return files
    kept = np.array([i for i in range(len(files.paths)) if i not in bad], np.int64)
    targets = [files.targets[i] for i in kept.tolist()]
    return files._replace(paths=FileTable.of(files.paths).take(kept), targets=targets)


def _listed(bad: Mapping[str, str]) -> str:
    kinds = Counter(Path(path).parent.name for path in bad)
    shown = "; ".join(list(bad.values())[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more, by folder {dict(kinds)}" if len(bad) > _SHOWN else ""
    return shown + more


def digest_of_files(paths: Sequence[str]) -> str:
    """Return a hash of the paths, sizes and modification times of files, in order.

    Of an archive's member those are its archive's.
    """
    digest = blake2b(digest_size=12)
    last, found = "", None
    for path in paths:
        if (file := file_of(path)) != last:
            last, found = file, _stat(file)
        state = f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0" if found else f"{path}\0\0"
        digest.update(os.fsencode(state))
    return digest.hexdigest()


def _stat(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)  # noqa: PTH116  # Path is slow for 10^6 files
    except OSError:
        return None


def _load(record: Path) -> dict[int, str] | None:
    try:
        return {int(number): reason for number, reason in json.loads(record.read_text()).items()}
    except (OSError, ValueError):  # not there, or damaged: found anew
        return None


def _keep(bad: Mapping[int, str], record: Path) -> None:
    from firstlight.runfolder import replacing  # loads pyarrow

    try:
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(bad))
    except OSError as error:
        rank_zero_warn(f"{error}: the images are checked again at the next start")
