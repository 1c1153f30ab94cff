"""LastLayerRetraining: what it fits to, what it keeps, what it writes and what it refuses."""

import copy
import warnings

import contract_checks as checks
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from contract_modules import CLASSES, MODULES, Images, TupleBatch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import nn
from torch.utils.data import DataLoader, Subset

from firstlight.callbacks import LastLayerRetraining, extraction
from firstlight.callbacks.linear_head import HeadError
from firstlight.callbacks.retraining import DEFAULT_RULES
from firstlight.functional import CosineHead, row_store
from firstlight.functional.ridge_search import RIDGES
from firstlight.runfolder import RunFolder

EVEN, ODD = list(range(0, 37, 2)), list(range(1, 37, 2))


class Data(L.LightningDataModule):
    """Trains on the even examples, holds the odd ones out."""

    def __init__(self, held=tuple(ODD), dataset=None):
        super().__init__()
        self.held, self.dataset = list(held), dataset or Images()

    def loader(self, indices):
        return DataLoader(Subset(self.dataset, indices), batch_size=8)

    def train_dataloader(self):
        return self.loader(EVEN)

    def val_dataloader(self):
        return self.loader(EVEN[::-1])

    def holdout_dataloader(self):
        return self.loader(self.held)


def fit(root, callbacks, module=None, data=None, **options):
    checks.seed_all(7)
    module = TupleBatch() if module is None else module
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "default_root_dir": root, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    trainer = L.Trainer(callbacks=callbacks, **{**settings, **options})
    trainer.fit(module, datamodule=data or Data())
    return trainer, module


def features_of(module, indices):
    module.eval()
    images, targets = zip(*(Images()[i] for i in indices), strict=True)
    with torch.no_grad():
        return module.net[:-1](torch.stack(images)), torch.tensor(targets)


