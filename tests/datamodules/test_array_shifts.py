"""CIFAR-10-C and MNIST-C in their published layouts, made here."""

import numpy as np
import pytest
import torch

from firstlight.datamodules import CIFARC, MNISTC, CIFAR10DataModule, DigitsDataModule
from firstlight.datamodules.array_shifts import MNIST_C
from firstlight.datamodules.digits import _NAMES
from firstlight.functional.corruptions import BENCHMARK

N = 15  # test images of the fixture: birds, cats, dogs


def write_cifar_c(root, names=BENCHMARK, labels=(0,) * 6 + (1,) * 5 + (2,) * 4, shape=(32, 32, 3)):
    root.mkdir()
    np.save(root / "labels.npy", np.tile(labels, 5))
    count = 5 * len(labels)
    for number, name in enumerate(names):
        images = np.zeros((count, *shape), np.uint8)
        images[:, 0, 0] = np.arange(count)[:, None] if len(shape) == 3 else 0
        images[:, 1:] = number
        np.save(root / f"{name}.npy", images)
    return root


@pytest.fixture
def cifar(cifar_root, tmp_path):
    write_cifar_c(tmp_path / "C")

    def module(shift=None, **kwargs):
        sets = {"c": shift or CIFARC(str(tmp_path / "C"))}
        data = CIFAR10DataModule(
            str(cifar_root), mean=[0] * 3, std=[1] * 3, eval_batch_size=4, test_sets=sets, **kwargs
        )
        data.setup("test")
        return data

    return module


def test_severities_lie_one_after_another(cifar, tmp_path):
    loader = cifar(CIFARC(str(tmp_path / "C"), ["fog", "snow"], [5, 2])).test_dataloader()["c"]
    assert loader.dataset.sections == ["fog/5", "fog/2", "snow/5", "snow/2"]
    pixels = (torch.cat([x for x, _ in loader]) * 255).round()
    first = pixels[:, 0, 0, 0].tolist()
    assert first == [*range(4 * N, 5 * N), *range(N, 2 * N)] * 2
    assert pixels[:, 1, 5, 5].tolist() == [9.0] * 30 + [7.0] * 30  # places in BENCHMARK
    assert torch.cat([y for _, y in loader]).tolist() == ([0] * 6 + [1] * 5 + [2] * 4) * 4
    image, target = loader.dataset[31]
    assert (image[0, 0, 0], target) == (61, 0)


def test_the_benchmark_is_fifteen_by_five(cifar):
    loader = cifar().test_dataloader()["c"]
    assert len(loader.dataset) == 15 * 5 * N
    assert loader.dataset.sections[::5] == [f"{name}/1" for name in BENCHMARK]


def test_the_published_size_is_mapped_not_read(tmp_path):
    """50,000 images of a sparse file; only what is asked for is read."""
    labels = np.arange(10_000) % 10
    np.save(tmp_path / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    file = np.lib.format.open_memmap(tmp_path / "fog.npy", "w+", np.uint8, (50_000, 32, 32, 3))
    file[20_003] = 7
    del file
    data = DigitsDataModule(test_sets={"c": CIFARC(str(tmp_path), "fog", 3)})
    data.setup("test")
    dataset = data.test_dataloader()["c"].dataset
    assert len(dataset) == 10_000
    assert (dataset[3][0] == 7).all()
    assert dataset[3][1] == 3


def spoil(root, how):
    labels, fog = np.load(root / "labels.npy"), np.load(root / "fog.npy")
    if how == "missing":
        (root / "fog.npy").unlink()
    elif how == "truncated":
        raw = (root / "fog.npy").read_bytes()
        (root / "fog.npy").write_bytes(raw[:-9])
    elif how == "empty":
        (root / "fog.npy").write_bytes(b"")
    elif how == "pickled":
        np.save(root / "fog.npy", np.array([{}], object), allow_pickle=True)
    elif how == "dtype":
        np.save(root / "fog.npy", fog.astype(np.float32))
    elif how == "shape":
        np.save(root / "fog.npy", fog[:, :28])
    elif how == "length":
        np.save(root / "fog.npy", fog[:-1])
    elif how == "labels of one":
        np.save(root / "labels.npy", labels[:N])
    elif how == "not five times":
        labels[N] = 2
        np.save(root / "labels.npy", labels)
    elif how == "other counts":
        np.save(root / "labels.npy", np.tile([0] * 5 + [1] * 6 + [2] * 4, 5))
    elif how == "fewer classes":
        np.save(root / "labels.npy", labels.clip(max=1))
    elif how == "more classes":
        np.save(root / "labels.npy", labels + 1)
    elif how == "float labels":
        np.save(root / "labels.npy", labels.astype(float))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"no fog\.npy in .*1 of 16 files are missing; there are brightness\.npy"),
        ("truncated", r"fog\.npy is truncated"),
        ("empty", r"fog\.npy is truncated or no NumPy array"),
        ("pickled", r"fog\.npy is truncated or no NumPy array"),
        ("dtype", r"fog\.npy: float32 of shape \(75, 32, 32, 3\); 75 labels want uint8"),
        ("shape", r"fog\.npy: uint8 of shape \(75, 28, 32, 3\)"),
        ("length", r"fog\.npy: uint8 of shape \(74, "),
        ("labels of one", "15 labels are not those of one test set, five times over"),
        ("not five times", "75 labels are not those of one test set"),
        ("other counts", r"disagrees with the DataModule's test set in 1 of 15 labels.*example 5"),
        ("fewer classes", r"no image of class 2 \(dog\), 2 of the DataModule's 3 classes"),
        ("more classes", "labels from 1 to 3, but the DataModule has 3 classes"),
        ("float labels", r"labels\.npy: float64 .*labels are integers"),
    ],
)
def test_bad_files_are_named(how, message, cifar, tmp_path):
    spoil(tmp_path / "C", how)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cifar().test_dataloader()


