"""Image files: finding, decoding and checking them, and data sets that read them."""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from firstlight.datamodules.archives import member_bytes
from firstlight.datamodules.file_table import FileTable
from firstlight.datamodules.tree_index import IMAGE_SUFFIXES, index_tree
from firstlight.functional.seeding import keyed_randomness

R = TypeVar("R")
S = TypeVar("S")

# what PIL's plugins raise for damaged files
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)


class LabelledFiles(NamedTuple):
    """Paths, their class numbers, and names by class number."""

    paths: Sequence[str]
    targets: list[int]
    classes: list[str]


class Encoded(NamedTuple):
    """An image file's content, and what to call it in messages."""

    content: bytes
    name: str


Source = str | Encoded
"""What an image is decoded from: the path of its file, or the content."""


def content_of(source: Source) -> Encoded:
    """Return the content and name of a source; a path is read as `read_bytes` does."""
    return source if isinstance(source, Encoded) else Encoded(read_bytes(source), source)


def read_bytes(path: str) -> bytes:
    """Return the content of a file, or of one within a tar file (see `archives`).

    Raises:
        FileNotFoundError: if there is no such file, or a link leads nowhere.
        ValueError: if it may not be read, or is empty; names it.
    """
    try:
        content = member_bytes(path)
        if content is None:
            with open(path, "rb") as file:  # noqa: PTH123  # Path.read_bytes costs more than a small read
                content = file.read()
    except FileNotFoundError:
        what = "a link that leads nowhere" if os.path.islink(path) else "no such image"  # noqa: PTH114  # as above
        raise FileNotFoundError(f"{what}: {path}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror})") from error
    if not content:
        raise ValueError(f"{path} is empty: replace the file or remove it")
    return content


def decode(source: Source, mode: str = "RGB") -> Image.Image:
    """Decode one image, as torchvision and timm do.

    Of an animation that is the first picture; the orientation in EXIF data is not applied; CMYK,
    grey and palettes are converted as PIL does it, transparency is dropped.

    Raises:
        FileNotFoundError: if there is no such file, or a link leads nowhere.
        ValueError: if it is empty, truncated, no image, grey of more than 8 bits (PIL cuts colours
            of 16 to 8), or has more pixels than twice ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million
            by default); names it.
    """
    return decode_bytes(*content_of(source), mode)


def decode_bytes(content: bytes, path: str, mode: str = "RGB") -> Image.Image:
    """Decode a file's content as `decode` does; ``path`` is for messages."""
    try:
        with Image.open(BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}")
            return image.convert(mode)
    except DAMAGE as error:
        raise ValueError(
            f"cannot read {path} as an image ({error}): replace the file or remove it"
        ) from error


def class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted, hidden ones left out."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_images(root: Path) -> FileTable:
    """All image files under ``root``, at any depth, sorted by folder, then by name.

    Raises:
        FileNotFoundError: if ``root`` is no folder or holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    images = index_tree(root).images
    if not len(images):
        raise FileNotFoundError(f"no image under {root}: looked for {', '.join(IMAGE_SUFFIXES)}")
    return images


def scan_classes(root: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """List a tree ``root/<class>/...``; numbers follow the sorted class names.

    Hidden files are skipped; other files that are not images, and images in ``root`` itself, are
    left out with a warning. Large trees are indexed, see `index_tree`.

    Args:
        root: a folder of class folders.
        classes: names that decide the numbers (those of the training set); None: the folders'.

    Raises:
        ValueError: for a folder that is not among ``classes``, or is empty.
    """
    index = index_tree(root)
    counts: dict[str, int] = {}
    for folder, count in zip(index.folders[1:], index.counts[1:].tolist(), strict=True):
        name = folder.partition(os.sep)[0]
        counts[name] = counts.get(name, 0) + count
    known = sorted(counts) if classes is None else list(classes)
    if unknown := sorted(set(counts) - set(known)):
        raise ValueError(
            f"{root / unknown[0]}: there is no class {unknown[0]!r} in the training set, whose "
            f"classes are {_shown(known)}"
        )
    loose = int(index.counts[0])
    if not counts:
        raise ValueError(f"{root} holds {f'{loose} images, but ' if loose else ''}no class folders")
    if empty := [name for name, count in counts.items() if not count]:
        raise ValueError(f"class folder {root / empty[0]} holds no image: fill it or remove it")
    numbers = {name: number for number, name in enumerate(known)}
    targets: list[int] = []
    for folder, count in zip(index.folders[1:], index.counts[1:].tolist(), strict=True):
        targets += [numbers[folder.partition(os.sep)[0]]] * count
    if strange := index.strange[1:].sum():
        rank_zero_warn(f"{strange} files under {root} are no images, such as {index.stranger}")
    if loose:
        rank_zero_warn(
            f"{loose} images in {root} itself have no class folder and are left out, such as "
            f"{index.images[0]}"
        )
    return LabelledFiles(index.images[loose:], targets, known)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def for_each_file(
    function: Callable[[S], R], paths: Sequence[S], description: str, at_once: int = 2048
) -> Iterator[R]:
    """Apply ``function`` to every path in threads, in order, under a progress bar on rank zero.

    At most ``at_once`` results are held before they are asked for. Other things than paths do too.
    """
    starts = range(0, len(paths), at_once)
    blocks: Iterable[Sequence[S]] = [paths[i : i + at_once] for i in starts]
    console = Console(stderr=True)
    silent = not console.is_terminal or getattr(rank_zero_only, "rank", 0) != 0
    blocks = track(blocks, description, console=console, transient=True, disable=silent)
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        for block in blocks:
            yield from pool.map(function, block)


class Transformed:
    """Decodes by PIL and transforms the image: what evaluation does."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], mode: str = "RGB") -> None:
        self._transform, self._mode = transform, mode

    def __call__(self, source: Source) -> Tensor:
        """Return the transformed image of one source."""
        return self._transform(decode(source, self._mode))


