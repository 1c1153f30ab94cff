"""Studies that are trained: whole, killed, failing, called off, on Ray. Real runs, on digits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path
from shutil import copytree

import pytest
import yaml

from firstlight import cli
from firstlight.runfolder import RunFolder, RunFolderError
from firstlight.study import StudyError, study, training
from firstlight.study.file import parse_study
from firstlight.study.run import lock_of
from firstlight.study.workers import RayWorkers
from firstlight.studyfolder import StudyFolder

pytestmark = pytest.mark.xdist_group("study")

TINY = {
    "name": "tiny",
    "base": "firstlight:experiment/digits_lt",
    "set": {
        "trainer.max_epochs": 6,
        "trainer.accelerator": "cpu",
        "trainer.check_val_every_n_epoch": 3,
        "data.img_size": 8,
        "data.imbalance_factor": 3,
        "model.drop_rate": 0.1,  # draws random numbers in training
    },
    "factor": "data.crop_padding",
    "values": [0, 2],
    "seeds": [0],
    "compare": {"draws": 40},
}
FIRST, SECOND = "crop_padding-0-seed0", "crop_padding-2-seed0"


def tiny(**changes):
    return parse_study({**TINY, **changes})


def predictions(folder, run, split="test"):
    table = RunFolder.open(folder / "runs" / run).read_last(
        "predictions", split, ["idx", "target", "pred", "p_true", "nll"]
    )
    return table.to_pydict()


def states(folder):
    return {run["id"]: run["status"] for run in StudyFolder.open(folder).runs}


def processes(folder):
    """Process numbers of the runs of this study."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"firstlight.study" in words and any(str(folder).encode() in w for w in words):
            found.append(int(entry.name))
    return found


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def command(folder, *arguments, **options):
    """The command line, in a process of its own that Ctrl-C reaches."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**TINY, **options}))
    return subprocess.Popen(
        [sys.executable, "-c", "from firstlight.cli import main; main()", "study", str(file),
         "--out", str(folder), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of two arms and a seed, one run after another."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    assert study(tiny(), folder, sequential=True) is not None
    return folder


def test_a_whole_study(whole):
    found = StudyFolder.open(whole)
    assert found.study["status"] == "finished"
    assert states(whole) == {FIRST: "finished", SECOND: "finished"}
    assert found.study["omissions"] == []
    for folder, strength in zip(found.finished(), (0.0, 2.0), strict=True):
        assert folder.run["strength"] == strength
        assert folder.run["factor"] == "data.crop_padding"
        assert folder.run["seed"] == 0
        assert folder.splits("per_class") == ["test", "val"]  # of one run in one folder
        assert len(folder.read_last("predictions", "test", ["idx"])) == 359
    assert sorted(p.name for p in (whole / "runs").iterdir()) == [FIRST, SECOND]
    summary = json.loads((whole / found.study["comparison"] / "summary.json").read_text())
    assert [arm["arm"] for arm in summary["arms"]] == ["crop_padding 0", "crop_padding 2"]
    for run in found.runs:
        assert run["attempts"] == 1
        assert "attempt 1: begins" in (whole / run["log"]).read_text()


def test_finished_runs_are_not_run_again(whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.name != "study.json"}
    study(tiny(), whole, sequential=True)
    printed = capsys.readouterr().out
    assert "2 of them finished" in printed
    assert f"The comparison:  {whole / 'class_effects'}" in printed
    after = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.name != "study.json"}
    assert before == after


def test_a_file_that_changed_is_refused_with_what_differs(whole):
    changes = {
        "model.drop_rate was 0.1, is 0.2": {"set": {**TINY["set"], "model.drop_rate": 0.2}},
        "factor was 'data.crop_padding', is 'data.init_args.crop_padding'":
        {"factor": "data.init_args.crop_padding"},
        "run crop_padding-2-seed0 is no longer in it": {"values": [0, 1]},
        "the arm that others are compared with was 'crop_padding 0'": {"values": [2, 0]},
        "split was 'test', is 'val'": {"split": "val"},
    }  # fmt: skip
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            study(tiny(**change), whole, sequential=True)


def test_seeds_and_arms_may_be_added(whole, tmp_path, capsys):
    copy = copytree(whole, tmp_path / "copy")
    study(tiny(seeds=[0, 5], values=[0, 2, 3]), copy, dry_run=True)
    printed = capsys.readouterr().out
    assert "6 runs, 2 of them finished" in printed
    assert "crop_padding-3-seed5" in printed
    assert f"  {FIRST}" not in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_killed_in_mid_run_and_a_run_that_fails(whole, tmp_path):
    """Neither ends the study; the killed run goes on from its checkpoint and ends the same."""
    folder = tmp_path / "killed"
    arms = {
        "crop_padding 0": {"strength": 0, "set": {"data.crop_padding": 0}},
        "wrong": {"strength": 1, "set": {"model.num_classes": 7}},
        "crop_padding 2": {"strength": 2, "set": {"data.crop_padding": 2}},
    }
    file = parse_study({**{k: v for k, v in TINY.items() if k != "values"}, "arms": arms})

    def kill():
        work = folder / "work" / FIRST
        wait_for(lambda: any(work.rglob("epoch=[2-4]*.ckpt")))
        os.kill(processes(folder)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(StudyError, match="2 of 3 runs failed"):
        study(file, folder, sequential=True)
    killer.join()
    assert states(folder) == {FIRST: "failed", "wrong-seed0": "failed", SECOND: "finished"}
    found = StudyFolder.open(folder)
    killed, wrong, _ = found.runs
    assert killed["error"]["exit"] == -signal.SIGKILL
    assert wrong["error"]["exit"] == 1
    assert "num_classes=7" in "".join(wrong["error"]["lines"])
    assert "num_classes=7" in (folder / wrong["log"]).read_text()
    assert found.study["status"] == "failed"
    omitted = " ".join(found.study["omissions"])
    assert "'wrong' lacks seed 0: the run failed" in omitted
    assert "no comparison: a comparison needs two arms or more" in omitted

    with pytest.raises(StudyError, match="1 of 3 runs failed"):  # the wrong arm stays wrong
        study(file, folder, sequential=True)
    assert states(folder) == {FIRST: "finished", "wrong-seed0": "failed", SECOND: "finished"}
    found = StudyFolder.open(folder)
    assert "goes on from its checkpoint at step" in found.run(FIRST)["note"]
    assert [run["attempts"] for run in found.runs] == [2, 2, 1]
    assert (folder / found.study["comparison"] / "class_effects.parquet").exists()
    for run in (FIRST, SECOND):
        assert predictions(folder, run) == predictions(whole, run)
    assert sorted(p.name for p in (folder / "runs").iterdir() if p.name != "wrong-seed0") == [
        FIRST, SECOND
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_killed_between_fit_and_test(whole):
    """The fit has nothing left to do; the evaluation goes on in the run's folder."""
    before = predictions(whole, FIRST)
    run = RunFolder.open(whole / "runs" / FIRST)
    for table in ("per_class", "predictions", "confusions"):
        for part in (run.path / table).glob("*-test.parquet"):
            part.unlink()
    attempts = StudyFolder.open(whole).run(FIRST)["attempts"]
    assert study(tiny(), whole, sequential=True) is not None
    assert predictions(whole, FIRST) == before
    entry = StudyFolder.open(whole).run(FIRST)
    assert entry["attempts"] == attempts + 1
    assert "goes on from its checkpoint" in entry["note"]
    assert sorted(p.name for p in (whole / "runs").iterdir()) == [FIRST, SECOND]


