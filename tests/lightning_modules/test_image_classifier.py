import functools

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch import nn

from firstlight.lightning_modules import ImageClassifier
from firstlight.lightning_modules.batches import unpack
from firstlight.lightning_modules.epoch_metrics import EpochMetrics, StageMetrics

NO_VALIDATION = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def classifier(**arguments):
    torch.manual_seed(0)
    return ImageClassifier(**({"model_name": "resnet20_cifar", "optimizer": SGD} | arguments))


def logits_of(module, loader):
    module.eval()
    with torch.no_grad():
        parts = [(module(images), targets) for images, targets in loader]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def whole(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


# ---------------------------------------------------------------------- metrics


def test_evaluation_metrics_are_those_of_all_examples_at_once(data, make_trainer):
    module, trainer = classifier(), make_trainer()
    trainer.fit(module, datamodule=data)
    logged = trainer.callback_metrics
    logits, targets = logits_of(module, data.val_dataloader())
    probabilities = logits.softmax(1).numpy()
    assert float(logged["val/loss"]) == pytest.approx(
        float(nn.functional.cross_entropy(logits, targets)), rel=1e-5
    )
    assert float(logged["val/top1"]) == pytest.approx(
        top_k_accuracy_score(targets, probabilities, k=1)
    )
    assert float(logged["val/macro_accuracy"]) == pytest.approx(
        balanced_accuracy_score(targets, logits.argmax(1))
    )
    assert float(logged["val/top5"]) == 1  # of four classes


def test_absent_classes_do_not_count_and_top5_is_counted(make_trainer):
    classes, count = 12, 40
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 9  # classes 9 to 11 never occur
    images = torch.randn(count, 3, 8, 8, generator=generator)
    loader = torch.utils.data.DataLoader(list(zip(images, targets, strict=True)), batch_size=7)
    module, trainer = classifier(num_classes=classes), make_trainer()
    (logged,) = trainer.validate(module, loader, verbose=False)
    logits, _ = logits_of(module, loader)
    recalls = [float((logits.argmax(1)[targets == c] == c).float().mean()) for c in range(9)]
    assert logged["val/macro_accuracy"] == pytest.approx(sum(recalls) / 9)
    assert logged["val/top5"] == pytest.approx(
        top_k_accuracy_score(targets, logits.numpy(), k=5, labels=range(classes))
    )


@pytest.mark.parametrize("classes", [4, 12])
def test_logits_that_are_no_numbers_are_never_right(classes):
    metrics = EpochMetrics(classes)
    targets = torch.arange(4)
    metrics.update(torch.full((4, classes), torch.nan), targets, torch.tensor(torch.nan))
    found = metrics.compute()
    assert (found["top1"], found["top5"], found["macro_accuracy"]) == (0, 0, 0)
    one = torch.zeros(4, classes)
    one[:, 0] = torch.nan  # right for the first example, if NaN were the highest
    metrics.reset()
    metrics.update(one, targets, torch.zeros(()))
    assert metrics.compute()["top1"] == 0


def test_ties_count_as_before():
    metrics = EpochMetrics(6)
    metrics.update(torch.zeros(2, 6), torch.tensor([0, 3]), torch.zeros(()))
    assert metrics.compute() == {"loss": 0, "top1": 0.5, "top5": 1, "macro_accuracy": 0.5}


@pytest.mark.parametrize(
    ("loaders", "keys"),
    [
        ([1, 2], {"val/loss", "val/1/loss"}),
        ({"clean": 1, "fog": 2}, {"val/loss", "val/fog/loss"}),
        (1, {"val/loss"}),
    ],
)
def test_keys_of_several_sets(loaders, keys):
    stage = StageMetrics("val", 4)
    stage.start(loaders, torch.device("cpu"))
    for index in range(len(keys)):
        stage.update(index, torch.eye(4), torch.arange(4), torch.ones(()))
    assert {key for key in stage.finish() if key.endswith("loss")} == keys


def test_training_metrics_are_those_of_the_forward_passes(data, make_trainer):
    module, trainer = classifier(drop_rate=0.3), make_trainer(max_epochs=1)
    seen = []
    module.build(4)
    module.model.register_forward_hook(
        lambda net, _inputs, output: seen.append(output.detach()) if net.training else None
    )
    trainer.fit(module, datamodule=data)
    logits = torch.cat(seen)
    targets = data.examples(0)[1]
    logged = trainer.callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(
        float(nn.functional.cross_entropy(logits, targets)), rel=1e-5
    )
    assert float(logged["train/top1"]) == pytest.approx(
        float((logits.argmax(1) == targets).float().mean())
    )
    last = data.count % data.batch_size
    assert float(logged["train/loss_step"]) == pytest.approx(
        float(nn.functional.cross_entropy(logits[-last:], targets[-last:])), rel=1e-5
    )


def test_several_test_sets_have_keys_of_their_own(data, make_trainer):
    module, trainer = classifier(num_classes=4), make_trainer()
    trainer.test(module, datamodule=data, verbose=False)
    loaders = data.test_dataloader()
    for prefix, name in (("test", "near"), ("test/far", "far")):
        logits, targets = logits_of(module, loaders[name])
        assert float(trainer.callback_metrics[f"{prefix}/loss"]) == pytest.approx(
            float(nn.functional.cross_entropy(logits, targets)), rel=1e-5
        )


def test_prediction_gives_probabilities(data, make_trainer):
    module = classifier(num_classes=4)
    probabilities = torch.cat(make_trainer().predict(module, datamodule=data))
    logits, _ = logits_of(module, data.predict_dataloader())
    assert torch.allclose(probabilities, logits.softmax(1))


# ------------------------------------------------------------- classes and names


def test_the_number_of_classes_comes_from_the_data(data, make_trainer):
    module = classifier()
    with pytest.raises(RuntimeError, match="num_classes is not known yet"):
        module(torch.zeros(1, 3, 16, 16))
    make_trainer(max_epochs=1).fit(module, datamodule=data)
    assert module.model.num_classes == module.hparams["num_classes"] == 4
    assert module.class_names == ["north", "east", "south", "west"]


@NO_VALIDATION
def test_without_data_module_the_number_has_to_be_given(data, make_trainer):
    with pytest.raises(ValueError, match="num_classes is not given"):
        make_trainer().fit(classifier(), data.train_dataloader())


def test_numbers_that_disagree_are_both_named(data, make_trainer):
    with pytest.raises(ValueError, match="num_classes=7, but TinyData has 4 classes"):
        make_trainer().fit(classifier(num_classes=7), datamodule=data)


@NO_VALIDATION
def test_labels_out_of_range_are_named(make_trainer):
    loader = whole([(torch.zeros(2, 3, 16, 16), torch.tensor([0, 5]))])
    with pytest.raises(ValueError, match=r"label 5 lies outside 0\.\.3 \(num_classes=4\)"):
        make_trainer().fit(classifier(num_classes=4), loader)


def test_labels_elsewhere_than_on_the_cpu_are_looked_at_on_request_only():
    # A meta tensor has no values: looking at them raises, as it would wait for a GPU.
    batch = (torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64, device="meta"))
    assert unpack(batch, 4, check=False)[1].device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        unpack(batch, 4, check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_labels_out_of_range_are_named():
    batch = (torch.zeros(2, 3, 16, 16).cuda(), torch.tensor([0, 5]).cuda())
    with pytest.raises(ValueError, match=r"label 5 lies outside 0\.\.3"):
        unpack(batch, 4, check=True)


def test_the_first_batch_of_every_set_has_its_labels_checked(data, make_trainer, monkeypatch):
    checks = []

    def watched(batch, num_classes, check):
        checks.append(check)
        return unpack(batch, num_classes, check)

    monkeypatch.setattr("firstlight.lightning_modules.measured_module.unpack", watched)
    module, trainer = classifier(num_classes=4), make_trainer(num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    first_epoch, second_epoch = [True, False, False] * 2, [False] * 6
    assert checks == first_epoch + second_epoch
    checks.clear()
    trainer.test(module, datamodule=data, verbose=False)
    assert checks == [True, False, False] * 2  # of two test sets


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"image": torch.zeros(2, 3, 16, 16)},
            r"no labels found in a batch of \{'image': float32 \(2, 3, 16, 16\)\}: expected",
        ),
        ((torch.zeros(2, 3, 16, 16), torch.zeros(2)), "expected integer labels"),
        ("text", "no images found in a batch of str"),
    ],
)
def test_batches_of_other_structures_are_described(batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        classifier(num_classes=4)._evaluate("val", batch, 0)


@NO_VALIDATION
def test_dict_batches_work(make_trainer):
    batch = {"pixel_values": torch.zeros(2, 3, 16, 16), "labels": torch.tensor([0, 3])}
    make_trainer(max_epochs=1).fit(classifier(num_classes=4), whole([batch]))


def test_outputs_that_are_no_logits_are_refused():
    module = classifier(num_classes=4)
    module.model.fc = nn.Identity()
    batch = (torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))
    with pytest.raises(
        ValueError, match=r"resnet20_cifar returned shape \(2, 64\) instead of logits"
    ):
        module.predict_step(batch, 0)
    module.model.forward = lambda x: (x, x)
    with pytest.raises(
        TypeError, match=r"returned \[float32 \(2, 3, 32, 32\), .* instead of logits"
    ):
        module.predict_step(batch, 0)


def test_unknown_names_and_bad_values():
    with pytest.raises(ValueError, match=r"no model named 'resnet5O'; near names: .*resnet50"):
        ImageClassifier("resnet5O")
    for bad in ({"num_classes": 1}, {"layer_decay": 0.0}, {"mixup_alpha": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ImageClassifier("resnet20_cifar", **bad)
    with pytest.raises(ValueError, match="lr_scheduler_interval"):
        ImageClassifier("resnet20_cifar", lr_scheduler_interval="day")


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"reduction": "sum"}},
    ],
)
def test_losses_that_are_no_means_are_refused(loss):
    message = r"CrossEntropyLoss has reduction='sum'.*pass CrossEntropyLoss\(reduction='mean'\)"
    with pytest.raises(ValueError, match=message):
        classifier(num_classes=4, loss=loss)
