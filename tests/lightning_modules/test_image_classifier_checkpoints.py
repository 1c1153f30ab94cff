"""Checkpoints of ImageClassifier: what they rebuild, what they refuse, and exact resuming."""

import functools

import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from firstlight.lightning_modules import ImageClassifier, WarmupCosineLR

OTHER_CALLBACKS = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def classifier(**arguments):
    torch.manual_seed(0)
    return ImageClassifier(**({"model_name": "resnet20_cifar", "optimizer": SGD} | arguments))


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_checkpoint_rebuilds_the_same_objects(data, make_trainer, tmp_path):
    module = classifier(
        loss=nn.CrossEntropyLoss(torch.tensor([0.1, 2.0, 0.7, 1.0]), label_smoothing=0.1),
        optimizer=functools.partial(torch.optim.AdamW, lr=0.01, betas=(0.8, 0.9)),
        lr_scheduler=functools.partial(WarmupCosineLR, warmup=1, total=3),
        seed=5,
    )
    trainer = make_trainer()
    trainer.fit(module, datamodule=data)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["pretrained"] is False
    loaded = ImageClassifier.load_from_checkpoint(path)
    images = data.examples(1)[0]
    assert torch.equal(module.eval()(images), loaded.eval()(images))
    assert type(loaded.loss) is nn.CrossEntropyLoss and loaded.loss.label_smoothing == 0.1
    assert torch.equal(loaded.loss.weight, module.loss.weight)
    assert loaded.class_names == module.class_names
    assert loaded.hparams == {**module.hparams, "pretrained": False, "checkpoint_path": None}
    one, other = (m.configure_optimizers() for m in (module, loaded))
    assert one["optimizer"].defaults == other["optimizer"].defaults
    assert one["lr_scheduler"]["scheduler"].total == other["lr_scheduler"]["scheduler"].total
    assert loaded.hparams["seed"] == 5


def test_pretrained_weights_are_not_read_again(data, make_trainer, tmp_path, caplog):
    source = tmp_path / "weights.pt"
    torch.save(timm.create_model("resnet20_cifar").state_dict(), source)
    module, trainer = classifier(checkpoint_path=str(source)), make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=data)
    expected = {"source": "file", "location": str(source), "head": "new"}
    assert module.weights_from == expected
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    source.unlink()
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.weights_from == expected
    assert same(weights_of(loaded), weights_of(module))


def test_checkpoints_of_other_models_are_refused_by_name(data, make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(classifier(), datamodule=data)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    other = classifier(model_name="resnet32_cifar")
    with pytest.raises(ValueError, match="checkpoint holds resnet20_cifar, the model is resnet32"):
        make_trainer().fit(other, datamodule=data, ckpt_path=path)
    with pytest.raises(ValueError, match="head has 4 classes, the model's has 6"):
        make_trainer().test(classifier(num_classes=6), data.val_dataloader(), ckpt_path=path)
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["model.fc.bias"], content["hyper_parameters"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"1 missing \(model.fc.bias\)"):
        make_trainer().test(classifier(num_classes=4), data.val_dataloader(), ckpt_path=path)


def test_other_class_names_are_warned_about(data, make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(classifier(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data.class_names = ("a", "b", "c", "d")
    with pytest.warns(UserWarning, match="classes .*'north'.* are not those of the data"):
        make_trainer().test(
            classifier(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False
        )


@OTHER_CALLBACKS
def test_a_run_resumed_anywhere_ends_bitwise_equal(data, make_trainer, tmp_path):
    options = {"drop_rate": 0.3, "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "num_classes": 4}
    keep = ModelCheckpoint(
        tmp_path / "all", "{step}", save_top_k=-1, every_n_train_steps=1, monitor=None
    )
    settings = {"max_epochs": 3}
    trainer = make_trainer(callbacks=[keep], enable_checkpointing=True, **settings)
    module = classifier(**options)
    trainer.fit(module, datamodule=data)
    finished, series = weights_of(module), trainer.callback_metrics
    points = sorted((tmp_path / "all").iterdir())
    assert len(points) == 9
    for point in points[:-1]:
        torch.manual_seed(99)
        again = ImageClassifier(model_name="resnet20_cifar", optimizer=SGD, seed=None, **options)
        resumed = make_trainer(**settings)
        resumed.fit(again, datamodule=type(data)(), ckpt_path=point)
        assert same(finished, weights_of(again)), point
        for key, value in series.items():
            assert torch.equal(value, resumed.callback_metrics[key]), (point, key)


def test_dropout_is_keyed_and_leaves_the_global_generator_alone(data, make_trainer):
    ends = []
    for drop_rate, seed in ((0.5, 1), (0.5, 1), (0.5, 2), (0.0, 1)):
        module = classifier(drop_rate=drop_rate, seed=seed, num_classes=4)
        make_trainer(max_epochs=1).fit(module, datamodule=data)
        ends.append((weights_of(module), torch.rand(())))
    assert same(ends[0][0], ends[1][0])
    assert not same(ends[0][0], ends[2][0])
    assert len({float(drawn) for _, drawn in ends}) == 1
