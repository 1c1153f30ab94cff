import pytest
import torch
from sklearn.datasets import load_digits

from firstlight.datamodules import DigitsDataModule
from firstlight.datamodules.splits import Splits


def whole(**arguments) -> Splits:
    data = DigitsDataModule(val=0, holdout=0, **arguments)
    data.setup("fit")
    return data._splits


def test_all_images_are_there_once_with_their_labels():
    splits = whole(channels=1)
    bunch = load_digits()
    images = torch.cat([splits.train.images, splits.test.images]).squeeze(1)
    ours = sorted(
        (i.flatten().tolist(), t)
        for i, t in zip(images, splits.train.targets + splits.test.targets, strict=True)
    )
    grey = (bunch.images / 16 * 255).round().astype(int)
    theirs = sorted(
        (i.flatten().tolist(), t) for i, t in zip(grey, bunch.target.tolist(), strict=True)
    )
    assert ours == theirs


def test_default_mean_and_deviation_are_those_of_the_images():
    data = DigitsDataModule()
    pixels = torch.from_numpy(load_digits().images / 16)
    assert data.mean == pytest.approx([pixels.mean().item()] * 3, rel=1e-3)
    assert data.std == pytest.approx([pixels.std().item()] * 3, rel=1e-3)


def test_three_channels_are_the_grey_one():
    images = whole().train.images
    assert images.shape[1:] == (3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_the_test_set_is_the_same_under_every_seed_and_imbalance():
    sets = [whole(seed=0), whole(seed=9), whole(seed=9, imbalance_factor=50)]
    assert all(torch.equal(sets[0].test.images, s.test.images) for s in sets)
    assert 350 < len(sets[0].test) < 370


def test_long_tail():
    data = DigitsDataModule(imbalance_factor=139)
    data.setup("fit")
    assert data.full_class_counts[0] == 139
    assert data.full_class_counts[-1] == data.class_counts[-1] == 1
    assert "too small" in data.summary()
    with pytest.raises(ValueError, match=r"leaves class 9 \('nine'\) empty"):
        DigitsDataModule(imbalance_factor=140).setup("fit")


def test_a_fraction_is_refused_before_any_data_is_read():
    with pytest.raises(ValueError, match=r"did you mean 100\?"):
        DigitsDataModule(imbalance_factor=0.01)


@pytest.mark.parametrize("arguments", [{"channels": 2}, {"crop_padding": -1}, {"erasing": 1.5}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DigitsDataModule(**arguments)


def test_digits_are_not_mirrored_and_keep_to_the_frame():
    """Every augmented image is one of the nine shifts of an original, none a mirror image."""
    data = DigitsDataModule(channels=1, batch_size=50, mean=[0.0], std=[1.0])
    data.setup("fit")
    loader = data.train_dataloader()
    images = next(iter(loader))[0].mul(255).round().byte()
    for image, index in zip(images, loader.sampler, strict=False):
        padded = torch.nn.functional.pad(loader.dataset[index][0], (1, 1, 1, 1))
        shifts = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        assert any(torch.equal(image, shift) for shift in shifts)


def test_resized_to_what_is_asked():
    data = DigitsDataModule(img_size=32, batch_size=8)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[0].shape == (8, 3, 32, 32)


def test_plain_training_images_are_the_originals_in_order():
    data = DigitsDataModule(channels=1, batch_size=50, mean=[0.0], std=[1.0], imbalance_factor=5)
    data.setup("fit")
    images, targets = map(torch.cat, zip(*data.plain_train_dataloader(), strict=True))
    assert torch.equal(images.mul(255).round().byte(), data._splits.train.images)
    assert torch.bincount(targets).tolist() == data.class_counts
