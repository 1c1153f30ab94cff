"""The command line as a user meets it; every config that ships is parsed, most are run."""

import csv
import itertools
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from firstlight import cli, datamodules
from firstlight.runfolder import RunFolder

ROOT = Path(__file__).parents[1]
CONFIGS = {p.relative_to(ROOT / "configs").with_suffix("").as_posix(): p
           for p in (ROOT / "configs").rglob("*.yaml")}  # fmt: skip
PARTS = ("model", "data", "callbacks", "loss", "lr_scheduler", "experiment")
KINDS = {kind: [n for n in CONFIGS if n.startswith(kind)] for kind in PARTS}
TINY = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture
def firstlight(monkeypatch, tmp_path, capsys):
    """Run the command line in a folder of its own; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["firstlight", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err + str(stop.code)
        return capsys.readouterr().out

    return run


def refused(monkeypatch, tmp_path, capsys, *arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["firstlight", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code
    return capsys.readouterr().err + str(stop.value.code)


def printed_config(firstlight, *names, command="fit"):
    arguments = itertools.chain.from_iterable(("--config", f"firstlight:{n}") for n in names)
    return yaml.safe_load(firstlight(command, *arguments, "--print_config"))


def test_the_wheel_and_the_folder_hold_the_same_configs():
    assert cli.config_names() == sorted(CONFIGS)
    assert all(KINDS.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_a_header(name):
    header = "".join(line for line in CONFIGS[name].read_text().splitlines() if line[:1] == "#")
    assert "Command:" in header
    if name.startswith("experiment"):
        assert "Hardware:" in header or "CPU" in header
        assert "Expect:" in header


@pytest.mark.parametrize("name", KINDS["experiment"])
def test_every_experiment_parses(name, firstlight):
    config = printed_config(firstlight, name)
    assert config["data"]["class_path"].startswith("firstlight.datamodules.")
    assert config["model"]["model_name"]


def test_all_parts_compose_and_are_all_found(firstlight):
    for model, data in itertools.product(KINDS["model"], KINDS["data"]):
        config = printed_config(firstlight, model, data, *KINDS["callbacks"])
        given = [yaml.safe_load(CONFIGS[name].read_text()) for name in KINDS["callbacks"]]
        wanted = [c["class_path"].split(".")[-1] for g in given for c in g["trainer"]["callbacks+"]]
        found = [c["class_path"].split(".")[-1] for c in config["trainer"]["callbacks"]]
        assert found == wanted
        own = yaml.safe_load(CONFIGS[model].read_text())["model"]
        assert config["model"]["model_name"] == own["model_name"]
        assert config["data"]["class_path"].endswith(
            yaml.safe_load(CONFIGS[data].read_text())["data"]["class_path"]
        )


def test_callbacks_append_to_an_experiments_own(firstlight):
    config = printed_config(firstlight, "experiment/digits_lt", "callbacks/ema")
    names = [c["class_path"].split(".")[-1] for c in config["trainer"]["callbacks"]]
    assert names == ["PerClassMonitor", "ModelCheckpoint", "EMAWeightAveraging"]


@pytest.fixture
def images(tmp_path):
    """Two classes of twelve small images, told apart by colour."""
    for index in range(12):
        for name, colour in {"blue": (20, 30, 220), "red": (220, 40, 30)}.items():
            file = tmp_path / "data/images" / name / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), tuple(c + index for c in colour)).save(file)
    return tmp_path / "data/images"


@pytest.fixture
def cifar(tmp_path):
    """The folder layout of CIFAR with ten classes of eight images."""
    for name in ("cifar10", "cifar100"):
        classes = 10 if name == "cifar10" else 100
        for split, number in (("train", 8), ("test", 1)):
            for c, index in itertools.product(range(classes), range(number)):
                file = tmp_path / "data" / name / split / f"class_{c:03}" / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (c * 2, index * 20, 99)).save(file)


@pytest.mark.parametrize("data", KINDS["data"])
def test_every_data_config_trains(data, firstlight, images, cifar, tmp_path):
    small = ["--data.imbalance_factor=2"] if "cifar" in data else []
    small += ["--data.img_size=32", "--data.num_workers=0"] if "folder" in data else []
    firstlight(
        "fit", "--config", "firstlight:model/resnet20_cifar_short", "--config",
        f"firstlight:{data}", *TINY, *small,
    )  # fmt: skip
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in KINDS["data"]])
def test_every_other_config_trains(name, firstlight, cifar, tmp_path):
    base = [] if name.startswith("experiment") else ["--config", "firstlight:data/digits_lt"]
    if name.startswith(("callbacks", "loss", "lr_scheduler")):
        base += ["--config", "firstlight:model/resnet20_cifar_short"]
    small = ["--data.imbalance_factor=2"] if "cifar10_lt" in name else []
    if "two_stage" in name:
        small.append("--trainer.max_epochs=3")  # the second stage begins with the third epoch
    if "resnet50" in name:
        small = ["--model.pretrained=false", "--data.img_size=32"]
    batches = 6 if "unfreezing" in name else 2  # as many as it takes to open all blocks
    firstlight("fit", *base, "--config", f"firstlight:{name}", *TINY, *small,
               f"--trainer.limit_train_batches={batches}")  # fmt: skip
    assert list(tmp_path.rglob("*.ckpt"))


def learning_rates(tmp_path):
    """By step, of a run whose rates were logged by ``callbacks/lr_monitor``."""
    (run,) = tmp_path.rglob("metrics.csv")
    with run.open() as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return {int(r["step"]): [float(v) for k, v in r.items() if k.startswith("lr-")]
            for r in rows if any(k.startswith("lr-") for k in r)}  # fmt: skip


@pytest.mark.parametrize(("name", "late"), [("tenth", 0.01), ("warmup", 0.1)])
def test_the_controls_of_the_learning_rate(name, late, firstlight, tmp_path):
    """A tenth of the experiment's rate (0.1): throughout, or for the first steps."""
    steps = ["--model.lr_scheduler.init_args.total_iters=4"] if name == "warmup" else []
    firstlight(
        "fit", "--config", "firstlight:experiment/digits_lt", "--config",
        "firstlight:callbacks/lr_monitor", "--config", f"firstlight:lr_scheduler/{name}", *steps,
        *TINY, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1",
        "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs",
    )  # fmt: skip
    rates = learning_rates(tmp_path)
    assert max(rates) >= 4
    for step, found in rates.items():
        assert found == pytest.approx([0.01 if step < 4 else late] * len(found))


