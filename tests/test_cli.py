"""The command line as a user meets it; every config that ships is parsed, most are run."""

import csv
import itertools
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import published_trees
import pytest
import torch
import yaml
from PIL import Image

from firstlight import cli, datamodules
from firstlight.datamodules.array_shifts import MNIST_C
from firstlight.functional.corruptions import BENCHMARK, PUBLISHED
from firstlight.runfolder import RunFolder

ROOT = Path(__file__).parents[1]
CONFIGS = {p.relative_to(ROOT / "configs").with_suffix("").as_posix(): p
           for p in (ROOT / "configs").rglob("*.yaml")
           if p.parent.name != "study"}  # fmt: skip  # of another command: test_study_file.py
PARTS = ("model", "data", "callbacks", "loss", "lr_scheduler", "control", "experiment", "test_sets")
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
    shipped = [name for name in cli.config_names() if not name.startswith("study/")]
    assert shipped == sorted(CONFIGS)
    assert all(KINDS.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_a_header(name):
    header = "".join(line for line in CONFIGS[name].read_text().splitlines() if line[:1] == "#")
    assert "Command:" in header
    if name.startswith("experiment"):
        assert "Hardware:" in header or "CPU" in header
        assert "Expect:" in header


def test_dots_in_names_are_no_suffixes(firstlight):
    """Configs of papers are named by arXiv numbers."""
    for argument in ("firstlight:experiment/2403.15210", "--config=firstlight:control/plain"):
        assert Path(cli.resolve_config(argument).removeprefix("--config=")).is_file()
    with pytest.raises(SystemExit, match="no config 'firstlight:experiment/2403'"):
        cli.resolve_config("firstlight:experiment/2403")
    papers = {"2403.15210", "2506.20025", "2412.16540", "2204.03632"}
    for paper in papers:
        header = CONFIGS[f"experiment/{paper}"].read_text()
        for word in ("Published", "Command:", "Controls:", "Hardware:", "Expect:", "Deviates:"):
            assert word in header
        assert f"experiment/{paper}_cpu" in CONFIGS


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
def domains(images, tmp_path):
    """The two classes in four domains."""
    for name in ("Real World", "Art", "Clipart", "Product"):
        shutil.copytree(images, tmp_path / "data/office_home" / name)


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


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """IDX files of eight images of every digit, two to test, and MNIST-C of those."""
    root = tmp_path / "data/mnist"
    root.mkdir(parents=True)
    for split, count in (("train", 80), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.full((count, 28, 28), 9 * labels[:, None, None], np.uint8)
        (root / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    for name in MNIST_C:
        (tmp_path / "data/mnist_c" / name).mkdir(parents=True)
        np.save(tmp_path / "data/mnist_c" / name / "test_images.npy", images[..., None])
        np.save(tmp_path / "data/mnist_c" / name / "test_labels.npy", labels)


@pytest.fixture
def shifted(tmp_path, cifar, mnist):
    """Every shifted set of the configs beside its own data, in the published layouts."""
    (tmp_path / "data/CIFAR-10-C").mkdir()
    np.save(tmp_path / "data/CIFAR-10-C/labels.npy", np.tile(np.arange(10), 5))
    for name in itertools.chain(*PUBLISHED.values()):
        images = np.full((50, 32, 32, 3), 99, np.uint8)
        np.save(tmp_path / f"data/CIFAR-10-C/{name}.npy", images)
    roots = [
        *(f"own/{split}" for split in ("train", "test")),
        *(f"imagenet-c/{name}/{level}" for name in BENCHMARK for level in range(1, 6)),
        "imagenet-r", "imagenet-a", "sketch",
    ]  # fmt: skip
    for root, (number, wnid) in itertools.product(roots, enumerate(("n01440764", "n01443537"))):
        for index in range(6 if "train" in root else 1):
            file = tmp_path / "data" / root / wnid / f"{index}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (number * 90, index, 7)).save(file)
    v2 = tmp_path / "data/imagenetv2-matched-frequency-format-val"
    shutil.copytree(tmp_path / "data/sketch/n01440764", v2 / "0")
    shutil.copytree(tmp_path / "data/sketch/n01443537", v2 / "1")


OWN = {
    "test_sets/cifar10_c": ["data/cifar10_lt", "--data.imbalance_factor=2"],
    "test_sets/mnist_c": ["data/mnist"],
    "test_sets/corrupted": ["data/digits_lt"],
    "test_sets/imagenet": ["data/image_folder", "--data.root=data/own", "--data.num_workers=0",
                           "--data.img_size=32", "--data.holdout=0"],
}  # fmt: skip
SETS = {
    "test_sets/cifar10_c": {"cifar10_c": 75 * 10, "cifar10_c_extra": 20 * 10},
    "test_sets/mnist_c": {"mnist_c": 15 * 20},
    "test_sets/corrupted": {"corrupted": 30 * 359},
    "test_sets/imagenet": {"imagenet_c": 150, "imagenet_r": 2, "imagenet_a": 2, "imagenet_v2": 2,
                           "imagenet_sketch": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS["test_sets"])
def test_every_config_of_test_sets_tests(name, firstlight, shifted, tmp_path):
    """By one `firstlight test`; the monitor that shows them side by side comes by itself."""
    own, *options = OWN[name]
    parts = [f"--config=firstlight:{n}" for n in ("model/resnet20_cifar_short", own, name)]
    text = firstlight("test", *parts, *options, *TINY[1:])
    assert "side by side" in text
    assert "DataLoader 0" not in text
    (run,) = tmp_path.rglob("run.json")
    rows = RunFolder.open(run.parent).read("shifts").to_pylist()
    whole = {row["set"]: row["n"] for row in rows if not row["section"]}
    assert {f"test/{k}": n for k, n in SETS[name].items()} == {
        k: whole[k] for k in whole if k != "test"
    }
    assert text.count("mCE") == (name == "test_sets/imagenet")


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


@pytest.fixture
def published(tmp_path):
    """ImageNet, ImageNet-LT and both iNaturalists in their layouts, three classes each."""
    published_trees.write_imagenet(tmp_path / "data/imagenet")
    published_trees.write_imagenet_lt(tmp_path / "data/ImageNet_LT")
    published_trees.write_inat2018(tmp_path / "data/inaturalist2018")
    published_trees.write_inat2021(tmp_path / "data/inaturalist2021")


def from_files(name):
    """Small and quick arguments where a config's images are files."""
    kinds = ("ImageFolder", "DomainFolder", "ImageNetDataModule", "INaturalistDataModule")
    text = CONFIGS[name].read_text()
    quick = ["--data.img_size=32", "--data.num_workers=0"]
    return quick if any(f"class_path: {kind}" in text for kind in kinds) else []


@pytest.mark.parametrize("data", KINDS["data"])
def test_every_data_config_trains(
    data, firstlight, images, cifar, mnist, domains, published, tmp_path
):
    small = ["--data.imbalance_factor=2"] if "cifar" in data else []
    small += from_files(data)
    firstlight(
        "fit", "--config", "firstlight:model/resnet20_cifar_short", "--config",
        f"firstlight:{data}", *TINY, *small,
    )  # fmt: skip
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "name", [n for n in CONFIGS if n not in KINDS["data"] + KINDS["test_sets"]]
)
def test_every_other_config_trains(name, firstlight, cifar, published, tmp_path):
    base = [] if name.startswith("experiment") else ["--config", "firstlight:data/digits_lt"]
    if name.startswith(("callbacks", "loss", "lr_scheduler", "control")):
        base += ["--config", "firstlight:model/resnet20_cifar_short"]
    text = CONFIGS[name].read_text()
    small = ["--data.imbalance_factor=2"] if "imbalance_factor: 100" in text else []
    if "LastLayerRetraining" in text and "CIFAR" in text:
        small.append("--data.holdout=0.3")  # an example of every class
    if "two_stage" in name:
        small.append("--trainer.max_epochs=3")  # the second stage begins with the third epoch
    if "resnet50" in name:
        small = ["--model.pretrained=false", "--data.img_size=32"]
    small += from_files(name)
    if "bf16" in text:
        small.append("--trainer.precision=32-true")  # the CPU's own
    if "interval: pilot" in text:  # steps enough to judge the pilot by
        small += ["--data.batch_size=8", "--trainer.max_epochs=9", "--data.img_size=8"]
    batches = 6 if "GradualUnfreezing" in text else 2  # as many as it takes to open all blocks
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
