"""ProbeMonitor: where probes come from, and which statistics BatchNorm has on them."""

import random

import contract_checks as checks
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from contract_modules import Images, ModuleCase, StepsOnly, TupleBatch
from contract_table import CALLBACKS
from contract_table import loss_and_logits as measure
from probe_runs import CASE, EVERYTHING, Plain, fit_data, folder_of, rows, run
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from firstlight.callbacks import FisherTraceMonitor, ProbeMonitor
from firstlight.datamodules import DigitsDataModule
from firstlight.lightning_modules import ImageClassifier

# Probe sets.


class OnlyNumbers(L.LightningDataModule):
    """Knows a fixed probe."""

    def train_dataloader(self):
        return CASE.loader(shuffle=True)

    def probe_dataloader(self):
        return DataLoader(Images(), 10)


def test_the_data_modules_probe_is_taken(tmp_path, capsys):
    monitor = fit_data(tmp_path, ProbeMonitor(measure, probe_size=15), OnlyNumbers())
    assert torch.equal(monitor.probe_set.inputs, Images().images[:15])
    assert torch.equal(monitor.probe_set.targets, EVERYTHING[1][:15])
    printed = capsys.readouterr().out
    assert "15 examples of OnlyNumbers.probe_dataloader()" in printed
    assert "augmented" not in printed


class Apart(StepsOnly):
    """Its steps call one child after the other."""

    def __init__(self):
        super().__init__()
        self.net, self.fc = self.net[:-1], self.net[-1]

    def logits(self, batch):
        return self.fc(self.net(batch[0]))


def test_steps_that_call_several_children_need_a_forward(tmp_path):
    with pytest.raises(
        TypeError, match=r"calls Apart with inputs, but .* \(net, fc with param.*ada"
    ):
        run(tmp_path, ProbeMonitor(measure, probe_size=15), case=ModuleCase(Apart))
    chosen = ProbeMonitor(measure, probe_size=15, adapter=lambda pl_module, batch: (
        *batch, lambda x: pl_module.fc(pl_module.net(x))
    ))  # fmt: skip
    run(tmp_path / "chosen", chosen, case=ModuleCase(Apart))
    assert rows(tmp_path / "chosen")


@pytest.mark.parametrize(
    "given",
    [EVERYTHING, DataLoader(Images(), 7), DataLoader(Images("image"), 7)],
    ids=["tensors", "loader", "dicts"],
)
def test_an_argument_comes_first(given, tmp_path, capsys):
    monitor = ProbeMonitor(measure, probe=given, probe_size=20)
    fit_data(tmp_path, monitor, OnlyNumbers())
    assert torch.equal(monitor.probe_set.inputs, Images().images[:20])
    assert "the argument probe" in capsys.readouterr().out


def test_a_data_set_is_drawn_from_by_seed(tmp_path):
    def drawn(seed):
        monitor = ProbeMonitor(measure, probe=Images(), probe_size=20, seed=seed)
        return fit_data(tmp_path / str(seed), monitor, OnlyNumbers()).probe_set.inputs

    a, b, c = drawn(1), drawn(1), drawn(2)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    rows = {tuple(row.flatten().tolist()) for row in a}
    assert len(rows) == 20, "without replacement"