def test_the_kept_head_is_scikit_learns_on_the_hold_out(tmp_path):
    saving = ModelCheckpoint(tmp_path, save_last=True)
    _, module = fit(tmp_path, [LastLayerRetraining(rule="unweighted", ridge=0.05), saving])
    x, y = (part.double() for part in features_of(module, ODD))
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    peer = LogisticRegression(C=1 / (0.05 * len(y)), tol=1e-12, max_iter=10_000)
    peer.fit(((x - mean) / std).numpy(), y.long().numpy())
    expected = peer.predict_proba(((x - mean) / std).numpy())
    found = module.net[-1].double()(x).softmax(1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_only_the_head_changes_and_the_old_one_is_in_the_checkpoint(tmp_path):
    saving = ModelCheckpoint(tmp_path, save_last=True)
    _, module = fit(tmp_path, [LastLayerRetraining(), saving])
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    made = torch.load(tmp_path / "last-retrained.ckpt", weights_only=True)
    new, kept = made["state_dict"], made["last_layer_retraining"]
    moved = {key for key in new if not torch.equal(new[key], last[key])}
    assert moved == {"net.5.weight", "net.5.bias"}
    assert all(torch.equal(value, new[key]) for key, value in module.state_dict().items())
    assert torch.equal(kept["old_weight"], last["net.5.weight"])
    assert torch.equal(kept["old_bias"], last["net.5.bias"])
    assert kept["rule"] == "logit_adjustment" and kept["layer"] == "net.5" and kept["converged"]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    other = TupleBatch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the callbacks that the checkpoint knows
        trainer.test(other, Data().val_dataloader(), ckpt_path=tmp_path / "last-retrained.ckpt",
                     verbose=False)  # fmt: skip
    assert torch.equal(other.net[5].weight, module.net[5].weight)
    assert not list(tmp_path.glob(".*"))


def test_it_starts_from_the_best_weights_on_request(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="val_loss", mode="max", filename="{step}")
    _, module = fit(tmp_path, [LastLayerRetraining(ckpt_path="best"), saving], max_epochs=3)
    best = torch.load(saving.best_model_path, weights_only=True)["state_dict"]
    assert torch.equal(module.net[0].weight, best["net.0.weight"])
    assert saving.best_model_path.endswith("step=3.ckpt")  # not the last one
    made = torch.load(tmp_path / "step=3-retrained.ckpt", weights_only=True)
    assert torch.equal(made["state_dict"]["net.0.weight"], best["net.0.weight"])
    assert made["last_layer_retraining"]["started_from"] == saving.best_model_path


def test_what_is_printed(tmp_path, capsys):
    fit(tmp_path, [LastLayerRetraining(), ModelCheckpoint(tmp_path, save_last=True)])
    printed = capsys.readouterr().out
    for part in (
        "the last layer is 'net.5', 64 features to 3 classes, to be fitted to Data's hold-out",
        "Last layer, fitted to 18 examples; on validation data",
        "logit_adjustment *", "inverse_frequency", "before", "ECE", "Brier", "ant", "cat",
        "logit_adjustment, by class",
        "under the uniform prior", "under the training prior", "fall",
        "started from the weights that training ended with",
        f"ckpt_path='{tmp_path}/last-retrained.ckpt'",
    ):  # fmt: skip
        assert part in " ".join(printed.split()) or part in printed, part


def test_the_events_say_what_was_fitted_and_kept(tmp_path):
    callback = LastLayerRetraining(every_n_epochs=1)
    fit(tmp_path, [callback], enable_checkpointing=False)
    folder = RunFolder.open(tmp_path / "firstlight")
    for rule, scores in callback.result.scores.items():
        part = folder.read_last("per_class", f"retrain/{rule}", ["n", "correct"])
        accuracy = part["correct"].to_numpy() / part["n"].to_numpy()
        np.testing.assert_allclose(accuracy, scores.accuracy, err_msg=rule)
    events = folder.read("events").to_pylist()
    assert {e["kind"] for e in events} == {"retrain"} and {e["block"] for e in events} == {"net.5"}
    kept = [(e["step"], e["reason"].split(":")[0]) for e in events if "kept" in e["reason"]]
    assert kept == [(6, "logit_adjustment")]
    assert (tmp_path / "firstlight/last-retrained.ckpt").is_file()


def test_an_undefined_rule_leaves_the_head_and_says_why(tmp_path, capsys):
    callback = LastLayerRetraining("equal_error", ["equal_error"], ridge=1e-5)
    _, module = fit(tmp_path, [callback], enable_checkpointing=False)
    printed = capsys.readouterr().out
    assert "stays as it was, since equal_error is undefined here, because" in printed
    _, plain = fit(tmp_path / "plain", [], enable_checkpointing=False)
    assert torch.equal(module.net[5].weight, plain.net[5].weight)
    assert not list(tmp_path.rglob("*-retrained*"))


# ------------------------------------------------------------------------ what is refused


class NoHoldOut(Data):
    holdout_dataloader = None


def test_without_a_hold_out_the_choices_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"NoHoldOut has no holdout_dataloader.*'val'.*'train'"):
        fit(tmp_path, [LastLayerRetraining()], data=NoHoldOut())
    case = MODULES["tuple batch"]
    with pytest.raises(ValueError, match="there is no DataModule"):
        checks.fit(case, tmp_path, [LastLayerRetraining()])


def test_best_needs_a_checkpoint_callback(tmp_path):
    with pytest.raises(ValueError, match="keeps none"):
        fit(tmp_path, [LastLayerRetraining(ckpt_path="best")], enable_checkpointing=False)


def test_a_class_missing_from_the_hold_out_is_named_before_training(tmp_path):
    watch = checks.Watch()
    held = [i for i in ODD if Images().targets[i] != 2]
    with pytest.raises(ValueError, match=r"class 2 has no examples in Data's hold-out"):
        fit(tmp_path, [LastLayerRetraining(), watch], data=Data(held))
    assert not any("momentum" in str(seen) for seen in watch.seen[1:])


class Untold(Images):
    """Keeps its targets to itself."""

    def __getattribute__(self, name):
        if name == "targets" and "told" in self.__dict__:
            raise AttributeError(name)
        return super().__getattribute__(name)

    def __getitem__(self, index):
        return self.images[index], self.__dict__["targets"][index]


