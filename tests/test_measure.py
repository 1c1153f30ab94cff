"""``firstlight measure`` against what the monitors recorded during the same run."""

import json
import math
import re
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from firstlight import cli
from firstlight.callbacks import FisherTraceMonitor, SharpnessMonitor
from firstlight.checkpoints import CheckpointError, find_checkpoints, read_checkpoint
from firstlight.datamodules import DigitsDataModule
from firstlight.lightning_modules import ImageClassifier
from firstlight.measure import measure
from firstlight.rebuild import find_config
from firstlight.runfolder import RunFolder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning's use of torch's pytrees
]
PROBE = 24
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
FOREIGN = """
import lightning.pytorch as pl
import torch
from pathlib import Path
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Module(pl.LightningModule):
    def __init__(self, width, root=None):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Forgetful(Module):
    def __init__(self, width):
        nn.Module.__init__(self)
        pl.LightningModule.__init__(self)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 3))


def examples(n=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 2, 2, generator=generator)
    return TensorDataset(x, torch.randint(3, (n,), generator=generator))


class Data(pl.LightningDataModule):
    def __init__(self, n=40):
        super().__init__()
        self.n = n

    def train_dataloader(self):
        return DataLoader(examples(self.n), batch_size=8)
"""


def fit(folder, module, data, callbacks, steps=4, **options):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=CSVLogger(folder, name=None),
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        limit_val_batches=0,
        callbacks=[*callbacks, ModelCheckpoint(every_n_train_steps=2, save_top_k=-1,
                                               save_last=True)],
        **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return Path(trainer.log_dir)


def run_config(run):
    return run / "firstlight/config.yaml"


