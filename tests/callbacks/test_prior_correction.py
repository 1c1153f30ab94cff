"""PriorCorrection: what test and predict see, what validation is told, what is kept and refused."""

import contract_checks as checks
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from contract_modules import CLASSES, MODULES, Images, TupleBatch
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.special import log_softmax, softmax
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from firstlight.callbacks import PriorCorrection
from firstlight.callbacks.linear_head import check_head
from firstlight.callbacks.logit_shift import MakerError, check_maker
from firstlight.functional import CosineHead, LDAMLoss, LogitAdjustedLoss
from firstlight.runfolder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
EVEN, ODD = list(range(0, 37, 2)), list(range(1, 37, 2))
COUNTS = [10, 6, 3]


class Data(L.LightningDataModule):
    """Trains on the even examples, holds the odd ones out, tests on all."""

    class_counts = COUNTS

    def loader(self, indices):
        return DataLoader(Subset(Images(), indices), batch_size=8)

    def train_dataloader(self):
        return self.loader(EVEN)

    def val_dataloader(self):
        return self.loader(EVEN)

    def holdout_dataloader(self):
        return self.loader(ODD)

    def test_dataloader(self):
        return self.loader(range(37))

    predict_dataloader = test_dataloader


class NoHoldOut(Data):
    holdout_dataloader = None


class Keeps(TupleBatch):
    """Keeps the logits that its test and predict steps see."""

    def __init__(self, loss=None):
        super().__init__()
        self.seen = []
        if loss is not None:
            self.loss = loss

    def test_step(self, batch, index):
        self.seen.append(self.logits(batch).detach())

    def predict_step(self, batch, index):
        return self(batch[0])


def trainer_of(root, callbacks, **options):
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "default_root_dir": root, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return L.Trainer(callbacks=callbacks, **{**settings, **options})


def raw(module, indices):
    module.eval()
    images, targets = zip(*(Images()[i] for i in indices), strict=True)
    with torch.no_grad():
        return module.net(torch.stack(images)).double().numpy(), np.array(targets)


def corrected(z, q, target=None, offset=0.0, tau=1.0):
    """Posteriors weighed by Bayes' rule and made to sum to 1: probabilities, no logits."""
    u = np.full(CLASSES, 1 / CLASSES) if target is None else np.array(target)
    weighed = softmax(z + offset, axis=1) * u / q**tau
    return np.log(weighed / weighed.sum(1, keepdims=True))