UNFREEZING = {
    "schedule: [[25%, layer3], [4, [layer2, layer1]]]":
    [("layer3", 3), ("layer2", 4), ("layer1", 4)],
    "signal: train/loss_step\n        rule: {every: 1, window: 1, quiet: 1, longest: 2}\n"
    "        blocks: {low: model.(?!fc), head: [model.fc]}": [("low", 2)],
    "interval: 0.5 epochs\n        start: layer3": [("layer2", 3), ("layer1", 6), ("stem", 9)],
}  # fmt: skip


@pytest.mark.parametrize("arguments", UNFREEZING)
def test_gradual_unfreezing_from_yaml(arguments, firstlight, tmp_path):
    """All its forms of times, blocks and rules are plain YAML."""
    entry = f"- class_path: GradualUnfreezing\n      init_args:\n        {arguments}\n"
    (tmp_path / "mine.yaml").write_text(f"trainer:\n  callbacks+:\n    {entry}")
    firstlight("fit", "--config", "firstlight:experiment/digits_lt", "--config", "mine.yaml", *TINY,
               "--trainer.max_epochs=2")  # fmt: skip
    (run,) = tmp_path.rglob("run.json")
    events = RunFolder.open(run.parent).read("events")
    assert [(e["block"], e["step"]) for e in events.to_pylist()] == UNFREEZING[arguments]