class Noisy(Images):
    """Augmented by all three generators."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        shift = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return image + shift.float(), target


def test_training_data_are_drawn_once_with_a_warning(tmp_path, capsys):
    """Whatever the state of the generators; the same again after a resume."""
    probes = []
    for state in (1, 2):
        checks.seed_all(state)
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=tmp_path / str(state), logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            callbacks=[monitor := ProbeMonitor(measure, probe_size=20, seed=4)],
        )  # fmt: skip
        trainer.fit(Plain(), DataLoader(Noisy(), 8, shuffle=True))
        probes.append(monitor.probe_set)
    assert probes[0].fingerprint == probes[1].fingerprint
    assert torch.equal(probes[0].inputs, probes[1].inputs)
    assert capsys.readouterr().out.count("if they are augmented") == 2


def test_fewer_examples_than_asked_is_said(tmp_path, capsys):
    monitor = fit_data(tmp_path, ProbeMonitor(measure, probe_size=100), OnlyNumbers())
    assert monitor.probe_set.size == 37
    assert "asked for 100 probe examples, got 37" in capsys.readouterr().out


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Images())


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ((Images().images[:0], EVERYTHING[1][:0]), "probe set is empty"),
        (DataLoader(Images(), 8, sampler=[]), "probe set is empty"),
        ((Images().images, EVERYTHING[1][:5]), "37 inputs, but 5 targets"),
        (iter([]), "probe must be a loader"),
        ("train", "probe must be a loader"),
        (3, "probe must be a loader"),
        ([(torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long)),
          (torch.rand(4, 3, 5, 5), torch.zeros(4, dtype=torch.long))], "do not fit together"),
    ],
)  # fmt: skip
def test_bad_probes_are_refused(probe, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit_data(tmp_path, ProbeMonitor(measure, probe=probe), OnlyNumbers())


def test_a_stream_of_training_data_asks_for_a_probe(tmp_path):
    with pytest.raises(ValueError, match=r"found no probe set.*Pass probe="):
        fit_data(tmp_path, ProbeMonitor(measure), DataLoader(Stream(), 8))
    given = ProbeMonitor(measure, probe=Stream(), probe_size=10)
    assert fit_data(tmp_path, given, DataLoader(Stream(), 8)).probe_set.size == 10


def test_soft_targets_are_kept(tmp_path):
    soft = torch.full((12, 3), 0.1)
    soft[:, 1] = 0.8
    monitor = CALLBACKS["SharpnessMonitor"].build(probe=(EVERYTHING[0][:12], soft))
    fit_data(tmp_path, monitor, OnlyNumbers())
    assert torch.equal(monitor._targets, soft)


def test_ours_needs_nothing(tmp_path, capsys):
    data = DigitsDataModule(batch_size=64, img_size=8, seed=1)
    fit_data(tmp_path, FisherTraceMonitor(probe_size=20), data, ImageClassifier("resnet20_cifar"))
    printed = capsys.readouterr().out
    assert "20 examples of DigitsDataModule.probe_dataloader()" in printed
    blocks = folder_of(tmp_path).read("fisher_trace")["block"].to_pylist()
    assert list(dict.fromkeys(blocks)) == ["", "stem", "layer1", "layer2", "layer3", "head"]


# BatchNorm.


def test_untouched_statistics_are_said_and_warm_ones_are_the_probes(tmp_path, capsys):
    """Oracle: BatchNorm's own statistics after a step in train mode with momentum 1."""
    run(tmp_path, ProbeMonitor(measure, every_n_train_steps=5))
    assert "batch_norm='warm' measures without that" in capsys.readouterr().out
    run(tmp_path, ProbeMonitor(measure, every_n_train_steps=5, batch_norm="warm"))
    assert "batch_norm='warm'" not in capsys.readouterr().out
    module = TupleBatch().double()
    module.net[3].p = 0.0
    warm = ProbeMonitor(measure, batch_norm="warm", probe_batch_size=None)
    found = warm.measured(module, *EVERYTHING)[0].value
    module.train()
    norm = module.net[1]
    norm.momentum = 1.0
    with torch.no_grad():
        module(EVERYTHING[0].double())
    module.eval()
    with torch.no_grad():
        want = F.cross_entropy(module(EVERYTHING[0].double()), EVERYTHING[1]).item()
    assert found == pytest.approx(want, rel=1e-12)


def test_warm_statistics_hide_the_course_of_the_running_ones(tmp_path):
    """At a learning rate of 0 nothing is learned: "running" moves, "warm" stands still."""

    class Still(TupleBatch):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    found = {}
    for mode in ("running", "warm"):
        monitor = FisherTraceMonitor(
            every_n_train_steps=1, batch_norm=mode, probe=EVERYTHING, probe_size=37,
            probe_batch_size=9,
        )  # fmt: skip
        run(tmp_path / mode, monitor, case=checks.ModuleCase(Still))
        table = folder_of(tmp_path / mode).read("fisher_trace").to_pylist()
        found[mode] = [row["value"] for row in table if row["block"] == ""]
    assert len(set(found["warm"])) == 1
    assert max(found["running"]) > 1.05 * min(found["running"])
