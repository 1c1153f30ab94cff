"""``firstlight retrain-last-layer`` and ``correct-prior`` on checkpoints, ours and foreign."""

import sys
import textwrap

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from firstlight import cli
from firstlight.callbacks.linear_head import HeadError
from firstlight.checkpoints import CheckpointError
from firstlight.last_layer import correct_prior, retrain_last_layer

SCRIPT = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, width=16, bias=True):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Tanh())
        self.out = nn.Linear(width, 3, bias=bias)

    def forward(self, x):
        return self.out(self.body(x))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def examples(n=90):
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 60 + [1] * 20 + [2] * 10)
    x = torch.randn(n, 3, 2, 2, generator=generator)
    x[:, :, 0, 0] += y[:, None]
    return TensorDataset(x, y)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Subset(examples(), range(0, 90, 2)), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Subset(examples(), range(1, 90, 4)), batch_size=8)


class WithHoldOut(Data):
    class_counts = (30, 10, 5)

    def holdout_dataloader(self):
        return DataLoader(Subset(examples(), range(3, 90, 4)), batch_size=8)


def train(path, **arguments):
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
                         enable_checkpointing=False, enable_model_summary=False,
                         default_root_dir=path.parent, limit_val_batches=0)
    trainer.fit(Net(**arguments), Data().train_dataloader())
    trainer.save_checkpoint(path)
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A package that does not import firstlight, and a checkpoint it trained."""
    assert "firstlight" not in SCRIPT
    (tmp_path / "plain_script.py").write_text(textwrap.dedent(SCRIPT))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("plain_script", None)
    import plain_script

    path = tmp_path / "run.ckpt"
    plain_script.train(path)
    yield plain_script, path
    sys.modules.pop("plain_script", None)


def firstlight(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["firstlight", *map(str, arguments)])
    cli.main()


OPTIONS = ("--model", "plain_script.Net", "--device", "cpu")


def test_a_foreign_checkpoint_gets_another_head_from_the_command_line(foreign, monkeypatch, capsys):
    script, path = foreign
    firstlight(monkeypatch, "retrain-last-layer", path, *OPTIONS, "--data",
               "plain_script.WithHoldOut", "--rule", "inverse_frequency", "--rules",
               "balanced_midpoint", "logit_adjustment", "--ridge", "loo")  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "The last layer is 'out', 16 features to 3 classes", "WithHoldOut's hold-out",
        "on validation data", "inverse_frequency *", "logit_adjustment", "inverse_frequency, by",
        "under the training prior", "run-retrained.ckpt", "ECE at T T Brier",
        "balanced_midpoint: ridge", "by leave-one-out error",
    ):  # fmt: skip
        assert part in printed, part
    made = torch.load(path.with_name("run-retrained.ckpt"), weights_only=True)
    old = torch.load(path, weights_only=True)
    moved = {k for k, v in made["state_dict"].items() if not torch.equal(v, old["state_dict"][k])}
    assert moved == {"out.weight", "out.bias"}
    kept = made["last_layer_retraining"]
    assert torch.equal(kept["old_weight"], old["state_dict"]["out.weight"])
    assert made["global_step"] == old["global_step"]
    script.Net.load_from_checkpoint(path.with_name("run-retrained.ckpt"), weights_only=True)


def test_the_prior_is_folded_into_the_bias(foreign, monkeypatch, capsys):
    script, path = foreign
    firstlight(monkeypatch, "correct-prior", path, *OPTIONS, "--data", "plain_script.WithHoldOut",
               "--tau", 0.5, "--target-prior", 1, 1, 2)  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert "differs from logit adjustment" in printed and "prior corrected *" in printed
    target = path.with_name("run-prior-corrected.ckpt")
    before, after = (script.Net.load_from_checkpoint(p, weights_only=True) for p in (path, target))
    x = torch.stack([x for x, _ in script.examples()])
    with torch.no_grad():
        z, found = (m.cpu()(x).double().numpy() for m in (before, after))
    q = softmax(z[3:90:4], axis=1).mean(0)
    expected = log_softmax(z - 0.5 * np.log(q) + np.log([0.25, 0.25, 0.5]), axis=1)
    np.testing.assert_allclose(log_softmax(found, axis=1), expected, atol=1e-5)
    with pytest.raises(CheckpointError, match="corrected already"):
        correct_prior(target, model="plain_script.Net", data="plain_script.Data")


@pytest.mark.parametrize("command", [retrain_last_layer, correct_prior])
def test_what_does_not_serve_is_refused_and_nothing_written(foreign, command):
    script, path = foreign
    options = {"model": "plain_script.Net", "device": "cpu"}
    with pytest.raises(ValueError, match=r"Data has no holdout_dataloader.*--on='val'"):
        command(path, data="plain_script.Data", **options)
    with pytest.raises(CheckpointError, match="--model"):
        command(path)
    script.train(path, bias=False)
    with pytest.raises(HeadError, match=r"'out'.*has no bias"):
        command(path, data="plain_script.Data", on="train", **options)
    assert list(path.parent.glob("*.ckpt")) == [path]


def test_files_are_not_overwritten(foreign):
    _, path = foreign
    options = {"model": "plain_script.Net", "data": "plain_script.Data", "on": "train"}
    made = retrain_last_layer(path, device="cpu", **options)
    with pytest.raises(FileExistsError, match="another --output"):
        retrain_last_layer(path, device="cpu", **options)
    again = retrain_last_layer(path, device="cpu", output=path.with_name("b.ckpt"), **options)
    one, other = (torch.load(p, weights_only=True)["state_dict"] for p in (made, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_data_given_as_a_data_set_are_fitted_to(foreign, capsys):
    _, path = foreign
    retrain_last_layer(path, model="plain_script.Net", data="plain_script.examples", device="cpu")
    printed = " ".join(capsys.readouterr().out.split())
    assert "from 90 examples; on the data fitted to, which flatters" in printed
