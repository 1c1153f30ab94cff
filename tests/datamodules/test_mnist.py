"""MNIST from IDX files in the layouts that users have."""

import gzip
import struct

import numpy as np
import pytest
import torch
from torchvision.datasets import mnist as torchvision_mnist

from firstlight.datamodules import MNISTDataModule
from firstlight.datamodules.mnist import read_idx

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
         "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(root, counts=(200, 40), packed=False):
    random = np.random.default_rng(0)
    root.mkdir(parents=True)
    for split, count in zip((NAMES[:2], NAMES[2:]), counts, strict=True):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        for name, array in zip(split, (images, labels), strict=True):
            path = root / (name + (".gz" if packed else ""))
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return root


@pytest.mark.parametrize("layout", ["plain", "packed", "torchvision", "dots"])
def test_every_layout_is_read(layout, tmp_path):
    root = tmp_path / ("m/MNIST/raw" if layout == "torchvision" else "m")
    write(root, packed=layout == "packed")
    if layout == "dots":
        for name in NAMES:
            (root / name).rename(root / name.replace("-idx", ".idx"))
    data = MNISTDataModule(str(tmp_path / "m"), batch_size=16, channels=1)
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (16, 1, 28, 28)
    assert data.full_class_counts == [20] * 10
    assert len(data.test_dataloader().dataset) == 40


def test_the_reader_agrees_with_torchvisions(tmp_path):
    root = write(tmp_path / "m")
    for name in NAMES:
        theirs = torchvision_mnist.read_sn3_pascalvincent_tensor(str(root / name))
        assert torch.equal(torch.from_numpy(read_idx(root / name)), theirs)


def test_grey_is_shown_three_times_and_normalised(tmp_path):
    write(tmp_path / "m")
    data = MNISTDataModule(str(tmp_path / "m"))
    data.setup("test")
    images, targets = next(iter(data.test_dataloader()))
    raw = read_idx(tmp_path / "m" / NAMES[2])[: len(images)] / 255
    assert torch.equal(images[:, 0], images[:, 2])
    assert np.allclose(images[:, 1], (raw - 0.1307) / 0.3081, atol=1e-5)
    assert targets[:11].tolist() == [*range(10), 0]


def damage(path, how):
    raw = path.read_bytes()
    path.write_bytes(
        {
            "truncated": raw[:-5],
            "header": raw[:7],
            "zero": b"",
            "kind": b"PK" + raw,
            "within": raw[:12] + bytes(4) + raw[16:],  # of the IDX file: its number of columns
        }[how]
    )


@pytest.mark.parametrize("how", ["truncated", "header", "zero", "kind", "within"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_named(how, packed, tmp_path):
    root = write(tmp_path / "m", packed=packed)
    name = NAMES[0] + (".gz" if packed else "")
    damage(root / name, how)
    with pytest.raises(ValueError, match=rf"{NAMES[0]}.*"):
        MNISTDataModule(str(root)).setup("fit")


def test_what_does_not_fit_together_is_refused(tmp_path):
    root = write(tmp_path / "m")
    (root / NAMES[1]).write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(ValueError, match=r"shape \(200, 28, 28\).*\(7,\)"):
        MNISTDataModule(str(root)).setup("fit")
    (root / NAMES[1]).write_bytes(idx(np.full(200, 10, np.uint8)))
    with pytest.raises(ValueError, match="labels up to 10"):
        MNISTDataModule(str(root)).setup("fit")
    (root / NAMES[1]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no train-labels-idx1-ubyte .*MNIST/raw.*download"
    ):
        MNISTDataModule(str(root)).setup("fit")
    with pytest.raises(ValueError, match="channels is 3 or 1"):
        MNISTDataModule(str(root), channels=2)