def test_labels_in_the_published_order_are_compared_one_by_one(tmp_path):
    """The order matters where the own set is not read from a tree, by class."""
    data = DigitsDataModule()
    data.setup("test")
    own = np.array(data.test_dataloader().dataset.targets)
    write_cifar_c(tmp_path / "C", ["fog"], own)
    shift = CIFARC(str(tmp_path / "C"), "fog")
    fitting = DigitsDataModule(test_sets={"c": shift})
    fitting.setup("test")
    assert len(fitting.test_dataloader()["c"].dataset) == 5 * 359
    at = int(np.flatnonzero(own != own[0])[0])
    own[[0, at]] = own[[at, 0]]
    np.save(tmp_path / "C/labels.npy", np.tile(own, 5))
    with pytest.raises(ValueError, match=r"disagrees .* in 2 of 359 labels, first in example 0"):
        fitting.test_dataloader()


def write_mnist_c(root, labels, names=MNIST_C):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        np.save(
            root / name / "test_images.npy", np.full((len(labels), 28, 28, 1), number, np.uint8)
        )
        np.save(root / name / "test_labels.npy", labels)
    return root


@pytest.mark.parametrize("channels", [1, 3])
def test_mnist_c(channels, tmp_path):
    labels = np.arange(20) % 10
    root = str(write_mnist_c(tmp_path / "mnist_c", labels))
    data = DigitsDataModule(
        img_size=28, channels=channels, mean=[0.0] * channels, std=[1.0] * channels,
        test_sets={"all": MNISTC(root), "fog": MNISTC(root, "fog")},
    )  # fmt: skip
    data.setup("test")
    _, every, fog = data.test_dataloader().values()
    assert every.dataset.sections == list(MNIST_C)
    assert every.dataset.classes == _NAMES
    images, targets = next(iter(fog))
    assert images.shape == (20, channels, 28, 28)
    assert torch.equal((images * 255).round(), torch.full_like(images, MNIST_C.index("fog")))
    assert targets.tolist() == labels.tolist()
    np.save(tmp_path / "mnist_c/fog/test_images.npy", np.zeros((20, 28, 28), np.uint8))
    assert next(iter(data.test_dataloader()["fog"]))[0].shape == (20, channels, 28, 28)
    (tmp_path / "mnist_c/fog/test_labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no fog/test_labels\.npy"):
        data.test_dataloader()
    with pytest.raises(ValueError, match="no corruption of MNIST-C 'snow'"):
        MNISTC("r", "snow")


def test_colour_is_not_shown_as_grey(tmp_path):
    write_cifar_c(tmp_path / "C", ["fog"], np.arange(10))
    data = DigitsDataModule(channels=1, test_sets={"c": CIFARC(str(tmp_path / "C"), "fog")})
    data.setup("test")
    with pytest.raises(ValueError, match="images of 3 channels for a DataModule of 1"):
        data.test_dataloader()
