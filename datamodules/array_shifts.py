"""Corrupted test sets that are published as NumPy files: CIFAR-10-C, CIFAR-100-C and MNIST-C."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from firstlight.datamodules.resident import prepare
from firstlight.datamodules.shifts import (
    PublishedCorruptions,
    Setting,
    Shift,
    chosen,
)

MNIST_C = (
    "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate",
    "brightness", "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges",
)  # fmt: skip
"""The fifteen corruptions of MNIST-C; its sixteenth folder, ``identity``, is MNIST itself."""


class ArrayImages(Dataset[tuple[Tensor, int]]):
    """Images of several arrays of files, one section each; items are (uint8 (C, H, W), target).

    Args:
        parts: uint8 (n, H, W, C) by section, mapped files as a rule.
        targets: class numbers by section.
        classes: names by class number.
        channels: of the items, 1 or 3; a grey image is repeated three times.

    Raises:
        ValueError: for colour images where one channel is wanted.
    """

    def __init__(
        self,
        parts: dict[str, NDArray[np.uint8]],
        targets: Sequence[NDArray[np.int64]],
        classes: Sequence[str],
        channels: int,
    ) -> None:
        self._parts, self._channels = list(parts.values()), channels
        found = self._parts[0].shape[3]
        if found not in (1, channels):
            raise ValueError(f"images of {found} channels for a DataModule of {channels}")
        self.targets: list[int] = np.concatenate(targets).tolist()
        self.classes = list(classes)
        self.sections = list(parts)
        lengths = [len(part) for part in self._parts]
        self._starts = np.cumsum([0, *lengths])
        self.section_numbers = np.repeat(np.arange(len(lengths)), lengths)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.batch(torch.tensor([index]))[0], self.targets[index]

    def batch(self, index: Tensor) -> Tensor:
        """Read the images at ``index`` (B,): uint8 (B, C, H, W)."""
        at = index.numpy()
        section = self.section_numbers[at]
        images = np.empty((len(at), *self._parts[0].shape[1:]), np.uint8)
        for number in np.unique(section):
            here = section == number
            images[here] = self._parts[number][at[here] - self._starts[number]]
        return torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, self._channels, -1, -1)

    def loader(self, setting: Setting) -> Any:
        """Return the loader of batches prepared as the DataModule's."""

        def inputs(index: Tensor) -> Tensor:
            return prepare(self.batch(index).to(setting.device), setting.how)

        return setting.array_loader(self, inputs)


@dataclasses.dataclass(frozen=True)
class CIFARC(PublishedCorruptions):
    """CIFAR-10-C or CIFAR-100-C: the CIFAR test set under 19 corruptions in five severities.

    One set whose sections are ``<corruption>/<severity>``. The benchmark's mean is over fifteen
    corruptions; the group ``extra`` has the other four, which were meant for choosing methods.

    Attributes:
        root: folder of ``<corruption>.npy``, uint8 (5 n, 32, 32, 3), severities one after another
            (n is 10,000), and ``labels.npy``.
        corruptions: names, or groups: benchmark, noise, blur, weather, digital, extra, all.
        severities: 1 to 5.
    """

    def check(self) -> None:
        """Look for the files."""
        _check_files(self.root, ["labels.npy", *(f"{name}.npy" for name in self._chosen()[0])])

    def loader(self, setting: Setting) -> Any:
        """Map the files and return the loader; see `Shift`."""
        self.check()
        root, (names, severities) = Path(self.root), self._chosen()
        labels = _read_labels(root / "labels.npy", setting)
        count, rest = divmod(len(labels), 5)
        if rest or (labels.reshape(5, count) != labels[:count]).any():
            raise ValueError(
                f"{root / 'labels.npy'}: {len(labels)} labels are not those of one test set, five "
                "times over"
            )
        _compare(labels[:count], root / "labels.npy", setting)
        parts = {}
        for name in names:
            images = _read_images(root / f"{name}.npy", len(labels), (32, 32, 3))
            for level in severities:
                parts[f"{name}/{level}"] = images[(level - 1) * count : level * count]
        channels = len(setting.how.mean)
        targets = [labels[:count]] * len(parts)
        return ArrayImages(parts, targets, setting.classes, channels).loader(setting)


