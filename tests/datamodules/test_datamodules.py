"""What every DataModule promises, over all of them."""

import json
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn

from firstlight.datamodules import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    ImageFolderDataModule,
)

KINDS = ["digits", "digits long-tailed", "cifar10", "cifar100", "folder"]


@pytest.fixture(params=KINDS)
def make(request, cifar_root, folder_root):
    """A function from changed arguments to a new DataModule of one kind."""
    kind = request.param
    arguments = {"batch_size": 16, "seed": 3, "probe_size": 20}

    def build(**changes):
        given = arguments | changes
        if kind.startswith("digits"):
            factor = 20 if "long" in kind else None
            return DigitsDataModule(imbalance_factor=factor, **given)
        if kind == "folder":
            given = {"num_workers": 0, "img_size": 16} | given
            return ImageFolderDataModule(str(folder_root), **given)
        cls = CIFAR10DataModule if kind == "cifar10" else CIFAR100DataModule
        return cls(str(cifar_root), **given)

    return build


def examples(loader):
    """The images of all batches, as bytes."""
    return [image.numpy().tobytes() for images, _ in loader for image in images]


class Anyones(pl.LightningModule):
    """A LightningModule that knows nothing of firstlight."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 10))

    def _loss(self, batch):
        images, targets = batch
        return nn.functional.cross_entropy(self.net(images), targets)

    def training_step(self, batch, batch_idx):
        return self._loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val", self._loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test", self._loss(batch))

    def predict_step(self, batch, batch_idx):
        images, _ = batch
        return self.net(images)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(tmp_path, **arguments):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **({"max_epochs": 1} | arguments),
    )


def test_works_without_a_trainer(make):
    data = make()
    data.setup("fit")
    images, targets = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32
    assert targets.dtype == torch.int64
    size = data.img_size
    assert images.shape == (16, 3, size, size)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", None])
def test_names_and_counts_after_any_stage(make, stage):
    data = make()
    data.setup(stage)
    assert data.num_classes == len(data.class_names) == len(data.class_counts)
    assert (
        data.class_counts
        == torch.bincount(torch.tensor(data.train_dataloader().dataset.targets)).tolist()
    )
    assert min(data.class_counts) >= 1
    assert len(data.mean) == len(data.std) == 3
    pairs = zip(data.full_class_counts, data.class_counts, strict=True)
    assert all(full >= kept for full, kept in pairs)


def test_slices_are_disjoint_and_complete(make):
    data = make()
    data.setup("fit")
    sizes = [len(data._splits.train), len(data._splits.holdout)]
    rows = [
        [image.tobytes() for image in _raw(part)]
        for part in (data._splits.train, data._splits.holdout)
    ]
    if data.protocol == "honest" and not isinstance(data, ImageFolderDataModule):
        sizes.append(len(data._splits.val))
        rows.append([image.tobytes() for image in _raw(data._splits.val)])
    assert sum(sizes) == sum(data.full_class_counts)
    if not isinstance(data, DigitsDataModule):  # some digits occur twice in the published data
        together = [row for part in rows for row in part]
        assert len(set(together)) == len(together)


def _raw(part):
    if hasattr(part, "images"):
        return [image.numpy() for image in part.images]
    return [np.array([path]) for path in part.paths]


def test_probe_is_fixed_unaugmented_training_data(make):
    data = make()
    data.setup("fit")
    one, two = (examples(data.probe_dataloader()) for _ in range(2))
    assert one == two
    assert len(one) == min(20, sum(data.class_counts))
    unaugmented = set(examples(data._eval_loader(data._splits.train)))
    assert set(one) <= unaugmented


def test_evaluation_is_sequential_in_one_process(make):
    data = make()
    data.setup("test")
    for loader in (data.val_dataloader(), data.test_dataloader(), data.holdout_dataloader()):
        assert isinstance(loader.sampler, torch.utils.data.SequentialSampler)
        targets = [t for _, batch in loader for t in batch.tolist()]
        assert targets == loader.dataset.targets
        assert examples(loader) == examples(loader)


def test_the_seed_decides_splits_and_augmentations(make):
    def first_batch(seed):
        data = make(seed=seed)
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    assert torch.equal(first_batch(1)[0], first_batch(1)[0])
    assert not torch.equal(first_batch(1)[0], first_batch(2)[0])


def test_epochs_differ_and_repeat(make):
    data = make()
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        epochs.append(examples(loader))
    assert epochs[0] == epochs[2] != epochs[1]
    assert len(epochs[0]) == sum(data.class_counts)


def test_global_random_states_are_untouched(make):
    torch.manual_seed(123)  # a state that no earlier test left
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data = make()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.probe_dataloader()):
        list(loader)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_anyones_module_trains_validates_tests_and_predicts(make, tmp_path, folder_root):
    data = make(predict_dir=str(folder_root))
    module = Anyones(3 * data.img_size**2)
    run = trainer(tmp_path)
    run.fit(module, data)
    run.validate(module, data, verbose=False)
    run.test(module, data, verbose=False)
    outputs = run.predict(module, data)
    paths = run.predict_dataloaders.dataset.paths
    assert sum(map(len, outputs)) == len(paths) == 58
    assert paths == sorted(str(path) for path in folder_root.rglob("*.jpg"))


def test_checkpoint_loads_with_weights_only_and_rebuilds(make, tmp_path):
    data = make()
    run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    run.fit(Anyones(3 * data.img_size**2), data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert json.loads(json.dumps(dict(data.hparams))) == dict(data.hparams)
    again = type(data).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    again.setup("fit")
    assert again.seed == 3
    assert again._splits.fingerprint == data._splits.fingerprint
    assert stored[type(data).__qualname__]["train"] == data._splits.fingerprint


def test_resuming_with_other_examples_warns(make):
    data, other = make(), make(seed=4)
    data.setup("fit")
    other.setup("fit")
    data.load_state_dict(data.state_dict())
    with pytest.warns(UserWarning, match="trained on other examples"):
        other.load_state_dict(data.state_dict())


def test_legacy_validates_on_the_test_set_and_says_so(make):
    data = make(protocol="legacy")
    with pytest.warns(UserWarning, match="validation is the test set"):
        data.setup("fit")
    assert examples(data.val_dataloader()) == examples(data.test_dataloader())
    assert data.class_counts == data.full_class_counts
    with pytest.raises(ValueError, match="pass holdout"):
        data.holdout_dataloader()


@pytest.mark.filterwarnings("ignore:protocol='legacy'")
def test_legacy_holds_out_on_request(make):
    data = make(protocol="legacy", holdout=0.2)
    data.setup("fit")
    assert len(data._splits.holdout) + sum(data.class_counts) == sum(data.full_class_counts)


@pytest.mark.filterwarnings("ignore:Total length of `list`")  # Lightning, of no validation
def test_refit_on_everything(make, tmp_path):
    data = make(val=0, holdout=0)
    trainer(tmp_path, limit_train_batches=1).fit(Anyones(3 * data.img_size**2), data)
    assert data.class_counts == data.full_class_counts


def test_overfitting_a_batch_works(make, tmp_path):
    trainer(tmp_path, overfit_batches=1).fit(Anyones(3 * make().img_size ** 2), make())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "fair"}, "honest.*legacy.*fair"),
        ({"protocol": "legacy", "val": 0.1}, "validates on the test set"),
        ({"val": 1.5}, r"val is a share.*1\.5"),
        ({"val": 0.5, "holdout": 0.5}, "nothing to train on"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"img_size": 0}, "img_size"),
        ({"mean": [0.5]}, "mean has 1 values for 3 channels"),
        ({"interpolation": "nearest"}, "bilinear.*nearest"),
        ({"model_name": "resnet81"}, "no model named 'resnet81'; near names: resnet"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_the_backbone_decides_preprocessing_and_the_summary_says_so(make):
    data = make(model_name="vit_small_patch16_384", img_size=24)
    data.setup("fit")
    assert data.mean == (0.5, 0.5, 0.5)
    assert data.img_size == 24
    summary = data.summary()
    assert "argument: img_size" in summary
    assert "vit_small_patch16_384" in summary
    for part in (data._splits.train, data._splits.test):
        assert str(len(part)) in summary


def test_seed_follows_the_run(make, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert make(seed=None).seed == 11
    assert make(seed=None).hparams["seed"] == 11
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert make(seed=None).seed == 0


# Lightning's own use of jsonargparse
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("DigitsDataModule", "channels", 1),
        ("CIFAR10DataModule", "imbalance_factor", 50),
        ("CIFAR100DataModule", "download", True),
        ("ImageFolderDataModule", "horizontal_flip", 0.0),
    ],
)
def test_command_line_takes_arguments_of_class_and_bases(name, option, value, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fit"])
    arguments = ["--data.mean=[0.1]", "--data.std=[0.2]"] if name.startswith("Digits") else []
    cli = LightningCLI(
        Anyones,
        pl.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        run=False,
        seed_everything_default=0,
        args=[
            "--model.pixels=3",
            f"--data=firstlight.datamodules.{name}",
            f"--data.{option}={value}",
            "--data.holdout=0.05",
            "--data.img_size=16",
            "--trainer.logger=false",
            *arguments,
        ],
    )
    assert getattr(cli.datamodule, option) == value
    assert cli.datamodule.holdout == 0.05
    assert cli.datamodule.img_size == 16