def digits():
    return DigitsDataModule(img_size=8, batch_size=32, seed=3, probe_size=PROBE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run under both monitors, with checkpoints at steps 2 and 4 and last.ckpt."""
    module = ImageClassifier("resnet20_cifar", num_classes=10, optimizer=SGD, seed=5)
    settings = {"every_n_train_steps": 2, "probe_size": PROBE, "seed": 7}
    monitors = [FisherTraceMonitor(**settings), SharpnessMonitor(**settings)]
    return fit(tmp_path_factory.mktemp("run"), module, digits(), monitors)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Somebody else's package, and a run of it."""
    (tmp_path / "somebody.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "somebody", raising=False)
    import somebody

    data = somebody.Data()
    return fit(tmp_path / "run", somebody.Module(4), data, []) / "checkpoints"


def command(*arguments, patch):
    patch.setattr(sys, "argv", ["firstlight", "measure", *map(str, arguments)])
    cli.main()


def rows(folder, table):
    columns = ("value", "se", "per_parameter", "n", "epoch")
    return {
        (row["step"], row["kind"], row["block"]): tuple(repr(row[c]) for c in columns)
        for row in RunFolder.open(folder).read(table).to_pylist()
    }


def test_the_numbers_are_bitwise_those_of_the_monitors(run, monkeypatch, capsys):
    command(run, "--probe-size", PROBE, patch=monkeypatch)
    for table in ("fisher_trace", "sharpness"):
        online, offline = rows(run / "firstlight", table), rows(run / "measured", table)
        assert {key[0] for key in online} == {0, 2, 4}
        assert offline == {key: row for key, row in online.items() if key[0]}
        assert offline
    folder = RunFolder.open(run / "measured")
    assert folder.run["status"] == "finished" and folder.run["seed"] == 7
    assert folder.run["weights"] == "raw"
    assert (folder.path / "figures/early_training.png").exists()
    printed = capsys.readouterr().out
    assert "epoch=0-step=2.ckpt" in printed and "early_training.png" in printed
    assert "another probe set" not in printed and "last.ckpt" not in printed


def test_another_seed_or_size_is_another_probe_set_and_said(run, tmp_path, capsys):
    last = run / "checkpoints/last.ckpt"
    found = measure([last], probe_size=PROBE - 1, output=tmp_path / "run", measures=["average"])
    assert "another probe set than that of the run's own monitors" in capsys.readouterr().out
    (key,) = rows(found, "sharpness")
    assert key == (4, "average", "")
    assert rows(found, "sharpness")[key] != rows(run / "firstlight", "sharpness")[key]
    assert not (found / "fisher_trace").exists()
    again = measure([last], probe_size=PROBE - 1, output=tmp_path / "run", measures=["average"])
    assert again == tmp_path / "run-1" and rows(again, "sharpness") == rows(found, "sharpness")


def test_the_average_is_measured_where_that_is_asked_for(tmp_path):
    """Against the monitor on a module into which the checkpoint's average was put by hand."""
    module = ImageClassifier("resnet20_cifar", num_classes=10, optimizer=SGD, seed=5)
    path = fit(tmp_path, module, digits(), [EMAWeightAveraging(decay=0.5)]) / "checkpoints"
    path = path / "epoch=0-step=2.ckpt"
    content = torch.load(path, weights_only=True)
    data = digits()
    data.setup("fit")
    inputs, targets = (torch.cat(parts) for parts in zip(*data.probe_dataloader(), strict=True))
    monitor = FisherTraceMonitor(probe_size=PROBE, seed=5)
    values = {}
    for weights, key in {"ema": "state_dict", "raw": "current_model_state"}.items():
        module.load_state_dict(content[key])
        (expected, *_) = monitor.measured(module, inputs[:PROBE], targets[:PROBE])
        folder = measure([path], measures=["fisher_trace"], weights=weights, probe_size=PROBE,
                         output=tmp_path / weights)  # fmt: skip
        values[weights] = rows(folder, "fisher_trace")[2, "importance", ""][0]
        assert values[weights] == repr(expected.value)
        assert RunFolder.open(folder).run["weights"] == weights
    assert values["ema"] != values["raw"]
    auto = measure([path], measures=["fisher_trace"], weights="auto", probe_size=PROBE)
    assert auto == path.parents[1] / "measured"
    assert rows(auto, "fisher_trace")[2, "importance", ""][0] == values["ema"]


def test_a_foreign_module_and_its_training_data(foreign, monkeypatch, capsys):
    """Against the monitor on the module that the trainer itself would load."""
    import somebody

    data = ("--data", "somebody.Data", "--data_args", "{n: 20}", "--probe_size", 20)
    command(foreign, "--model", "somebody.Module", *data, "--measures", "fisher_trace",
            patch=monkeypatch)  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "if they are augmented, so is the probe" in said
    found = rows(foreign.parent / "measured", "fisher_trace")
    inputs, targets = somebody.examples(20).tensors
    for step in (2, 4):
        module = somebody.Module.load_from_checkpoint(foreign / f"epoch=0-step={step}.ckpt")
        (expected, *_) = FisherTraceMonitor(estimator="exact").measured(module, inputs, targets)
        value, error = (float(x) for x in found[step, "importance", ""][:2])
        # Both estimate the mean of the same 20 examples, in another order and by other draws.
        assert abs(value - expected.value) < 2 * error
        assert 0 < error < 0.5 * value


def test_a_function_that_makes_a_data_set_serves_as_data(foreign, tmp_path):
    folder = measure([foreign], model="somebody.Module", data="somebody.examples",
                     probe_size=16, measures=["average"], output=tmp_path / "out")  # fmt: skip
    assert sorted(key[0] for key in rows(folder, "sharpness")) == [2, 4]


def test_types_that_could_run_code_are_named_and_admitted_one_by_one(foreign, tmp_path):
    before = torch.serialization.get_safe_globals()
    path = foreign / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["root"] = Path("data")
    torch.save(content, tmp_path / "path.ckpt")
    refused = type(Path("data")).__module__ + "." + type(Path("data")).__qualname__
    with pytest.raises(CheckpointError, match=rf"{refused}.*--trust {refused}"):
        read_checkpoint(tmp_path / "path.ckpt")
    options = {"model": "somebody.Module", "data": "somebody.Data", "probe_size": 8}
    with pytest.raises(CheckpointError, match="--trust"):
        measure([tmp_path / "path.ckpt"], **options)
    folder = measure([tmp_path / "path.ckpt"], trust=[refused], **options)
    assert folder == tmp_path / "measured" and rows(folder, "sharpness")
    with pytest.raises(CheckpointError, match=r"'somebody.Absent' cannot be imported"):
        read_checkpoint(path, trust=["somebody.Absent"])
    assert torch.serialization.get_safe_globals() == before


def test_a_diverged_checkpoint_is_recorded_as_nan(run, tmp_path):
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    content["state_dict"]["model.fc.weight"] *= math.nan
    torch.save(content, tmp_path / "nan.ckpt")
    (tmp_path / "config.yaml").write_bytes(run_config(run).read_bytes())
    folder = measure([tmp_path / "nan.ckpt"], probe_size=PROBE)
    assert rows(folder, "fisher_trace")[4, "importance", ""][0] == "nan"
    assert rows(folder, "sharpness")[4, "average", ""][0] == "nan"


def edited(path, target, without=(), **changes):
    content = torch.load(path, weights_only=True)
    for name in without:
        content.pop(name)
    for name, change in changes.items():
        content[name] = change(content[name])
    torch.save(content, target)
    return target


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("empty", (), r"there is no checkpoint \(\*.ckpt\) in "),
        ("absent.ckpt", (), r"there is no checkpoint .*absent.ckpt"),
        ("cut.ckpt", (), r"cut.ckpt cannot be read as a checkpoint"),
        ("plain.ckpt", (), "is not a Lightning checkpoint: it has no global_step"),
        ("list.ckpt", (), "is not a checkpoint: it holds one list"),
        ("foreign.ckpt", (), "say by --model which LightningModule"),
        ("foreign.ckpt", ("--model", "nowhere.Module"), "'nowhere.Module' cannot be imported"),
        ("foreign.ckpt", ("--model", "pathlib.Path"), "is not a LightningModule class"),
        ("foreign.ckpt", ("--model", "firstlight.lightning_modules.ImageClassifier"),
         "cannot be loaded into ImageClassifier"),
        ("narrow.ckpt", (), "head has 10 classes|does not fit|cannot be loaded"),
        ("good.ckpt", ("--data", "CIFAR100DataModule", "--data_args", "{root: x}"), "no CIFAR100"),
        ("good.ckpt", ("--data", "absent.yaml"), "there is no file absent.yaml"),
        ("good.ckpt", ("--data", "empty.yaml"), "says nothing of the data"),
        ("good.ckpt", ("--weights", "ema"), "holds no moving average"),
        ("good.ckpt", ("--rho", "0"), "rho must be positive"),
        ("good.ckpt", ("--probe-size", "0"), "probe_size"),
        ("good.ckpt", ("--device", "gpu9"), "device 'gpu9' cannot be used"),
        ("lonely/good.ckpt", (), "nothing says what .* was trained on"),
        ("two", (), "hold different weights of step 4: give the checkpoints of one run"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_one_line(
    case, options, message, run, tmp_path, monkeypatch, capsys
):
    source = run / "checkpoints/last.ckpt"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.yaml").write_text("model: 1\n")
    (tmp_path / "config.yaml").write_bytes(run_config(run).read_bytes())
    (tmp_path / "cut.ckpt").write_bytes(source.read_bytes()[:5000])
    (tmp_path / "good.ckpt").write_bytes(source.read_bytes())
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    state = {"state_dict": {"w": torch.ones(1)}, "global_step": 1, "hyper_parameters": {}}
    torch.save(state, tmp_path / "foreign.ckpt")
    edited(source, tmp_path / "narrow.ckpt", hyper_parameters=lambda h: h | {"num_classes": 9})
    (tmp_path / "two").mkdir()
    edited(source, tmp_path / "two/a.ckpt")
    edited(source, tmp_path / "two/b.ckpt",
           state_dict=lambda s: s | {"model.fc.bias": s["model.fc.bias"] + 1})  # fmt: skip
    lonely = tmp_path / "far/from/lonely"
    lonely.mkdir(parents=True)
    edited(source, lonely / "good.ckpt", without=("DigitsDataModule", "callbacks"))
    path = lonely / "good.ckpt" if case.startswith("lonely") else tmp_path / case
    with pytest.raises(SystemExit) as stop:
        command(path, "--probe-size", PROBE, *options, patch=monkeypatch)
    assert stop.value.code not in (0, None)
    said = str(stop.value.code)
    assert said.startswith("firstlight measure: ")

    assert re.search(message, said), said
    assert not list(tmp_path.rglob("measured")), "nothing is left of a refused command"


def test_unknown_measures_are_refused(run, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        command(run, "--measures", "curvature", patch=monkeypatch)
    assert stop.value.code
    assert "invalid choice: 'curvature'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"measures are fisher_trace, average.*not curvature"):
        measure([run], measures=["curvature"])


def test_a_class_count_that_does_not_fit_the_data(run, tmp_path):
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    content["hyper_parameters"]["num_classes"] = 100
    for name in ("weight", "bias"):
        full = content["state_dict"][f"model.fc.{name}"]
        content["state_dict"][f"model.fc.{name}"] = full.repeat_interleave(10, 0)
    torch.save(content, tmp_path / "wide.ckpt")
    with pytest.raises(CheckpointError, match="has 100 classes, DigitsDataModule has 10"):
        measure([tmp_path / "wide.ckpt"], data=str(run_config(run)))


def test_a_module_that_did_not_save_its_arguments_names_them(foreign, tmp_path):
    path = edited(foreign / "last.ckpt", tmp_path / "bare.ckpt", hyper_parameters=lambda _: {})
    options = {"model": "somebody.Forgetful", "data": "somebody.Data", "measures": ["average"]}
    with pytest.raises(CheckpointError, match=r"does not hold the argument 'width'.*--model_args"):
        measure([path], **options)
    assert rows(measure([path], model_args={"width": 4}, probe_size=8, **options), "sharpness")


def test_checkpoints_come_in_the_order_of_steps_and_once(run):
    found = find_checkpoints([run / "checkpoints/last.ckpt", run, run / "checkpoints"])
    assert [step for step, _ in found] == [2, 4]
    assert find_checkpoints([run])[1][1].name == "epoch=0-step=4.ckpt"


def test_the_data_are_found_in_either_kind_of_configuration(tmp_path):
    checkpoints = tmp_path / "version_0/checkpoints"
    checkpoints.mkdir(parents=True)
    path = checkpoints / "a.ckpt"
    assert find_config(path, {}) is None
    section = {"data": {"class_path": "firstlight.datamodules.DigitsDataModule"}}
    ours = tmp_path / "version_0/firstlight/config.yaml"
    ours.parent.mkdir()
    ours.write_text(yaml.safe_dump(section))
    assert find_config(path, {}) is None  # no run folder without its run.json
    ours.with_name("run.json").write_text("{}")
    assert find_config(path, {}) == ours
    theirs = tmp_path / "version_0/config.yaml"
    theirs.write_text(yaml.safe_dump(section))
    assert find_config(path, {}) == theirs
    theirs.write_text(json.dumps({"data": None}))
    assert find_config(path, {}) == ours
    neighbour = tmp_path / "version_1/config.yaml"
    neighbour.parent.mkdir()
    neighbour.write_text(yaml.safe_dump(section))
    assert find_config(tmp_path / "version_2/a.ckpt", {}) is None
    second = tmp_path / "version_0/firstlight-1/config.yaml"
    second.parent.mkdir()
    second.with_name("run.json").write_text("{}")
    second.write_text(yaml.safe_dump({"data": {"class_path": "other.Data"}}))
    with pytest.raises(CheckpointError, match=r"tell of different data: say by --data"):
        find_config(path, {})
    states = {"FisherTraceMonitor": {"run_dir": str(second.parent)}, "Other": 3}
    assert find_config(path, {"callbacks": states}) == second
