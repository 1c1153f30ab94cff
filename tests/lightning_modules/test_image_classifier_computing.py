"""Ways of computing: memory formats, precisions, compilation, averaging, and numbers gone bad."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from firstlight.lightning_modules import ImageClassifier
from firstlight.lightning_modules.loss_watch import LossWatch

SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def classifier(**arguments):
    torch.manual_seed(0)
    return ImageClassifier(**({"model_name": "resnet20_cifar", "optimizer": SGD} | arguments))


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_loss_that_is_no_number_stops_the_run_before_it_harms_the_weights(data, make_trainer):
    module = classifier(num_classes=4)
    before = weights_of(module)
    module.loss = nn.CrossEntropyLoss(weight=torch.full((4,), math.inf))
    message = r"not finite at step 0 \(epoch 0, learning rate 0.01\)\. Lower the learning rate"
    with pytest.raises(FloatingPointError, match=message):
        make_trainer().fit(module, datamodule=data)
    module.loss = nn.CrossEntropyLoss()
    after = weights_of(module)
    assert all(
        torch.equal(after[k], v)
        for k, v in before.items()
        if "running" not in k and "num_batches" not in k
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_loss_is_looked_at_when_asked_for():
    watch = LossWatch()
    for step, value in enumerate((1.0, math.nan, math.inf, 1.0)):
        assert not watch.see(torch.tensor(value, device="cuda"), step)
    with pytest.raises(FloatingPointError, match="not finite at step 1 "):
        watch.check(0, 0.1)


@pytest.mark.parametrize("name", ["test_vit", "test_byobnet", "test_efficientnet", "test_nfnet"])
def test_other_families_train(name, data, make_trainer):
    kwargs = {"img_size": 16} if name == "test_vit" else None
    module = classifier(model_name=name, model_kwargs=kwargs, layer_decay=0.8, drop_path_rate=0.1)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))


def test_channels_last_gives_the_same_outputs_in_that_format(data, make_trainer):
    module, plain = classifier(num_classes=4, channels_last=True), classifier(num_classes=4)
    formats = []
    module.model.layer1.register_forward_hook(
        lambda _m, _i, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    images = data.examples(1)[0]
    assert torch.allclose(module.eval()(images), plain.eval()(images), rtol=1e-3, atol=1e-2)
    make_trainer(max_epochs=1).fit(module.train(), datamodule=data)
    assert all(formats)
    assert module.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_computes_in_bf16_and_keeps_weights_and_loss_in_float32(data, make_trainer):
    module = classifier(num_classes=4)
    seen = []
    module.model.layer1.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    trainer = make_trainer(max_epochs=1, precision="bf16-mixed")
    trainer.fit(module, datamodule=data)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.slow
def test_compiling_changes_no_names_and_hardly_any_number(data, make_trainer):
    trained = []
    for compiled in (False, True):
        module = classifier(model_name="test_resnet", num_classes=4, compile=compiled)
        trainer = make_trainer(max_epochs=1)
        trainer.fit(module, datamodule=data)
        trained.append((list(module.state_dict()), float(trainer.callback_metrics["val/loss"])))
    assert trained[0][0] == trained[1][0]
    assert trained[0][1] == pytest.approx(trained[1][1], rel=1e-3)
    assert module.model._compiled_call_impl is not None


def test_the_average_is_what_is_validated_and_saved(data, make_trainer, tmp_path):
    decay = 0.6
    path = []

    class Record(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            path.append(weights_of(pl_module))

        def on_train_batch_end(self, trainer, pl_module, *_):
            path.append(weights_of(pl_module))

    module = classifier()  # without num_classes: built before the average is made
    average = EMAWeightAveraging(decay=decay, use_buffers=True)
    trainer = make_trainer(max_epochs=2, callbacks=[average, Record()])
    trainer.fit(module, datamodule=data)
    name = "model.conv1.weight"
    expected = path[1][name].double()  # the first update copies
    for weights in path[2:]:
        expected = decay * expected + (1 - decay) * weights[name]
    assert torch.allclose(module.model.conv1.weight.double(), expected, rtol=1e-5, atol=1e-7)
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "ema.ckpt")
    images, targets = data.examples(1)
    with torch.no_grad():
        logits = loaded.eval()(images)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(
        float(nn.functional.cross_entropy(logits, targets)), rel=1e-5
    )
