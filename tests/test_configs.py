"""Every config that ships is parsed, and run on small data of its own layout."""

import csv
import itertools
from pathlib import Path

import pytest
import yaml
from shipped_configs import CONFIGS, KINDS, TINY

from firstlight import cli
from firstlight.runfolder import RunFolder


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


def printed_config(firstlight, *names, command="fit"):
    arguments = itertools.chain.from_iterable(("--config", f"firstlight:{n}") for n in names)
    return yaml.safe_load(firstlight(command, *arguments, "--print_config"))


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


def from_files(name):
    """Small and quick arguments where a config's images are files."""
    kinds = ("ImageFolder", "ImageNetDataModule", "INaturalistDataModule", "StreamedDataModule")
    text = CONFIGS[name].read_text()
    quick = ["--data.img_size=32", "--data.num_workers=0"]
    return quick if any(f"class_path: {kind}" in text for kind in kinds) else []


@pytest.mark.parametrize("data", KINDS["data"])
def test_every_data_config_trains(
    data, firstlight, images, packed, cifar, mnist, domains, published, tmp_path
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
