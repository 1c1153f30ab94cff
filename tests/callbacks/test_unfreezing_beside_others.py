"""Schedulers, EarlyStopping and ModelCheckpoint do beside GradualUnfreezing what they always do."""

import contextlib
from pathlib import Path

import contract_checks as checks
import lightning.pytorch as L
import pytest
from killed_runs import same
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim import lr_scheduler
from unfreezing_contestants import NONE, OURS
from unfreezing_schedulers import SCHEDULERS, STEPS, rates_of

from firstlight.callbacks import GradualUnfreezing
from firstlight.datamodules import DigitsDataModule
from firstlight.functional import StabilityRule
from firstlight.lightning_modules import ImageClassifier


def test_all_schedulers_of_torch_are_here():
    kinds = {n: k for n, k in vars(lr_scheduler).items() if isinstance(k, type)}
    public = {n for n, kind in kinds.items() if issubclass(kind, lr_scheduler.LRScheduler)}
    assert {n for n in public if n in lr_scheduler.__all__} - {"LRScheduler"} == set(SCHEDULERS)
    assert len(SCHEDULERS) == 15


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_rates_are_those_of_a_run_without_the_callback(scheduler):
    """Of every parameter that is trained, at every update; a block opens at every fourth."""
    wanted, found = rates_of(NONE, scheduler), rates_of(OURS, scheduler)
    assert len({rates["head.weight"] for rates in wanted}) > 1, "the schedule moves"
    sizes = [len(rates) for rates in found]
    assert len(set(sizes)) == 4 and sizes == sorted(sizes)
    assert [sizes[i * STEPS] > sizes[i * STEPS - 1] for i in (1, 2, 3)] == [True] * 3
    for with_all, with_open in zip(wanted, found, strict=True):
        assert with_open == {name: with_all[name] for name in with_open}


ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}
PLANS = {
    "fixed": {"interval": 7},
    "auto": {"rule": StabilityRule(every=1, window=1, quiet=1, tolerance=0.05), "probe_size": 12},
}


def callbacks_of(plan, root):
    return {
        "unfreezing": GradualUnfreezing(**PLANS[plan]),
        "stopping": EarlyStopping("val/loss", patience=3, min_delta=1e6),  # on every machine
        "best": ModelCheckpoint(
            root / "best", "{epoch}-{step}", monitor="val/loss", save_top_k=2
        ),
        "last": ModelCheckpoint(root, save_last=True, save_top_k=0, every_n_train_steps=1),
    }  # fmt: skip


def fit(plan, root, stop=None, resume=None):
    L.seed_everything(1 if resume is None else 99, verbose=False)  # no random state is restored
    data = DigitsDataModule(imbalance_factor=5, batch_size=64, img_size=8, seed=1)
    module = ImageClassifier(
        "resnet20_cifar", drop_rate=0.3, mixup_alpha=0.2, optimizer=ADAMW, seed=1
    )
    callbacks = callbacks_of(plan, root)
    trainer = L.Trainer(
        max_epochs=8, accelerator="cpu", default_root_dir=root, logger=False,
        callbacks=[*callbacks.values(), checks.StopsAt(stop)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with contextlib.suppress(checks.Stopped):
        trainer.fit(module, data, ckpt_path=resume)
    return module, trainer, callbacks


def moments():
    """An epoch has 9 updates; the signal settles after the eighth."""
    for stop in (5, 14, 21, 31):
        for plan in PLANS:
            quick = (stop, plan) == (5, "auto")
            yield pytest.param(stop, plan, marks=() if quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    runs = {}

    def of(plan):
        if plan not in runs:
            runs[plan] = fit(plan, tmp_path_factory.mktemp(plan))
        return runs[plan]

    return of


def chosen(best):
    """The checkpoints kept, by the names of their files, and their scores."""
    return {Path(path).name: float(score) for path, score in best.best_k_models.items()}


@pytest.mark.xdist_group("unfreezing beside others")
@pytest.mark.parametrize(("stop", "plan"), [*moments()])
def test_resumed_in_mid_epoch_equals_uninterrupted(stop, plan, uninterrupted, tmp_path):
    module, trainer, whole = uninterrupted(plan)
    assert 0 < whole["stopping"].stopped_epoch < 7, "it did stop the run"
    assert whole["unfreezing"]._openings[0].step == {"fixed": 6, "auto": 8}[plan]
    assert stop % 9 and stop < trainer.global_step
    fit(plan, tmp_path, stop)
    again, second, resumed = fit(plan, tmp_path, resume=tmp_path / "last.ckpt")
    assert second.global_step == trainer.global_step
    assert same(module.state_dict(), again.state_dict())
    assert same(trainer.optimizers[0].state_dict(), second.optimizers[0].state_dict())
    assert resumed["unfreezing"]._opened == whole["unfreezing"]._opened
    assert same(whole["stopping"].state_dict(), resumed["stopping"].state_dict())
    assert chosen(whole["best"]) == chosen(resumed["best"])
    assert len(chosen(whole["best"])) == 2
