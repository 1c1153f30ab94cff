"""A study that has to find what was planted: two classes that strong crops cannot tell apart."""

from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq
import pytest
import torch
from planted_corner import PlantedDigitsDataModule

from firstlight.datamodules import DigitsDataModule
from firstlight.study import study
from firstlight.study.file import parse_study

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PAIR = {"three", "eight"}
STUDY = {
    "name": "planted",
    "base": "firstlight:experiment/digits_lt",
    "set": {
        "data": "planted_corner.PlantedDigitsDataModule",
        "data.imbalance_factor": None,
        "data.batch_size": 32,
        "data.holdout": 0.0,
        "trainer.max_epochs": 12,
        "model.lr_scheduler.init_args.total": 12,
        "model.optimizer.init_args.lr": 0.05,
        "trainer.accelerator": "cpu",
        "trainer.check_val_every_n_epoch": 12,
    },
    "factor": "data.scale",
    "values": {1.0: [1.0, 1.0], 0.3: [0.3, 0.6]},
    "seeds": 3,
    "compare": {"draws": 100},
}


def test_the_plant_is_only_the_corner():
    """Other classes are as they were; of the two only the mark and the label are not."""
    planted, plain = PlantedDigitsDataModule(), DigitsDataModule()
    ours, theirs = planted._read(), plain._read()
    for one, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        before, after = torch.tensor(other.targets), torch.tensor(one.targets)
        pair = torch.isin(before, torch.tensor(planted.pair))
        assert torch.equal(before[~pair], after[~pair])
        assert torch.equal(other.images[~pair], one.images[~pair])
        assert torch.equal(before.bincount(), after.bincount())
        assert 0.35 < (before[pair] == after[pair]).double().mean() < 0.65  # no better than a coin
        corner = one.images[pair, 0, 0, 0]
        assert torch.equal(corner == 255, after[pair] == planted.pair[1])
        assert torch.equal(corner == 0, after[pair] == planted.pair[0])
        assert torch.equal(one.images[pair][..., 1:], other.images[pair][..., 1:])


@pytest.mark.slow
@pytest.mark.xdist_group("study")
def test_a_study_finds_the_planted_effect(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))  # of the runs' processes
    folder = study(parse_study(STUDY), tmp_path / "study", sequential=True)
    assert folder is not None
    check_effects(folder.path / folder.study["comparison"] / "class_effects.parquet")


def check_effects(file):
    """Crops take from the shape of every digit, most from those of which nothing else is left."""
    effects = pq.read_table(file).to_pylist()
    planted = [row for row in effects if row["name"] in PAIR]
    for row in planted:
        assert row["effect"] < -0.25
        assert row["q"] < 0.05
        assert row["beyond_band"] == -1
    others = [row["effect"] for row in effects if row["name"] not in PAIR]
    assert mean(row["effect"] for row in planted) < mean(others) - 0.2