class ImageFiles(Dataset[tuple[Any, int]]):
    """Labelled image files; items are (what ``read`` makes of a source, int target).

    With a seed, what reads example i in epoch e draws from torch's CPU generator keyed by (seed, e,
    i), whose state is restored: so the augmentation depends on no worker, order or earlier epoch.
    Of an example that is drawn again in an epoch (`Draw`), the key has the number of the draw too.

    Args:
        files: paths, targets and class names.
        read: makes an example of a path (a subclass may give `Encoded`); None for files that are
            only counted and divided.
        seed: key of random reading; None where nothing is drawn.
    """

    def __init__(
        self,
        files: LabelledFiles,
        read: Callable[[Any], Any] | None = None,
        seed: int | None = None,
    ) -> None:
        self.paths = FileTable.of(files.paths)
        self.targets, self.classes = files.targets, files.classes
        self._read, self._seed = read, seed
        self._epoch = shared_number()

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch, to worker processes too."""
        self._epoch.fill_(epoch)

    @property
    def sources(self) -> Sequence[Source]:
        """What the examples are read from."""
        return self.paths

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert self._read is not None, "use with_reader or with_transform first"
        source = self.sources[index]
        if self._seed is None:
            return self._read(source), self.targets[index]
        repeat = getattr(index, "repeat", 0)  # of a sampler with replacement, see Draw
        keys = (index, repeat) if repeat else (index,)
        with keyed_randomness(self._seed, int(self._epoch), *keys):
            return self._read(source), self.targets[index]

    def with_reader(self, read: Callable[[Any], Any], seed: int | None = None) -> Self:
        """Return the same files, read by ``read``."""
        other = copy(self)
        other._read, other._seed, other._epoch = read, seed, shared_number()
        return other

    def with_transform(
        self, transform: Callable[[Image.Image], Tensor], seed: int | None = None
    ) -> Self:
        """Return the same files, read by PIL under another transform."""
        return self.with_reader(Transformed(transform), seed)

    def subset(self, index: Tensor) -> "ImageFiles":
        """Return the files at ``index``, in that order."""
        targets = [self.targets[i] for i in index.tolist()]
        files = LabelledFiles(self.paths.take(index.numpy()), targets, self.classes)
        return ImageFiles(files, self._read, self._seed)


def shared_number() -> Tensor:
    """Return an int64 in shared memory: workers that outlive an epoch have to see the next one."""
    number = torch.zeros((), dtype=torch.int64)
    number.share_memory_()  # type: ignore[no-untyped-call]  # torch has not typed it
    return number


class UnlabelledImages(Dataset[tuple[Tensor, int]]):
    """Image files without labels; items are (float tensor, the file's number in ``paths``)."""

    def __init__(
        self, paths: Sequence[str], transform: Callable[[Image.Image], Tensor], mode: str = "RGB"
    ) -> None:
        self.paths, self._read = paths, Transformed(transform, mode)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._read(self.paths[index]), index
