"""Run the command line; data of the published layouts, small."""

import itertools
import shutil
import struct
import sys

import numpy as np
import published_trees
import pytest
from PIL import Image

from firstlight import cli
from firstlight.data import data_pack
from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.array_shifts import MNIST_C
from firstlight.functional.corruptions import BENCHMARK, PUBLISHED


@pytest.fixture
def firstlight(monkeypatch, tmp_path, capsys):
    """Run the command line in a folder of its own; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["firstlight", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err + str(stop.code)
        return capsys.readouterr().out

    return run


@pytest.fixture
def images(tmp_path):
    """Two classes of twelve small images, told apart by colour."""
    for index in range(12):
        for name, colour in {"blue": (20, 30, 220), "red": (220, 40, 30)}.items():
            file = tmp_path / "data/images" / name / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), tuple(c + index for c in colour)).save(file)
    return tmp_path / "data/images"


@pytest.fixture
def packed(images, tmp_path):
    """The two classes, packed."""
    data_pack(ImageFolderDataModule(str(images)), tmp_path / "data/packed")


@pytest.fixture
def domains(images, tmp_path):
    """The two classes in four domains."""
    for name in ("Real World", "Art", "Clipart", "Product"):
        shutil.copytree(images, tmp_path / "data/office_home" / name)


@pytest.fixture
def cifar(tmp_path):
    """The folder layout of CIFAR with ten classes of eight images."""
    for name in ("cifar10", "cifar100"):
        classes = 10 if name == "cifar10" else 100
        for split, number in (("train", 8), ("test", 1)):
            for c, index in itertools.product(range(classes), range(number)):
                file = tmp_path / "data" / name / split / f"class_{c:03}" / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (c * 2, index * 20, 99)).save(file)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """IDX files of eight images of every digit, two to test, and MNIST-C of those."""
    root = tmp_path / "data/mnist"
    root.mkdir(parents=True)
    for split, count in (("train", 80), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.full((count, 28, 28), 9 * labels[:, None, None], np.uint8)
        (root / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    for name in MNIST_C:
        (tmp_path / "data/mnist_c" / name).mkdir(parents=True)
        np.save(tmp_path / "data/mnist_c" / name / "test_images.npy", images[..., None])
        np.save(tmp_path / "data/mnist_c" / name / "test_labels.npy", labels)


@pytest.fixture
def shifted(tmp_path, cifar, mnist):
    """Every shifted set of the configs beside its own data, in the published layouts."""
    (tmp_path / "data/CIFAR-10-C").mkdir()
    np.save(tmp_path / "data/CIFAR-10-C/labels.npy", np.tile(np.arange(10), 5))
    for name in itertools.chain(*PUBLISHED.values()):
        images = np.full((50, 32, 32, 3), 99, np.uint8)
        np.save(tmp_path / f"data/CIFAR-10-C/{name}.npy", images)
    roots = [
        *(f"own/{split}" for split in ("train", "test")),
        *(f"imagenet-c/{name}/{level}" for name in BENCHMARK for level in range(1, 6)),
        "imagenet-r", "imagenet-a", "sketch",
    ]  # fmt: skip
    for root, (number, wnid) in itertools.product(roots, enumerate(("n01440764", "n01443537"))):
        for index in range(6 if "train" in root else 1):
            file = tmp_path / "data" / root / wnid / f"{index}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (number * 90, index, 7)).save(file)
    v2 = tmp_path / "data/imagenetv2-matched-frequency-format-val"
    shutil.copytree(tmp_path / "data/sketch/n01440764", v2 / "0")
    shutil.copytree(tmp_path / "data/sketch/n01443537", v2 / "1")


@pytest.fixture
def published(tmp_path):
    """ImageNet, ImageNet-LT and both iNaturalists in their layouts, three classes each."""
    published_trees.write_imagenet(tmp_path / "data/imagenet")
    published_trees.write_imagenet_lt(tmp_path / "data/ImageNet_LT")
    published_trees.write_inat2018(tmp_path / "data/inaturalist2018")
    published_trees.write_inat2021(tmp_path / "data/inaturalist2021")