# Lightning asks for the callbacks of the training run, which prediction does not need.
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`.*")
@pytest.mark.filterwarnings("ignore:The dirpath has changed.*")
def test_fit_test_predict_and_export(firstlight, images, tmp_path):
    """A whole way: train on a folder, test, predict on a plain folder, export, load with timm."""
    import timm

    monitor = ["--trainer.callbacks+=PerClassMonitor"]
    folder = ["--data=ImageFolderDataModule", f"--data.root={images}", "--data.num_workers=0"]
    size = ["--data.img_size=32", "--data.mean=[0.4,0.4,0.4]", "--data.std=[0.3,0.3,0.3]"]
    firstlight("fit", "--model.model_name=resnet20_cifar", *folder, *size, *TINY, *monitor,
               "--data.batch_size=4", "--trainer.max_epochs=4")  # fmt: skip
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    (description,) = tmp_path.rglob("run.json")
    assert RunFolder.open(description.parent).read("classes")["name"].to_pylist() == ["blue", "red"]

    where = f"--ckpt_path={checkpoint}"
    predict = ["--data=ImageFolderDataModule", f"--data.predict_dir={images}"]
    output = firstlight("predict", where, *predict, "--data.num_workers=0", *TINY[1:])
    (file,) = tmp_path.rglob("predictions.csv")
    assert f"24 predictions: {file}" in output
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 24
    assert rows[0]["path"].endswith("blue/00.png")
    assert {row["class"] for row in rows} <= {"blue", "red"}
    assert all(float(row["probability"]) >= 0.5 for row in rows)

    network = tmp_path / "network.safetensors"
    firstlight("export", checkpoint, "--output", network)
    model = timm.create_model("resnet20_cifar", num_classes=2, checkpoint_path=network).eval()
    data = datamodules.ImageFolderDataModule(
        img_size=32, mean=[0.4] * 3, std=[0.3] * 3, predict_dir=str(images), num_workers=0
    )
    data.setup("predict")
    names = ["blue", "red"]
    with torch.no_grad():
        batches = [model(batch[0]).softmax(1) for batch in data.predict_dataloader()]
    for row, probabilities in zip(rows, torch.cat(batches), strict=True):
        # Predicted on images prepared as in training, although nothing on that line said so.
        assert row["class"] == names[int(probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(probabilities.max().item(), rel=1e-4)


def test_data_are_asked_for_with_the_choices(monkeypatch, tmp_path, capsys):
    said = refused(monkeypatch, tmp_path, capsys, "fit", "--model.model_name", "resnet18")
    assert "'fit' needs data: pass --data CLASS" in said
    assert "DigitsDataModule" in said


def test_unknown_configs_are_listed(monkeypatch, tmp_path, capsys):
    said = refused(monkeypatch, tmp_path, capsys, "fit", "--config", "firstlight:experiment/lt")
    assert "no config 'firstlight:experiment/lt'" in said
    assert "experiment/digits_lt" in said


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--model.model_name=resnet20_cifra",), ValueError, "resnet20_cifar"),
        (("--data.imbalance_factor=0.01",), ValueError, "did you mean 100"),
        (("--data.imbalance_factor=100000",), ValueError, "class"),
        (("--model.num_classes=7",), ValueError, "num_classes=7.*10 classes"),
        (("--data=CIFAR10DataModule", "--data.root=nowhere"), FileNotFoundError, "nowhere"),
    ],
)
def test_wrong_values_are_refused_before_training(
    arguments, error, message, monkeypatch, tmp_path, capsys
):
    base = ["fit", "--config", "firstlight:model/resnet20_cifar_short", "--config",
            "firstlight:data/digits_lt"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["firstlight", *base, *TINY, *arguments])
    with pytest.raises((error, SystemExit), match=message) as caught:
        cli.main()
    assert caught.type is error or message.split(".*")[0] in capsys.readouterr().err


def test_the_overview_names_commands_and_configs(firstlight):
    printed = firstlight("--help")
    for command in (
        "demo", "fit", "validate", "test", "predict", "measure", "export", "retrain-last-layer",
        "correct-prior",
    ):  # fmt: skip
        assert f"\n  {command} " in printed
    assert "experiment/digits_lt" in printed


def test_unknown_commands_are_corrected(monkeypatch, tmp_path, capsys):
    said = refused(monkeypatch, tmp_path, capsys, "demp")
    assert (
        "no command 'demp'; there are compare, demo, export, measure, report, table, "
        "retrain-last-layer, correct-prior, fit" in said
    )
    assert "Did you mean 'demo'?" in said


def test_errors_of_a_command_are_one_line(monkeypatch, tmp_path, capsys):
    said = refused(monkeypatch, tmp_path, capsys, "export", "absent.ckpt")
    assert said == "firstlight export: there is no checkpoint absent.ckpt"


def test_a_damaged_checkpoint_is_named(monkeypatch, tmp_path, capsys):
    (tmp_path / "last.ckpt").write_bytes(b"half of a checkp")
    said = refused(
        monkeypatch, tmp_path, capsys, "test", "--ckpt_path", "last.ckpt", "--data",
        "DigitsDataModule",
    )  # fmt: skip
    assert "last.ckpt cannot be read as a checkpoint" in said
