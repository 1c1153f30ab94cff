"""Checkpoints of LightningCLI and of plain Python, read back by either."""

import functools

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn

from firstlight.lightning_modules import ImageClassifier, WarmupCosineLR

pytestmark = [
    # jsonargparse's own deprecation of a method that Lightning 2.6 calls.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.pytorch.cli"),
    pytest.mark.filterwarnings("ignore:.*instantiate_classes.*"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended"),
]
LOSS = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [0.1, 2.0, 0.7, 1.0]}}


@pytest.fixture(autouse=True)
def own_global_seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # seed_everything writes it; undone afterwards


def run_cli(data, tmp_path, subclass, *arguments):
    return LightningCLI(
        ImageClassifier,
        type(data),
        args=[
            *arguments,
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.max_epochs=1",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--trainer.default_root_dir={tmp_path}",
        ],
        subclass_mode_model=subclass,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=3,
    )


def fit_by_cli(data, tmp_path, subclass):
    prefix = "--model.init_args" if subclass else "--model"
    chosen = ["--model=ImageClassifier"] if subclass else []
    cli = run_cli(
        data,
        tmp_path,
        subclass,
        "fit",
        *chosen,
        f"{prefix}.model_name=resnet20_cifar",
        f"{prefix}.optimizer=SGD",
        f"{prefix}.optimizer.init_args.lr=0.02",
        f"{prefix}.lr_scheduler=WarmupCosineLR",
        f"{prefix}.lr_scheduler.init_args.warmup=1",
        f"{prefix}.lr_scheduler.init_args.total=4",
        f"{prefix}.loss={LOSS}".replace("'", '"'),
    )
    path = tmp_path / "by_cli.ckpt"
    cli.trainer.save_checkpoint(path)
    return cli.model, path


def fit_by_python(data, tmp_path, make_trainer):
    module = ImageClassifier(
        "resnet20_cifar",
        loss=nn.CrossEntropyLoss(torch.tensor([0.1, 2.0, 0.7, 1.0])),
        optimizer=functools.partial(torch.optim.SGD, lr=0.02),
        lr_scheduler=functools.partial(WarmupCosineLR, warmup=1, total=4),
    )
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=data)
    path = tmp_path / "by_python.ckpt"
    trainer.save_checkpoint(path)
    return module, path


@pytest.mark.parametrize("subclass", [False, True])
@pytest.mark.parametrize("origin", ["cli", "python"])
def test_a_checkpoint_is_tested_by_the_command_line(origin, subclass, data, tmp_path, make_trainer):
    if origin == "cli":
        module, path = fit_by_cli(data, tmp_path, subclass)
        assert module.hparams["seed"] == 3
    else:
        module, path = fit_by_python(data, tmp_path, make_trainer)
    expected = make_trainer().test(module, datamodule=data, verbose=False)[0]
    chosen = ["--model=ImageClassifier"] if subclass else []
    name = ["--model.model_name=resnet32_cifar"]  # the checkpoint's own name wins
    cli = run_cli(data, tmp_path, subclass, "test", *chosen, *name, f"--ckpt_path={path}")
    assert float(cli.trainer.callback_metrics["test/loss"]) == pytest.approx(expected["test/loss"])
    assert type(cli.model.loss) is nn.CrossEntropyLoss
    assert torch.equal(cli.model.loss.weight, torch.tensor([0.1, 2.0, 0.7, 1.0]))


def test_a_checkpoint_of_the_command_line_is_loaded_in_python(data, tmp_path):
    module, path = fit_by_cli(data, tmp_path, subclass=True)
    loaded = ImageClassifier.load_from_checkpoint(path)
    images = data.examples(1)[0]
    assert torch.equal(module.eval()(images), loaded.eval()(images))
    for name in ("loss", "optimizer", "lr_scheduler", "seed", "num_classes"):
        assert loaded.hparams[name] == module.hparams[name], name
    optimizer = loaded.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.SGD and optimizer.defaults["lr"] == 0.02


def test_a_misspelt_argument_of_an_object_is_named(data, tmp_path):
    optimizer = '--model.optimizer={"class_path": "SGD", "init_args": {"lrr": 0.1}}'
    with pytest.raises(ValueError, match="takes no argument 'lrr'; near names: lr"):
        run_cli(data, tmp_path, False, "fit", "--model.model_name=resnet20_cifar", optimizer)