@dataclasses.dataclass(frozen=True)
class MNISTC(Shift):
    """MNIST-C: the MNIST test set under fifteen corruptions; its sections.

    Attributes:
        root: folder of ``<corruption>/test_images.npy``, uint8 (10000, 28, 28, 1), and
            ``<corruption>/test_labels.npy``.
        corruptions: names, or ``all``.
    """

    root: str
    corruptions: str | list[str] = "all"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        self._names()

    def _names(self) -> tuple[str, ...]:
        return chosen(self.corruptions, {"mnist_c": MNIST_C}, "corruption of MNIST-C")

    def check(self) -> None:
        """Look for the files."""
        kinds = ("test_images", "test_labels")
        _check_files(self.root, [f"{name}/{kind}.npy" for name in self._names() for kind in kinds])

    def loader(self, setting: Setting) -> Any:
        """Map the files and return the loader; see `Shift`."""
        self.check()
        parts, targets = {}, []
        for name in self._names():
            folder = Path(self.root, name)
            labels = _read_labels(folder / "test_labels.npy", setting)
            _compare(labels, folder / "test_labels.npy", setting)
            parts[name] = _read_images(folder / "test_images.npy", len(labels), (28, 28, 1))
            targets.append(labels)
        channels = len(setting.how.mean)
        return ArrayImages(parts, targets, setting.classes, channels).loader(setting)


def _check_files(root: str, names: Sequence[str]) -> None:
    missing = [name for name in names if not Path(root, name).is_file()]
    if missing:
        found = sorted(p.name for p in Path(root).iterdir()) if Path(root).is_dir() else []
        there = f"there are {', '.join(found[:25])}" if found else "it does not exist or is empty"
        raise FileNotFoundError(
            f"no {missing[0]} in {Path(root).absolute()} ({len(missing)} of {len(names)} files are "
            f"missing; {there}): unpack the published archive there, or choose fewer corruptions"
        )


def _read(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} is truncated or no NumPy array ({error}): unpack it again"
        ) from error
    return array


def _read_images(path: Path, count: int, size: tuple[int, int, int]) -> NDArray[np.uint8]:
    images = _read(path)
    if images.shape[1:] == size[:2] and size[2] == 1:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape != (count, *size):
        raise ValueError(
            f"{path}: {images.dtype} of shape {images.shape}; {count} labels want uint8 "
            f"{(count, *size)}"
        )
    return images


def _read_labels(path: Path, setting: Setting) -> NDArray[np.int64]:
    labels = _read(path)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: {labels.dtype} of shape {labels.shape}; labels are integers (n,)"
        )
    found = set(np.unique(labels).tolist())
    if not found <= set(range(len(setting.classes))):
        raise ValueError(
            f"{path}: labels from {min(found)} to {max(found)}, but the DataModule has "
            f"{len(setting.classes)} classes"
        )
    if missing := sorted(set(range(len(setting.classes))) - found):
        raise ValueError(
            f"{path}: no image of class {missing[0]} ({setting.classes[missing[0]]}), "
            f"{len(found)} of the DataModule's {len(setting.classes)} classes: is it another set's?"
        )
    return np.asarray(labels, np.int64)


def _compare(labels: NDArray[np.int64], path: Path, setting: Setting) -> None:
    """Compare with the DataModule's test set, if that is as large and in its published order."""
    own = np.asarray(setting.own.targets, np.int64)
    if len(own) != len(labels):
        return
    by_class = bool((np.diff(own) >= 0).all())  # read from a tree: another order
    differ = np.flatnonzero(own != (np.sort(labels) if by_class else labels))
    if len(differ):
        first = int(differ[0])
        raise ValueError(
            f"{path} disagrees with the DataModule's test set in {len(differ)} of {len(own)} "
            f"labels, first in example {first}: {labels[first]}, not {own[first]}. Is it another "
            "set's, or are the classes numbered otherwise?"
        )