def without_class_2():
    data = Data([i for i in ODD if Images().targets[i] != 2], Untold())
    data.dataset.told = False
    return data


def test_a_class_missing_where_nothing_told_is_found_by_reading_before_training(tmp_path):
    watch = checks.Watch()
    with pytest.raises(ValueError, match=r"class 2 has no examples in Data's hold-out"):
        fit(tmp_path, [LastLayerRetraining(), watch], data=without_class_2())
    assert not any("momentum" in str(seen) for seen in watch.seen[1:])


def test_a_class_missing_from_much_data_is_told_at_the_end_and_training_is_kept(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(extraction, "FEW", 1)
    callback = LastLayerRetraining(every_n_epochs=1)
    saving = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.warns(UserWarning, match="head stays as it was, since class 2 has no examples"):
        _, module = fit(tmp_path, [callback, saving], data=without_class_2())
    printed = capsys.readouterr().out
    assert "is not known before they are read; if one is missing then, the head stays" in printed
    assert "there is nothing to compare: class 2 has no examples to fit to" in printed
    plain = fit(tmp_path / "plain", [], data=without_class_2())[1].state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in module.state_dict().items())
    assert (tmp_path / "last.ckpt").is_file() and not list(tmp_path.rglob("*retrained*"))
    run = RunFolder.open(tmp_path / "firstlight")
    (event,) = run.read("events").to_pylist()
    assert "stays as it was, since class 2" in event["reason"]
    assert run.run["status"] == "finished"


def test_no_best_checkpoint_at_the_end_leaves_the_head_too(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="val_loss", every_n_epochs=5)
    callback = LastLayerRetraining(ckpt_path="best")
    with pytest.warns(UserWarning, match="best checkpoint, and none was written"):
        _, module = fit(tmp_path, [callback, saving])
    plain = fit(tmp_path / "plain", [])[1].state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in module.state_dict().items())


def test_one_example_per_class_is_enough_and_said(tmp_path, capsys):
    held = [next(i for i in ODD if Images().targets[i] == c) for c in range(CLASSES)]
    _, module = fit(tmp_path, [LastLayerRetraining()], data=Data(held), enable_checkpointing=False)
    assert torch.isfinite(module.net[5].weight).all()
    x, y = features_of(module, held)
    assert torch.equal(module.net[5](x).argmax(1), y)
    assert "fitted to 3 examples" in capsys.readouterr().out


def with_head(*head):
    module = TupleBatch()
    module.net = nn.Sequential(*module.net[:-1], *head)
    return module


