"""Image files: finding, decoding and checking them, and data sets that read them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from firstlight.datamodules.archives import member_bytes
from firstlight.functional.seeding import keyed_randomness

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")

R = TypeVar("R")


class LabelledFiles(NamedTuple):
    """Paths, their class numbers, and names by class number."""

    paths: list[str]
    targets: list[int]
    classes: list[str]


def decode(path: str, mode: str = "RGB") -> Image.Image:
    """Read one image file, or one image within a tar file (see `archives`).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated or not an image; names it.
    """
    try:
        content = member_bytes(path)
        with Image.open(path if content is None else BytesIO(content)) as image:
            return image.convert(mode)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image: {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read {path} as an image ({error}): replace the file or remove it"
        ) from error


def class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted, hidden ones left out."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_images(root: Path) -> list[str]:
    """All image files under ``root``, at any depth, sorted by path.

    Raises:
        FileNotFoundError: if ``root`` is no folder or holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    images = [path for path in _walk(root) if path.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise FileNotFoundError(f"no image under {root}: looked for {', '.join(IMAGE_SUFFIXES)}")
    return images


def scan_classes(root: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """List a tree ``root/<class>/...``; numbers follow the sorted class names.

    Hidden files are skipped; other files that are not images are skipped with a warning.

    Args:
        root: a folder of class folders.
        classes: names that decide the numbers (those of the training set); None: the folders'.

    Raises:
        ValueError: for a folder that is not among ``classes``, or is empty.
    """
    found = class_folders(root)
    known = found if classes is None else list(classes)
    if unknown := sorted(set(found) - set(known)):
        raise ValueError(
            f"{root / unknown[0]}: there is no class {unknown[0]!r} in the training set, whose "
            f"classes are {_shown(known)}"
        )
    if not found:
        raise ValueError(f"{root} holds no class folders")
    paths, targets, strange = [], [], []
    for name in found:
        files = _walk(root / name)
        images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
        strange += [path for path in files if not path.lower().endswith(IMAGE_SUFFIXES)]
        if not images:
            raise ValueError(f"class folder {root / name} holds no image: fill it or remove it")
        paths += images
        targets += [known.index(name)] * len(images)
    if strange:
        rank_zero_warn(f"{len(strange)} files under {root} are no images, such as {strange[0]}")
    return LabelledFiles(paths, targets, known)


def _walk(root: Path) -> list[str]:
    found = []
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [os.path.join(folder, name) for name in files if not name.startswith(".")]  # noqa: PTH118  # Path is slow for 10^6 files
    return sorted(found)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def for_each_file(
    function: Callable[[str], R], paths: Sequence[str], description: str
) -> Iterator[R]:
    """Apply ``function`` to every path in threads, in order, under a progress bar on rank zero."""
    blocks: Iterable[Sequence[str]] = [paths[i : i + 2048] for i in range(0, len(paths), 2048)]
    console = Console(stderr=True)
    silent = not console.is_terminal or getattr(rank_zero_only, "rank", 0) != 0
    blocks = track(blocks, description, console=console, transient=True, disable=silent)
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        for block in blocks:
            yield from pool.map(function, block)


def check_decodable(paths: Sequence[str]) -> None:
    """Decode every file once.

    Raises:
        ValueError: at the first that cannot be decoded; names it.
    """

    def check(path: str) -> None:
        decode(path)

    for _ in for_each_file(check, paths, "Checking images"):
        pass


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Labelled image files; items are (float tensor, int target).

    With a seed, the transform of example i in epoch e draws from torch's CPU generator keyed by
    (seed, e, i), whose state is restored: so the augmentation depends on no worker, order or
    earlier epoch. Of an example that is drawn again in an epoch (`Draw`), the key has the number of
    the draw too.

    Args:
        files: paths, targets and class names.
        transform: makes a tensor of a PIL image.
        seed: key of a random transform; None for one that draws nothing.
    """

    def __init__(
        self,
        files: LabelledFiles,
        transform: Callable[[Image.Image], Tensor] | None = None,
        seed: int | None = None,
    ) -> None:
        self.paths, self.targets, self.classes = files
        self._transform, self._seed = transform, seed
        # in shared memory: workers that outlive an epoch have to see the next one
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch has not typed it

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch, to worker processes too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = decode(self.paths[index])
        assert self._transform is not None, "use with_transform first"
        if self._seed is None:
            return self._transform(image), self.targets[index]
        repeat = getattr(index, "repeat", 0)  # of a sampler with replacement, see Draw
        keys = (index, repeat) if repeat else (index,)
        with keyed_randomness(self._seed, int(self._epoch), *keys):
            return self._transform(image), self.targets[index]

    def with_transform(
        self, transform: Callable[[Image.Image], Tensor], seed: int | None = None
    ) -> "ImageFiles":
        """Return the same files under another transform."""
        return ImageFiles(LabelledFiles(self.paths, self.targets, self.classes), transform, seed)

    def subset(self, index: Tensor) -> "ImageFiles":
        """Return the files at ``index``, in that order."""
        chosen = index.tolist()
        files = LabelledFiles(
            [self.paths[i] for i in chosen], [self.targets[i] for i in chosen], self.classes
        )
        return ImageFiles(files, self._transform, self._seed)


class UnlabelledImages(Dataset[tuple[Tensor, int]]):
    """Image files without labels; items are (float tensor, the file's number in ``paths``)."""

    def __init__(
        self, paths: list[str], transform: Callable[[Image.Image], Tensor], mode: str = "RGB"
    ) -> None:
        self.paths, self._transform, self._mode = paths, transform, mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(decode(self.paths[index], self._mode)), index
