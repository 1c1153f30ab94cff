"""A study's file: what it may say, and the configurations that come of it. Nothing is trained."""

import itertools
from pathlib import Path

import pytest

from firstlight.cli import config_names, resolve_config
from firstlight.study import study
from firstlight.study.file import parse_study, read_study
from firstlight.study.plan import differences, plan_runs
from firstlight.study.progress import StudyProgress

SMALL = {
    "name": "small",
    "base": "firstlight:experiment/digits_lt",
    "factor": "model.drop_rate",
    "values": [0.0, 0.2],
    "seeds": 2,
}
STUDIES = [name for name in config_names() if name.startswith("study/")]


def parsed(**changes):
    return parse_study({key: value for key, value in {**SMALL, **changes}.items()
                        if value != "none"})  # fmt: skip


def planned(tmp_path, **changes):
    return plan_runs(parsed(**changes), tmp_path)


def args_of(run, name):
    return next(c["init_args"] for c in run.config["trainer"]["callbacks"]
                if c["class_path"].endswith(f".{name}"))  # fmt: skip


def test_every_run_has_its_value_seed_and_folders(tmp_path):
    runs = planned(tmp_path)
    assert [(run.id, run.seed) for run in runs] == [
        ("drop_rate-0-seed0", 0), ("drop_rate-0-seed1", 1),
        ("drop_rate-0.2-seed0", 0), ("drop_rate-0.2-seed1", 1),
    ]  # fmt: skip
    for run, rate in zip(runs, (0.0, 0.0, 0.2, 0.2), strict=True):
        assert run.config["model"]["drop_rate"] == rate
        assert run.config["seed_everything"] == run.seed
        monitor = args_of(run, "PerClassMonitor")
        assert monitor["run_dir"] == str(tmp_path / "runs" / run.id)
        assert monitor["study"] == {
            "arm": run.arm.name, "factor": "model.drop_rate", "strength": rate
        }  # fmt: skip
        assert args_of(run, "ModelCheckpoint")["save_last"]
        assert run.config["trainer"]["default_root_dir"] == str(tmp_path / "work" / run.id)
    assert not list(tmp_path.iterdir())


def test_a_mapping_of_values_gives_strengths_and_names(tmp_path):
    runs = planned(tmp_path, factor="data.scale", seeds=[4],
                   values={1.0: [1.0, 1.0], "strong": [0.08, 1.0]})  # fmt: skip
    assert [(run.arm.name, run.arm.strength) for run in runs] == [
        ("scale 1", 1.0), ("scale strong", None)
    ]  # fmt: skip
    assert [run.config["data"]["init_args"]["scale"] for run in runs] == [[1, 1], [0.08, 1]]


def test_arms_overlay_callbacks(tmp_path):
    """What is no configuration key: a callback, from a file that ships and in place."""
    unfreezing = {"class_path": "GradualUnfreezing", "init_args": {"interval": 5}}
    runs = planned(
        tmp_path, values="none", factor="unfreezing", seeds=1, set={"trainer.max_epochs": 3},
        arms={
            "none": None,
            "every 5": {"strength": 5, "config": {"trainer": {"callbacks+": [unfreezing]}}},
            "watched": {"config": ["firstlight:callbacks/gradual_unfreezing",
                                   "firstlight:callbacks/fisher_trace"],
                        "set": {"model.seed": None, "trainer.max_epochs": 4}},
        },
    )  # fmt: skip
    names = [[c["class_path"].rpartition(".")[2] for c in run.config["trainer"]["callbacks"]]
             for run in runs]  # fmt: skip
    assert names[0] == ["PerClassMonitor", "ModelCheckpoint"]
    assert names[1] == [*names[0], "GradualUnfreezing"]
    assert names[2] == [*names[0], "GradualUnfreezing", "FisherTraceMonitor"]
    assert args_of(runs[1], "GradualUnfreezing")["interval"] == 5
    assert [run.config["trainer"]["max_epochs"] for run in runs] == [3, 3, 4]
    assert args_of(runs[2], "FisherTraceMonitor")["run_dir"] == str(tmp_path / "runs/watched-seed0")


def test_a_base_without_callbacks_gets_them(tmp_path):
    base = ["firstlight:model/resnet20_cifar_short", "firstlight:data/digits_lt"]
    run = planned(tmp_path, base=base, split="val")[0]
    assert args_of(run, "PerClassMonitor")["run_dir"]
    assert args_of(run, "ModelCheckpoint")["save_last"]


def test_seeds_and_arms_stand_in_settings(tmp_path):
    set_ = {"model.checkpoint_path": "sources/{arm}/{seed}.safetensors"}
    runs = planned(tmp_path, set=set_, seeds=[3, 8])
    assert [run.config["model"]["checkpoint_path"] for run in runs] == [
        f"sources/{arm}/{seed}.safetensors"
        for arm, seed in itertools.product(("drop_rate-0", "drop_rate-0.2"), (3, 8))
    ]


