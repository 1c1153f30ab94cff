"""The command line as a user meets it."""

import csv
import json
import sys

import pytest
import torch
from shipped_configs import TINY

from firstlight import cli, datamodules
from firstlight.runfolder import RunFolder


def refused(monkeypatch, tmp_path, capsys, *arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["firstlight", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code
    return capsys.readouterr().err + str(stop.value.code)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_train_on_one_domain_and_test_on_all(firstlight, domains, tmp_path):
    small = ["--data.img_size=32", "--data.num_workers=0", *TINY]
    common = [f"--config=firstlight:{n}" for n in ("model/resnet20_cifar_short", "data/domains")]
    firstlight("fit", *common, *small)
    (checkpoint, *_) = tmp_path.rglob("*.ckpt")
    firstlight("test", *common, *small[:2], *TINY[1:], "--ckpt_path", checkpoint)
    (run,) = [r for r in tmp_path.rglob("run.json") if list(r.parent.glob("shifts/*"))]
    rows = RunFolder.open(run.parent).read("shifts").to_pylist()
    assert [r["set"] for r in rows] == ["test", "test/art", "test/clipart", "test/product"]
    assert [r["n"] for r in rows][1:] == [24] * 3


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_sets_by_hand_and_after_a_fit(firstlight, tmp_path):
    """A checkpoint of a fit with test sets is read safely, and others can be given to test it."""
    fog, noise = (
        json.dumps({"x": {"class_path": "Corrupted", "init_args": {"corruptions": name}}})
        for name in ("fog", "noise")
    )
    common = ["--config", "firstlight:experiment/digits_lt", *TINY]
    firstlight("fit", *common, "--data.test_sets", fog)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    kept = torch.load(checkpoint, weights_only=True)["datamodule_hyper_parameters"]
    assert kept["test_sets"]["x"]["init_args"]["corruptions"] == "fog"
    text = firstlight("test", *common, "--data.test_sets", noise, "--ckpt_path", checkpoint)
    assert "shot_noise" in text
    assert text.count("worst classes") == 1


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
    assert "no command 'demp'; there are compare, " in said
    assert all(command in said for command in (*cli.COMMANDS, *cli.LIGHTNING))
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