@pytest.mark.parametrize("target", [None, [0.2, 0.3, 0.5]])
def test_test_and_predict_see_corrected_logits_and_nothing_stays(target, tmp_path):
    module, callback = Keeps(), PriorCorrection(tau=0.8, target_prior=target)
    hooks = checks.snapshot(module)["hooks"]
    trainer_of(tmp_path, [callback]).test(module, datamodule=Data(), verbose=False)
    q = softmax(raw(module, ODD)[0], axis=1).mean(0)
    z, y = raw(module, range(37))
    expected = corrected(z, q, target, tau=0.8)
    found = log_softmax(torch.cat(module.seen).double().numpy(), axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(callback.effective_prior.numpy(), q, atol=1e-6)
    metrics = callback._finished["test"]
    for scores, logits in zip(metrics, (z, expected), strict=True):
        assert scores.macro == pytest.approx(balanced_accuracy_score(y, logits.argmax(1)))
    predicted = trainer_of(tmp_path, [callback]).predict(module, datamodule=Data())
    found = log_softmax(torch.cat(predicted).double().numpy(), axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert checks.snapshot(module)["hooks"] == hooks
    np.testing.assert_allclose(raw(module, range(37))[0], z)


def test_validation_metrics_are_untouched_and_get_further_keys(tmp_path):
    seen = {}
    for label, callbacks in {"without": [], "with": [PriorCorrection()]}.items():
        checks.seed_all(7)
        module, trainer = Keeps(), trainer_of(tmp_path / label, callbacks)
        trainer.fit(module, datamodule=Data())
        seen[label] = {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert seen["without"]["val_loss"] == seen["with"]["val_loss"]
    z, y = raw(module, EVEN)
    q = softmax(raw(module, ODD)[0], axis=1).mean(0)
    expected = balanced_accuracy_score(y, corrected(z, q).argmax(1))
    assert seen["with"]["val/prior_corrected/macro"] == pytest.approx(expected)
    (run,) = tmp_path.rglob("run.json")
    part = RunFolder.open(run.parent).read_last(
        "per_class", "val/prior_corrected", ["n", "correct"]
    )
    assert np.mean(part["correct"].to_numpy() / part["n"].to_numpy()) == pytest.approx(expected)


def test_the_prior_is_in_the_checkpoint_and_serves_where_nothing_is_held_out(tmp_path, capsys):
    checks.seed_all(7)
    saving = ModelCheckpoint(tmp_path, save_last=True)
    trainer = trainer_of(tmp_path, [PriorCorrection(), saving], enable_checkpointing=True)
    module = Keeps()
    trainer.fit(module, datamodule=Data())
    path = tmp_path / "last.ckpt"
    (state,) = [
        value
        for key, value in torch.load(path, weights_only=True)["callbacks"].items()
        if key.startswith("PriorCorrection")
    ]
    q = softmax(raw(module, ODD)[0], axis=1).mean(0)
    np.testing.assert_allclose(state["effective_prior"].numpy(), q, atol=1e-6)
    other, callback = Keeps(), PriorCorrection()
    trainer_of(tmp_path, [callback]).test(other, datamodule=NoHoldOut(), ckpt_path=path,
                                          verbose=False)  # fmt: skip
    assert "the one kept with these weights" in capsys.readouterr().out
    found = log_softmax(torch.cat(other.seen).double().numpy(), axis=1)
    np.testing.assert_allclose(found, corrected(raw(module, range(37))[0], q), atol=1e-5)


def test_other_weights_are_not_corrected_by_a_kept_prior_unless_nothing_else_is_there(
    tmp_path, capsys
):
    callback, first, second = PriorCorrection(), Keeps(), Keeps()
    trainer_of(tmp_path, [callback]).test(first, datamodule=Data(), verbose=False)
    before = callback.effective_prior.clone()
    trainer_of(tmp_path, [callback]).test(second, datamodule=Data(), verbose=False)
    assert not torch.equal(before, callback.effective_prior)
    capsys.readouterr()
    trainer_of(tmp_path, [callback]).test(first, datamodule=NoHoldOut(), verbose=False)
    assert "kept from other weights than these" in capsys.readouterr().out


def test_offsets_of_the_loss_belong_to_the_prior_and_the_correction(tmp_path):
    loss = LogitAdjustedLoss(0.7, class_counts=COUNTS)
    module, callback = Keeps(loss), PriorCorrection()
    trainer_of(tmp_path, [callback]).test(module, datamodule=Data(), verbose=False)
    offset = 0.7 * np.log(np.array(COUNTS) / sum(COUNTS))
    q = softmax(raw(module, ODD)[0] + offset, axis=1).mean(0)
    found = log_softmax(torch.cat(module.seen).double().numpy(), axis=1)
    expected = corrected(raw(module, range(37))[0], q, offset=offset)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_of_the_loss_weigh_the_examples(tmp_path):
    weight = torch.tensor([0.5, 1.0, 4.0])
    module, callback = Keeps(nn.CrossEntropyLoss(weight)), PriorCorrection()
    trainer_of(tmp_path, [callback]).test(module, datamodule=Data(), verbose=False)
    z, y = raw(module, ODD)
    expected = np.average(softmax(z, axis=1), axis=0, weights=weight.numpy()[y])
    np.testing.assert_allclose(callback.effective_prior.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_examples_weigh_as_often_as_training_drew_them(weight, tmp_path, capsys):
    """Of a class drawn as often as the others, whatever its size, the posteriors weigh alike."""
    data = Data()
    data.sampling_weights = [1 / n for n in COUNTS]
    module, callback = Keeps(nn.CrossEntropyLoss(weight)), PriorCorrection()
    trainer_of(tmp_path, [callback]).test(module, datamodule=data, verbose=False)
    z, y = raw(module, ODD)
    drawn = (np.ones(3) if weight is None else weight.numpy()) / COUNTS
    expected = np.average(softmax(z, axis=1), axis=0, weights=drawn[y])
    np.testing.assert_allclose(callback.effective_prior.numpy(), expected, atol=1e-6)
    assert "as often as Data drew them" in capsys.readouterr().out


def test_what_is_printed(tmp_path, capsys):
    prior = [count / sum(COUNTS) for count in COUNTS]
    callback = PriorCorrection(prior=prior)
    trainer_of(tmp_path, [callback]).test(Keeps(), datamodule=Data(), verbose=False)
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "identical to logit adjustment here", "taken for plain cross-entropy",
        "Prior correction, test", "as trained", "prior corrected", "test, by class", "ant",
        "under the uniform prior", "under the training prior", "fall",
        "the logits of 'net.5' are corrected in this test",
    ):  # fmt: skip
        assert part in printed, part
    (run,) = tmp_path.rglob("run.json")
    (event,) = RunFolder.open(run.parent).read("events").to_pylist()
    assert event["kind"] == "prior" and "identical to logit adjustment" in event["reason"]
    trainer_of(tmp_path, [PriorCorrection()]).test(Keeps(), datamodule=Data(), verbose=False)
    assert "differs from logit adjustment" in capsys.readouterr().out


class ClassifiesByHand(TupleBatch):
    """Its logits are made by no module."""

    def forward(self, x):
        return F.relu(self.net(x)) * 2

    def logits(self, batch):
        return self(batch[0])


class Cosines(Keeps):
    """A head that is no linear layer: its output can be corrected all the same."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*self.net[:-1], CosineHead(64, CLASSES), nn.Identity())


def test_heads_of_any_kind_are_corrected_where_a_module_makes_the_logits(tmp_path):
    module = Cosines()
    trainer_of(tmp_path, [PriorCorrection()]).test(module, datamodule=Data(), verbose=False)
    q = softmax(raw(module, ODD)[0], axis=1).mean(0)
    found = log_softmax(torch.cat(module.seen).double().numpy(), axis=1)
    np.testing.assert_allclose(found, corrected(raw(module, range(37))[0], q), atol=1e-5)
    with pytest.raises(MakerError, match="none of ClassifiesByHand's modules"):
        trainer_of(tmp_path, [PriorCorrection()]).fit(ClassifiesByHand(), datamodule=Data())


def test_compiled_code_is_corrected_too(tmp_path):
    module = Keeps()
    trainer = trainer_of(tmp_path, [PriorCorrection()])
    compiled = torch.compile(module, backend="eager")
    compiled(torch.zeros(8, 3, 4, 4))
    trainer.test(compiled, datamodule=Data(), verbose=False)
    q = softmax(raw(module, ODD)[0], axis=1).mean(0)
    found = log_softmax(torch.cat(module.seen).double().numpy(), axis=1)
    np.testing.assert_allclose(found, corrected(raw(module, range(37))[0], q), atol=1e-5)


def test_losses_without_an_established_correction_are_refused_unless_offsets_are_given(tmp_path):
    loss = LDAMLoss(class_counts=COUNTS)
    with pytest.raises(ValueError, match=r"LDAMLoss scales logits.*offsets="):
        trainer_of(tmp_path, [PriorCorrection()]).fit(Keeps(loss), datamodule=Data())
    callback = PriorCorrection(offsets=[0.0] * CLASSES)
    trainer_of(tmp_path, [callback]).test(Keeps(loss), datamodule=Data(), verbose=False)


def test_without_a_hold_out_the_choices_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"NoHoldOut has no holdout_dataloader.*'val'.*'train'"):
        trainer_of(tmp_path, [PriorCorrection()]).fit(Keeps(), datamodule=NoHoldOut())
    case = MODULES["tuple batch"]
    with pytest.raises(ValueError, match="there is no DataModule"):
        checks.fit(case, tmp_path, [PriorCorrection()])


def test_logits_that_are_not_finite_are_named(tmp_path):
    module = Keeps()
    with torch.no_grad():
        module.net[5].bias[1] = float("nan")
    with pytest.raises((ValueError, RuntimeError), match="not finite"):
        trainer_of(tmp_path, [PriorCorrection(prior=None)]).test(module, datamodule=Data())
    assert not any(checks.snapshot(module)["hooks"].values())


class Interrupts(Keeps):
    def test_step(self, batch, index):
        raise KeyboardInterrupt


def test_an_interrupted_test_leaves_no_hook(tmp_path):
    module = Interrupts()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer_of(tmp_path, [PriorCorrection()]).test(module, datamodule=Data(), verbose=False)
    assert not any(checks.snapshot(module)["hooks"].values())


def test_another_callback_sees_the_corrected_logits(tmp_path):
    from firstlight.callbacks import PerClassMonitor

    case = MODULES["two children"]
    monitor = PerClassMonitor(("test",))
    callbacks = [monitor, PriorCorrection(tau=30.0)]
    module = case.build()
    trainer = trainer_of(tmp_path, callbacks)
    trainer.test(module, datamodule=Data(), verbose=False)
    metrics = trainer.callback_metrics
    found = {float(metrics[f"test/{key}"]) for key in ("per_class/micro", "prior_corrected/micro")}
    assert max(found) == pytest.approx(min(found))
    assert float(metrics["test/prior_uncorrected/micro"]) not in found


@pytest.mark.parametrize("look", [check_head, check_maker])
def test_a_loader_without_a_batch_is_refused(look):
    with pytest.raises(ValueError, match="X: the loader gave no batch"):
        look(TupleBatch(), [], lambda batch: batch, "X", None)
