"""Optimisers, their groups and rates, and schedules of an `ImageClassifier`."""

import functools

import lightning.pytorch as pl
import pytest
import timm.optim
import timm.scheduler
import torch
from torch import nn

from firstlight.lightning_modules import ImageClassifier, WarmupCosineLR

SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def classifier(**arguments):
    torch.manual_seed(0)
    return ImageClassifier(**({"model_name": "resnet20_cifar", "optimizer": SGD} | arguments))


@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(torch.optim.AdamW, lr=0.01),
        functools.partial(timm.optim.create_optimizer_v2, opt="lamb", lr=0.01),
        {"class_path": "TimmOptimizer", "init_args": {"opt": "nadamw", "lr": 0.01}},
        {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
    ],
)
def test_layer_decay_reaches_the_rates_under_a_scheduler(factory):
    module = classifier(
        num_classes=4,
        optimizer=factory,
        layer_decay=0.5,
        lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1),
    )
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["head/decay"] == pytest.approx(0.01)
    assert rates["layer3.2/decay"] == pytest.approx(0.005)
    assert rates["stem/no_decay"] == pytest.approx(0.01 * 0.5**10)
    optimizer.step()
    scheduler.step()
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        name: pytest.approx(rate / 10) for name, rate in rates.items()
    }


ADAFACTOR = {"class_path": "TimmOptimizer", "init_args": {"opt": "adafactor"}}


def test_an_optimizer_that_finds_its_own_rate_trains(data, make_trainer):
    module = classifier(optimizer=ADAFACTOR)
    trainer = make_trainer()
    trainer.fit(module, datamodule=data)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_a_bad_loss_is_said_where_there_is_no_rate(data, make_trainer):
    module = classifier(num_classes=4, optimizer=ADAFACTOR)
    module.loss = nn.CrossEntropyLoss(weight=torch.full((4,), torch.inf))
    with pytest.raises(FloatingPointError, match="learning rate the optimiser's own"):
        make_trainer().fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"layer_decay": 0.5}, r"layer_decay=0\.5 scales .* lr=None .* pass lr to the optimizer"),
        (
            {"lr_scheduler": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)},
            r"StepLR has no learning rate to change.* lr=None .* leave lr_scheduler out",
        ),
    ],
)
def test_a_missing_rate_can_be_neither_scaled_nor_scheduled(option, message):
    with pytest.raises(ValueError, match=message):
        classifier(num_classes=4, optimizer=ADAFACTOR, **option).configure_optimizers()


def test_every_parameter_is_in_one_group_the_losss_as_well(data):
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    module = classifier(num_classes=4)
    module.loss = Scaled()
    optimizer = module.configure_optimizers()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, module.parameters()))
    assert optimizer.param_groups[-1]["name"] == "loss/no_decay"


def test_group_names_reach_the_rate_monitor(data, make_trainer, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    monitor = pl.callbacks.LearningRateMonitor()
    module = classifier(lr_scheduler=functools.partial(WarmupCosineLR, warmup=1, total=2))
    make_trainer(logger=logger, callbacks=[monitor]).fit(module, datamodule=data)
    assert "lr-SGD/layer1/decay" in monitor.lrs


def test_timms_schedulers_are_refused_with_what_to_use_instead():
    factory = functools.partial(timm.scheduler.CosineLRScheduler, t_initial=3)
    for given in (factory, {"class_path": "timm.scheduler.CosineLRScheduler"}):
        with pytest.raises(ValueError, match=r"use firstlight.lightning_modules.WarmupCosineLR"):
            classifier(lr_scheduler=given)


def test_a_plateau_schedule_watches_the_validation_loss(data, make_trainer):
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)
    make_trainer().fit(classifier(lr_scheduler=plateau), datamodule=data)