def test_numbers_that_yaml_takes_for_strings(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        "base: firstlight:experiment/digits_lt\nfactor: model.optimizer.init_args.weight_decay\n"
        "values: [0, 1e-5, 5E-4]\nseeds: 1\n"
    )
    study = read_study(file)
    assert study.name == "study"
    assert [arm.strength for arm in study.arms] == [0, 1e-5, 5e-4]
    runs = plan_runs(study, tmp_path)
    decays = [run.config["model"]["optimizer"]["init_args"]["weight_decay"] for run in runs]
    assert decays == [0, 1e-5, 5e-4]


WRONG = [
    ({"sedes": 3}, "the study has no key 'sedes'; did you mean 'seeds'"),
    ({"compare": {"leest": 0.1}}, "compare has no key 'leest'; did you mean 'least'"),
    ({"seeds": [1, 1]}, "list of different integers"),
    ({"seeds": 0}, "list of different integers"),
    ({"values": [0.1]}, "two different arms or more are compared; there are 1"),
    ({"values": [0.1, 0.1]}, "'drop_rate 0.1' is there twice"),
    ({"values": "none"}, "values or arms"),
    ({"values": "none", "arms": {"a": {"strngth": 1}, "b": {}}}, "did you mean 'strength'"),
    ({"values": "none", "arms": {"a": {"strength": "x"}, "b": {}}}, "strength is a number"),
    ({"values": "none", "arms": {"a": [], "b": {}}}, "maps names to values"),
    ({"base": None}, "lacks base"),
    ({"split": "train"}, "split is one of test, val"),
    ({"cpus_per_run": 0}, "cpus_per_run is a whole number from 1"),
    ({"gpus_per_run": -1}, "gpus_per_run is a number from 0"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_files_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parsed(**changes)


WRONG_CONFIGS = [
    ({"factor": "model.drop_rat"}, "no key 'model.drop_rat'; did you mean 'model.drop_rate'"),
    ({"factor": "drop_rate"}, "did you mean 'model.drop_rate'"),
    ({"factor": "data.scal"}, "did you mean 'data.init_args.scale'"),
    ({"set": {"model.optimizer.init_args.weight_deca": 0}}, "init_args.weight_decay'"),
    ({"values": [0.1, "high"]}, r"arm 'drop_rate high' is refused.*float.*high"),
    ({"base": "firstlight:model/resnet20_cifar_short"}, "no data"),
    ({"base": "absent.yaml"}, "there is no config 'absent.yaml'"),
    ({"set": {"model.seed": 3}}, "model.seed fixed to 3"),
    ({"values": "none", "arms": {"a": {}, "b": {}}}, "'a' and 'b' have the same configuration"),
    ({"values": "none", "arms": {"a b": {}, "a-b": {"set": {"model.drop_rate": 0.5}}}},
     "one name as a folder"),
    ({"values": "none", "arms": {"a": {}, "b": {"config": {"modle": {"drop_rate": 0.1}}}}},
     "arm 'b' is refused.*modle"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG_CONFIGS)
def test_wrong_configurations_are_refused_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        planned(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_files_that_are_none(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="is no study"):
        read_study(tmp_path / "list.yaml")
    with pytest.raises(ValueError, match="is no YAML"):
        read_study(tmp_path / "broken.yaml")
    with pytest.raises(FileNotFoundError):
        read_study(tmp_path / "absent.yaml")


def test_differences_say_the_key_and_both_values(tmp_path):
    old, new = planned(tmp_path / "a")[0], planned(tmp_path / "b", values=[0.1, 0.2])[0]
    said = differences(old.config, new.config)
    assert "model.drop_rate was 0.0, is 0.1" in said
    assert not any("run_dir" in one or "default_root_dir" in one for one in said)


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert study(parsed(), tmp_path / "study", dry_run=True) is None
    printed = capsys.readouterr().out
    assert "2 arms by 2 seeds, 4 runs" in printed
    assert "three are the least for any claim" in printed
    assert "drop_rate-0.2-seed1  model.drop_rate=0.2" in printed
    assert not (tmp_path / "study").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds something else than a study"):
        study(parsed(), tmp_path)


def test_the_time_left_is_that_of_runs_seen(tmp_path):
    class Folder:
        path, runs = tmp_path, [{"id": str(n), "status": "waiting"} for n in range(5)]

    from rich.console import Console

    progress = StudyProgress(Console(), Folder(), "here", room=2)
    assert progress._left() == ""
    Folder.runs[0].update(status="finished", seconds=60.0)
    progress._begun["0"] = 0.0
    progress.ended(Folder.runs[0])
    assert progress._left() == "about 2 min 0 s left"  # four runs of a minute, two at a time


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_that_ships_can_be_planned(name, tmp_path):
    text = Path(resolve_config(f"firstlight:{name}")).read_text()
    header = "".join(line for line in text.splitlines() if line[:1] == "#")
    assert "Command:" in header
    assert "Hardware:" in header
    assert "Expect:" in header
    file = read_study(resolve_config(f"firstlight:{name}"))
    assert len(file.seeds) >= 3
    runs = plan_runs(file, tmp_path)
    assert len(runs) == len(file.arms) * len(file.seeds)
