"""A loss of class counts is given them by the run, keeps them, and hears how far training is."""

import functools

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from firstlight.functional import ClassBalancedLoss, CostSensitiveLoss, LogitAdjustedLoss
from firstlight.lightning_modules import ImageClassifier

COUNTS = [20, 12, 8, 4]
SGD = functools.partial(torch.optim.SGD, lr=0.01)


def classifier(loss, **arguments):
    torch.manual_seed(0)
    return ImageClassifier("resnet20_cifar", loss=loss, optimizer=SGD, **arguments)


@pytest.fixture
def counted(data):
    data.class_counts = COUNTS
    return data


@pytest.mark.parametrize(
    "loss",
    [
        LogitAdjustedLoss(0.7),
        {"class_path": "firstlight.functional.LogitAdjustedLoss", "init_args": {"tau": 0.7}},
    ],
)
def test_counts_come_from_the_data_and_stay_in_the_checkpoint(
    loss, counted, make_trainer, tmp_path
):
    module, trainer = classifier(loss), make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=counted)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["hyper_parameters"]["loss"]
    assert saved["init_args"] == {"tau": 0.7, "class_counts": COUNTS}
    loaded = ImageClassifier.load_from_checkpoint(path, weights_only=True)
    logits, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 3])
    expected = nn.functional.cross_entropy(logits + 0.7 * torch.tensor(COUNTS).log(), targets)
    for one in (module, loaded):
        assert one.loss(logits, targets) == pytest.approx(float(expected), rel=1e-5)
    # Neither data nor counts are needed to go on with it.
    make_trainer().validate(loaded, counted.val_dataloader(), verbose=False)


def test_no_counts_are_refused_in_setup_and_predicting_needs_none(data, make_trainer):
    with pytest.raises(ValueError, match=r"LogitAdjustedLoss needs.*TinyData offers none.*pass"):
        make_trainer().fit(classifier(LogitAdjustedLoss()), datamodule=data)
    module = classifier(LogitAdjustedLoss(), num_classes=4)
    with pytest.raises(ValueError, match="there is no DataModule"):
        make_trainer().fit(module, data.train_dataloader(), data.val_dataloader())
    make_trainer().predict(module, data.predict_dataloader())


def test_counts_that_do_not_fit_are_refused(data, make_trainer):
    data.class_counts = COUNTS[:3]
    with pytest.raises(ValueError, match="of 3 classes, the model has 4"):
        make_trainer().fit(classifier(LogitAdjustedLoss()), datamodule=data)
    data.class_counts = [5, 0, 1, 1]
    with pytest.raises(ValueError, match="class 1"):
        make_trainer().fit(classifier(LogitAdjustedLoss()), datamodule=data)


def test_given_counts_stay_with_a_warning_where_the_data_differ(counted, make_trainer):
    module = classifier(LogitAdjustedLoss(class_counts=[9, 9, 9, 9]))
    with pytest.warns(UserWarning, match=r"keeps.*9, 9, 9, 9.*20, 12, 8, 4"):
        make_trainer(max_epochs=1).fit(module, datamodule=counted)
    assert module.loss.class_counts == [9, 9, 9, 9]


class WatchesWeights(Callback):
    """Whether the loss weighed, at each update's epoch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        loss = pl_module.loss
        self.seen.append((trainer.current_epoch, loss._weighs()))


@pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 12}])
def test_weights_come_on_at_their_epoch(end, counted, make_trainer):
    watch = WatchesWeights()
    module = classifier(ClassBalancedLoss(deferred=0.5))
    make_trainer(callbacks=[watch], **end).fit(module, datamodule=counted)
    assert len(watch.seen) == 12  # three batches an epoch
    assert all(weighs == (epoch >= 2) for epoch, weighs in watch.seen)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("stop", [5, 6, 8])
def test_deferred_weights_resume_to_the_same_end(stop, counted, make_trainer, tmp_path):
    build = functools.partial(classifier, ClassBalancedLoss(deferred=0.5), seed=1)
    whole = build()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = make_trainer(max_epochs=4, enable_checkpointing=True, callbacks=[saving])
    trainer.fit(whole, datamodule=counted)
    resumed, watch = build(), WatchesWeights()
    path = tmp_path / f"step={stop}.ckpt"
    make_trainer(max_epochs=4, callbacks=[watch]).fit(resumed, datamodule=counted, ckpt_path=path)
    assert all(weighs == (epoch >= 2) for epoch, weighs in watch.seen)
    ends = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_weights_of_a_first_stage_go_off_at_their_epoch(counted, make_trainer):
    watch = WatchesWeights()
    module = classifier(CostSensitiveLoss(deferred=0.25, until=0.75))
    make_trainer(callbacks=[watch], max_epochs=4).fit(module, datamodule=counted)
    assert all(weighs == (epoch in (1, 2)) for epoch, weighs in watch.seen)


@pytest.mark.parametrize("share", [{"deferred": 0.5}, {"until": 0.5}])
def test_weights_for_a_share_of_training_need_an_end(share, counted, make_trainer):
    trainer = make_trainer(max_epochs=-1, max_time="00:00:00:05")
    with pytest.raises(ValueError, match=r"deferred=0.* until .*max_epochs"):
        trainer.fit(classifier(ClassBalancedLoss(**share)), datamodule=counted)


def test_correcting_twice_is_warned_of(counted, make_trainer):
    counted.sampling = "class_balanced"
    with pytest.warns(UserWarning, match="LogitAdjustedLoss corrects .* rare classes are favoured"):
        make_trainer(max_epochs=1).fit(classifier(LogitAdjustedLoss()), datamodule=counted)