@pytest.mark.slow
def test_a_half_run_of_a_study_that_was_moved_begins_anew(whole, tmp_path):
    """Its checkpoint would go on in the old place."""
    folder = copytree(whole, tmp_path / "moved")
    (folder / "runs" / FIRST / "run.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert study(tiny(), folder, sequential=True) is not None
    assert StudyFolder.open(folder).run(FIRST)["note"] == "begins anew: the study has been moved"
    assert predictions(folder, FIRST) == predictions(whole, FIRST)
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
def test_a_study_called_off_or_killed_can_go_on(how, whole, tmp_path):
    folder = tmp_path / "off"
    process = command(folder, "--sequential")
    wait_for(lambda: any(folder.rglob("epoch=[0-4]*.ckpt")))
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert states(folder) == {FIRST: "running", SECOND: "waiting"}
    else:
        assert process.returncode == 130, output
        assert "Interrupted: the same command goes on from here." in output
        assert states(folder) == {FIRST: "interrupted", SECOND: "waiting"}
        assert not processes(folder)
    again = command(folder, "--sequential")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert f"{FIRST} goes on from its checkpoint" in output
    for run in (FIRST, SECOND):
        assert predictions(folder, run) == predictions(whole, run)


def test_a_run_is_not_trained_twice_at_once(whole, tmp_path, monkeypatch):
    """A lock that another process holds refuses the study; a run that meets it ends with a word."""
    monkeypatch.setattr(training, "GRACE", -4.9)  # how long to wait for it, less five
    folder = copytree(whole, tmp_path / "copy")
    (folder / "runs" / FIRST / "run.json").unlink()
    for file in (folder / "work").rglob("config.yaml"):
        file.write_text(file.read_text().replace(str(whole), str(folder)))
    with lock_of(folder / "work" / FIRST):
        with pytest.raises(ValueError, match=f"{FIRST} is being trained by another process"):
            study(tiny(), folder, sequential=True)
        config = str(folder / "work" / FIRST / "config.yaml")
        run = subprocess.run([sys.executable, "-m", "firstlight.study", config, "test"],
                             stdin=subprocess.PIPE, capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 1
    assert "another process trains this run" in run.stderr


EMA = {
    "class_path": "lightning.pytorch.callbacks.EMAWeightAveraging",
    "init_args": {"decay": 0.8},
}


@pytest.mark.parametrize("split", ["test", "val"])
def test_killed_after_its_last_checkpoint_a_run_is_evaluated_alike(split, tmp_path):
    """Training does not start again, which is when Lightning puts averages in."""
    folder, run = tmp_path / "ends", "averaged-seed0"
    arms = {"plain": {}, "averaged": {"config": {"trainer": {"callbacks+": [EMA]}}}}
    content = deepcopy({key: value for key, value in TINY.items() if key != "values"})
    content["set"] |= {"trainer.max_epochs": 3, "trainer.check_val_every_n_epoch": 1}
    file = parse_study({**content, "arms": arms, "split": split})
    study(file, folder, sequential=True)
    before = predictions(folder, run, split)
    for part in (folder / "runs" / run).glob(f"predictions/*-{split}.parquet"):
        part.unlink()
    study(file, folder, sequential=True)
    note = StudyFolder.open(folder).run(run)["note"]
    assert note.startswith("goes on from its checkpoint at step")
    assert predictions(folder, run, split) == before


def test_two_studies_do_not_work_in_one_folder(tmp_path, monkeypatch):
    """The second writes nothing: it would take the first's runs for left behind, and begin anew."""
    monkeypatch.setattr(training, "GRACE", -4.9)  # how long to wait for it, less five
    folder = tmp_path / "both"
    folder.mkdir()
    with lock_of(folder), pytest.raises(ValueError, match="another process trains the study in"):
        study(tiny(), folder, sequential=True)
    assert [p.name for p in folder.iterdir()] == ["lock"]
    study(tiny(), folder, sequential=True, dry_run=True)  # not taken for something else


def test_a_task_that_ray_cannot_start_says_why(tmp_path):
    pytest.importorskip("ray", reason="the extra 'study' is not installed")
    workers, log = RayWorkers(1, 0, None, None), tmp_path / "log.txt"
    try:
        worker = workers.start(["/no/such/program"], log, {})
        wait_for(lambda: worker.poll() is not None)
        assert worker.poll() == 1
        assert "No such file or directory: '/no/such/program'" in log.read_text()
    finally:
        workers.close()


@pytest.mark.slow
def test_ray_and_one_after_another_give_the_same_numbers(whole, tmp_path):
    pytest.importorskip("ray", reason="the extra 'study' is not installed")
    folder = tmp_path / "ray"
    process = command(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "Computed by Ray on this machine" in output
    for run in (FIRST, SECOND):
        assert predictions(folder, run) == predictions(whole, run)


def test_without_ray_its_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="address 'auto' is that of a Ray cluster"):
        study(tiny(address="auto"), tmp_path / "a", sequential=True)
    with pytest.raises(ValueError, match="2 runs at once on GPUs need Ray"):
        study(tiny(at_once=2, gpus_per_run=1), tmp_path / "b", sequential=True)
    assert not any(tmp_path.iterdir())  # no study that seems to be running


def test_a_folder_that_is_no_study_or_a_newer_one(tmp_path):
    with pytest.raises(RunFolderError, match="is no study"):
        StudyFolder.open(tmp_path)
    (tmp_path / "study.json").write_text('{"schema_version": 99, "runs": []}')
    with pytest.raises(RunFolderError, match="schema version 99"):
        StudyFolder.open(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(RunFolderError, match="not a study's description"):
        StudyFolder.open(tmp_path)


def test_the_command_line_corrects_a_wrong_key(tmp_path, monkeypatch):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**TINY, "fctor": "x"}))
    monkeypatch.setattr(sys, "argv", ["firstlight", "study", str(file)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert str(stop.value.code).startswith("firstlight study: ")
    assert "has no key 'fctor'; did you mean 'factor'" in str(stop.value.code)


@pytest.mark.parametrize(
    "option", ["--seeds 0 0", "--cpus_per_run 0", "--gpus_per_run -1", "--at_once 0"]
)
def test_options_are_checked_as_the_file_is(option, tmp_path, monkeypatch):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(TINY))
    arguments = ["firstlight", "study", str(file), "--out", str(tmp_path / "out"), "--dry_run"]
    monkeypatch.setattr(sys, "argv", [*arguments, *option.split()])
    with pytest.raises(SystemExit, match=f"firstlight study: {option.split()[0][2:]} is a number|"
                       f"firstlight study: {option.split()[0][2:]} is a whole number"):  # fmt: skip
        cli.main()