class TwoHeads(TupleBatch):
    """Averages two classifiers, as distilled transformers do."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(64, CLASSES)

    def forward(self, x):
        features = self.net[:-1](x)
        return (self.net[-1](features) + self.other(features)) / 2

    def logits(self, batch):
        return self(batch[0])


HEADS = {
    "no bias": (lambda: with_head(nn.Linear(64, CLASSES, bias=False)), "'net.5'.*has no bias"),
    "cosines": (lambda: with_head(CosineHead(64, CLASSES)), "'net.5', a CosineHead"),
    "convolution": (
        lambda: with_head(nn.Unflatten(1, (64, 1, 1)), nn.Conv2d(64, CLASSES, 1), nn.Flatten()),
        "needs logits .8, 3. that one linear layer puts out",
    ),
    "two heads": (TwoHeads, r"linear layers that were called: 'net.5' \(8, 3\), 'other'"),
    "reparametrised": (
        lambda: with_head(nn.utils.parametrizations.weight_norm(nn.Linear(64, CLASSES))),
        "made from other parameters",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_not_linear_are_refused_by_name(name, tmp_path):
    build, message = HEADS[name]
    with pytest.raises(HeadError, match=rf"LastLayerRetraining.*{message}"):
        fit(tmp_path, [LastLayerRetraining()], build(), enable_checkpointing=False)


def test_the_last_layer_of_a_head_of_several_is_refitted(tmp_path):
    module = with_head(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES), nn.Softmax(1))
    untouched = []

    class Before(L.Callback):
        def on_train_end(self, trainer, pl_module):
            untouched.append(copy.deepcopy(pl_module.net[5].state_dict()))

    fit(tmp_path, [LastLayerRetraining(), Before()], module, enable_checkpointing=False)
    made = torch.load(tmp_path / "firstlight/last-retrained.ckpt", weights_only=True)
    assert made["last_layer_retraining"]["layer"] == "net.7"
    assert torch.equal(module.net[5].weight, untouched[0]["weight"])


class Diverges(TupleBatch):
    """Its features are infinite for one example of the hold-out."""

    def forward(self, x):
        return self.net(x)


def test_features_that_are_not_finite_are_named_by_example(tmp_path):
    data, module = Data(), TupleBatch()
    data.dataset.images[ODD[10]] = float("inf")
    with pytest.raises(ValueError, match="features are not finite: example 10,"):
        fit(tmp_path, [LastLayerRetraining()], module, data, enable_checkpointing=False)
    assert not list(tmp_path.rglob("*retrained*"))


class Breaks(Images):
    """Cannot read one of its examples once it is told to."""

    broken = False

    def __getitem__(self, index):
        if self.broken and index == ODD[12]:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_interrupted_extraction_leaves_all_as_it_was_and_can_be_started_again(
    share, tmp_path, monkeypatch
):
    monkeypatch.setattr(row_store, "SHARE", share)
    data, module, callback = Data(dataset=Breaks()), TupleBatch(), LastLayerRetraining()
    states = []

    class Break(L.Callback):
        def on_train_end(self, trainer, pl_module):
            states.append(checks.snapshot(pl_module))
            data.dataset.broken = True

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, [Break(), callback], module, data, enable_checkpointing=False)
    after = checks.snapshot(module)
    for part in ("weights", "requires_grad", "modes", "torch", "numpy", "python", "hooks"):
        assert checks._equal(states[0][part], after[part]), part
    assert {path.name for path in (tmp_path / "firstlight").iterdir()} == {
        "run.json", "config.yaml",
    }  # fmt: skip
    data.dataset.broken = False
    fit(tmp_path / "again", [callback], module, data, enable_checkpointing=False)
    assert (tmp_path / "again/firstlight/last-retrained.ckpt").is_file()


def test_training_data_are_read_a_second_time_with_a_warning(tmp_path, capsys):
    fit(tmp_path, [LastLayerRetraining(data="train")], enable_checkpointing=False)
    printed = capsys.readouterr().out
    assert "features of training data are fitted too well" in printed
    assert "if they are augmented, so are the features" in printed.replace("\n", " ")
    assert "fitted to 19 examples; on validation data" in printed


def test_averaged_weights_are_the_ones_fitted_to(tmp_path):
    """A moving average is put into the module when training ends, and the head belongs to it."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    saving = ModelCheckpoint(tmp_path, save_last=True)
    callbacks = [LastLayerRetraining(), EMAWeightAveraging(decay=0.5), saving]
    _, module = fit(tmp_path, callbacks)
    made = torch.load(tmp_path / "last-retrained.ckpt", weights_only=True)["state_dict"]
    for key, value in module.state_dict().items():
        assert torch.equal(made[key], value), key


def test_features_in_a_file_give_the_same_heads_to_the_last_bit(tmp_path, monkeypatch, capsys):
    rules = ["unweighted", "logit_adjustment", "balanced_midpoint", "equal_error"]
    found = {}
    for share in (1.0, 0.0):
        monkeypatch.setattr(row_store, "SHARE", share)
        callback, root = LastLayerRetraining(rules=rules), tmp_path / str(share)
        _, module = fit(root, [callback], enable_checkpointing=False)
        found[share] = callback.result.heads.heads, module.state_dict(), capsys.readouterr().out
        folder = root / "firstlight"
        names = {path.name for path in folder.iterdir()}
        assert names == {"run.json", "config.yaml", "events", "last-retrained.ckpt", "per_class"}
    for rule in rules:
        a, b = (found[share][0][rule] for share in found)
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
    assert checks._equal(found[1.0][1], found[0.0][1])
    for name in ("Data's hold-out", "the validation data"):
        words = f"features of {name}, 0.00 GiB, more than a quarter of the free memory"
        assert words in found[0.0][2] and words not in found[1.0][2]


