"""Text lists of images, as the long-tail papers publish them: a path and a label a line."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_SPLITS = ("train", "val", "test")


class ImageList(NamedTuple):
    """A list's paths as they stand there, in its order, and labels, or None where it has none.

    Attributes:
        file: where it was read.
        paths: one a line, for messages: entry i is line i + 1 of those that are not blank.
        labels: class numbers.
    """

    file: Path
    paths: list[str]
    labels: list[int] | None


def find_lists(where: str | Mapping[str, str]) -> dict[str, Path]:
    """Settle the list of each split.

    Args:
        where: a folder with one ``*train*.txt`` and at most one ``*val*.txt`` and ``*test*.txt``
            (``ImageNet_LT_train.txt``, ...), or files by split.

    Raises:
        FileNotFoundError: for a folder or a file that is not there.
        ValueError: for an unknown split, or several files that could be meant.
    """
    if isinstance(where, Mapping):
        if unknown := sorted(set(where) - set(_SPLITS)):
            raise ValueError(f"lists are of the splits {_SPLITS}, not {unknown[0]!r}")
        return {split: Path(file) for split, file in where.items()}
    folder = Path(where)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder.absolute()}: point lists (--data.lists) to the folder of "
            "..._train.txt, ..._val.txt, ..._test.txt, or name the file of each split"
        )
    found: dict[str, Path] = {}
    for split in _SPLITS:
        files = sorted(folder.glob(f"*{split}*.txt"))
        if len(files) > 1:
            raise ValueError(
                f"{folder} has {files[0].name} and {files[1].name}, either of which may list "
                f"{split}: name the file of each split (--data.lists.train FILE, ...)"
            )
        found |= dict.fromkeys([split] * len(files), *files)
    if "train" not in found:
        raise FileNotFoundError(f"{folder} has no list *train*.txt")
    return found


def read_list(file: Path) -> ImageList:
    """Read a list of ``path label`` or of ``path`` lines; the last may lack its newline.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty or no UTF-8 text, names a path twice, or has labels in some lines
            only.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such list: {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")  # which skips the mark of Windows' editors
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error})") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{file} lists no images")
    pairs = [line.strip().rsplit(None, 1) for line in lines]
    labelled = [len(pair) == 2 and pair[1].isdecimal() for pair in pairs]
    if any(labelled) and not all(labelled):
        odd = labelled.index(not labelled[0])
        raise ValueError(
            f"{file}: line 1 is {lines[0]!r}, but line {odd + 1} is {lines[odd]!r}; all lines are "
            "'path label' with a class number, or all are 'path'"
        )
    paths = [pair[0] for pair in pairs] if labelled[0] else [line.strip() for line in lines]
    if len(set(paths)) < len(paths):
        raise ValueError(f"{file} lists {first_repeat(paths)} twice")
    return ImageList(file, paths, [int(pair[1]) for pair in pairs] if labelled[0] else None)


def first_repeat(values: Iterable[T]) -> T:
    """Return the first of values that occur more than once."""
    return next(value for value, count in Counter(values).items() if count > 1)


def check_disjoint(lists: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError where an image belongs to two splits, naming it and them."""
    of: dict[str, str] = {}
    for split, paths in lists.items():
        both = next((path for path in paths if path in of), None)
        if both is not None:
            raise ValueError(f"{both} is in {of[both]} and in {split}: one image, one split")
        of |= dict.fromkeys(paths, split)


def check_present(paths: Sequence[str], source: object) -> None:
    """Look for every file by listing its folder once, which costs less than asking for each.

    Raises:
        FileNotFoundError: says how many are missing, which is the first, and what listed it.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        wanted[folder].add(name)
    missing: set[str] = set()
    for folder, names in wanted.items():
        there = set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH208, PTH112  # Path is slow for 10^6 files
        missing |= {os.path.join(folder, name) for name in names - there}  # noqa: PTH118  # likewise
    if missing:
        first = next(path for path in paths if path in missing)
        raise FileNotFoundError(
            f"{source} lists {len(paths)} images, of which {len(missing)} are missing, such as "
            f"{first}: is root the folder that its paths start from, and is the copy complete?"
        )
