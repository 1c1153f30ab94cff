import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from firstlight.datamodules import CIFAR10DataModule, CIFAR100DataModule

REAL = Path(__file__).parents[2] / "data/cifar10"


def test_a_tree_is_read_in_order(cifar_root):
    data = CIFAR10DataModule(str(cifar_root), val=0, holdout=0)
    data.setup("fit")
    assert data.class_names == ["bird", "cat", "dog"]
    assert data.class_counts == [40, 40, 40]
    files = sorted((cifar_root / "train").rglob("*.png"))
    for position in (0, 39, 40, 119):
        image, target = data._splits.train[position]
        assert (
            image.permute(1, 2, 0).numpy().tolist()
            == np.asarray(Image.open(files[position])).tolist()
        )
        assert data.class_names[target] == files[position].parent.name
    assert len(data._splits.test) == 15


def test_the_long_tail_of_a_tree_is_the_one_of_the_whole(cifar_root):
    whole = CIFAR10DataModule(str(cifar_root), val=0, holdout=0)
    whole.setup("fit")
    tail = CIFAR10DataModule(str(cifar_root), val=0, holdout=0, imbalance_factor=10)
    tail.setup("fit")
    kept = whole._kept(whole._splits.train.targets, whole.class_names)
    assert len(kept) == 120  # no factor, nothing dropped
    kept = tail._kept(whole._splits.train.targets, whole.class_names)
    assert torch.equal(tail._splits.train.images, whole._splits.train.images[kept])
    assert tail.class_counts == [40, 12, 4]


def test_published_normalisation_and_native_size():
    for data in (CIFAR10DataModule(), CIFAR100DataModule()):
        assert data.mean == (0.4914, 0.4822, 0.4465)
        assert data.std == (0.2023, 0.1994, 0.2010)
        assert (data.img_size, data.preprocessing.crop_pct) == (32, 1.0)


def test_missing_data_names_both_layouts_and_the_switch(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        CIFAR10DataModule(str(tmp_path)).setup("fit")
    for part in ("cifar-10-batches-py", "train/<class>", "test/<class>", "download"):
        assert part in str(error.value)


def spoil(root, how):
    if how == "wrong size":
        Image.new("RGB", (31, 32)).save(root / "train/cat/007.png")
        return "train/cat/007.png", "31 x 32"
    if how == "truncated":
        file = root / "train/dog/003.png"
        file.write_bytes(file.read_bytes()[:400])
        return "train/dog/003.png", "cannot read"
    if how == "no image":
        (root / "test/dog/001.png").write_text("not an image")
        return "test/dog/001.png", "cannot read"
    if how == "empty class":
        (root / "train/emu").mkdir()
        return "train/emu", "holds no image"
    if how == "class of the test set only":
        (root / "test/emu").mkdir()
        Image.new("RGB", (32, 32)).save(root / "test/emu/0.png")
        return "test/emu", "no class 'emu' in the training set"
    for file in (root / "test/cat").iterdir():
        file.unlink()
    (root / "test/cat").rmdir()
    return "test/cat", "missing"


@pytest.mark.parametrize(
    "how",
    [
        "wrong size",
        "truncated",
        "no image",
        "empty class",
        "class of the test set only",
        "class of the training set only",
    ],
)
def test_bad_files_are_named(cifar_root, how):
    place, what = spoil(cifar_root, how)
    with pytest.raises(ValueError) as error:
        CIFAR10DataModule(str(cifar_root)).setup("fit")
    assert place in str(error.value)
    assert what in str(error.value)


def test_a_tree_without_test_images_is_refused(tree, tmp_path):
    tree(tmp_path / "train", {"a": 2})
    with pytest.raises(FileNotFoundError, match="no test/"):
        CIFAR10DataModule(str(tmp_path)).setup("fit")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in torchvision's format, with the checksums to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    pixels = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for name in ("data_batch_1", "test_batch"):
        pixels[name] = random.integers(0, 256, (40, 3072), dtype=np.uint8)
    labels = [i % 4 for i in range(40)]
    lists = {
        "train_list": [write("data_batch_1", {"data": pixels["data_batch_1"], "labels": labels})],
        "test_list": [write("test_batch", {"data": pixels["test_batch"], "labels": labels})],
    }
    name, md5 = write("batches.meta", {"label_names": ["a", "b", "c", "d"]})
    for key, value in lists.items():
        monkeypatch.setattr(datasets.CIFAR10, key, value)
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5}
    )
    return tmp_path, pixels


def test_torchvisions_archive_is_read(archive):
    root, pixels = archive
    data = CIFAR10DataModule(str(root), val=0, holdout=0)
    data.setup("fit")
    assert torch.equal(
        data._splits.train.images, torch.from_numpy(pixels["data_batch_1"]).view(40, 3, 32, 32)
    )
    assert data.class_names == ["a", "b", "c", "d"]
    assert data.class_counts == [10] * 4


def test_an_altered_archive_is_refused(archive):
    root, _ = archive
    (root / "cifar-10-batches-py/test_batch").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"incomplete or altered.*download=True"):
        CIFAR10DataModule(str(root)).setup("fit")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the CIFAR-10 images under data/cifar10")
def test_real_long_tail():
    data = CIFAR10DataModule(str(REAL), imbalance_factor=100)
    data.setup("fit")
    assert data.full_class_counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert len(data._splits.test) == 10_000