class Kept(CSVLogger):
    """Keeps what is logged."""

    def __init__(self, root):
        super().__init__(root)
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        kept = {key: value for key, value in metrics.items() if key.startswith("retrain/")}
        if kept:
            self.seen[step] = kept


def test_the_probe_logs_every_rule_each_time_and_the_same_when_resumed(tmp_path):
    """Four epochs of three updates; resumed after the second, which has a probe, or the third."""
    series, ends = {}, {}
    for label, epochs in {"whole": (4,), "two": (2, 4), "three": (3, 4)}.items():
        seen, last = {}, tmp_path / label / "last.ckpt"
        for until in epochs:
            logger = Kept(tmp_path / label)
            callback = LastLayerRetraining(None, DEFAULT_RULES, every_n_epochs=2)
            saving = ModelCheckpoint(tmp_path / label, save_last=True, enable_version_counter=False)
            checks.seed_all(7)
            trainer = L.Trainer(
                max_epochs=until, accelerator="cpu", logger=logger, enable_progress_bar=False,
                enable_model_summary=False, callbacks=[callback, saving],
            )  # fmt: skip
            module = MODULES["ImageClassifier"].build()  # whose randomness is keyed
            trainer.fit(module, datamodule=Data(), ckpt_path=last if last.exists() else None)
            seen |= {step: m for step, m in logger.seen.items() if until == 4 or step == 6}
        series[label], ends[label] = seen, module.state_dict()
    assert set(series["whole"]) == {6, 12}
    for label in ("two", "three"):
        assert series[label] == series["whole"], label
        assert checks._equal(ends[label], ends["whole"])
    for scalars in series["whole"].values():
        assert {key.split("/")[1] for key in scalars} == {"before", *DEFAULT_RULES}
        assert len({scalars[f"retrain/{rule}/brier"] for rule in ("before", "unweighted")}) == 2


def test_the_ridge_of_squared_rules_by_leave_one_out_error(tmp_path, capsys):
    """The choice is scikit-learn's RidgeCV's; logistic rules keep theirs, and the order stays."""
    rules = ["balanced_midpoint", "unweighted"]
    callback = LastLayerRetraining("balanced_midpoint", rules, ridge="loo")
    _, module = fit(tmp_path, [callback], enable_checkpointing=False)
    heads = callback.result.heads.heads
    assert list(heads) == rules and heads["unweighted"].ridge == 0.01
    x, y = (part.double().numpy() for part in features_of(module, ODD))
    spread = x.std(0)
    x = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    w = np.bincount(y.astype(int))[y.astype(int)] ** -0.5
    peer = RidgeCV(alphas=len(y) * np.array(RIDGES))
    peer.fit(x, np.eye(CLASSES)[y.astype(int)], sample_weight=w * len(y) / w.sum())
    assert heads["balanced_midpoint"].ridge == pytest.approx(peer.alpha_ / len(y))
    made = torch.load(tmp_path / "firstlight/last-retrained.ckpt", weights_only=True)
    assert made["last_layer_retraining"]["ridge"] == heads["balanced_midpoint"].ridge
    assert "leave-one-out error" in capsys.readouterr().out


class NoValidation(Data):
    val_dataloader = L.LightningDataModule.val_dataloader


def test_without_validation_data_the_heads_are_compared_where_they_were_fitted(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a validation_step without data
        fit(tmp_path, [LastLayerRetraining()], data=NoValidation(), enable_checkpointing=False)
    printed = capsys.readouterr().out
    assert "compared on the data that they are fitted to" in printed
    assert "fitted to 18 examples; on the data fitted to" in printed
    assert (tmp_path / "firstlight/last-retrained.ckpt").is_file()
