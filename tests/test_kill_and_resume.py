"""A run killed by SIGKILL at any moment and resumed ends bitwise equal to one never killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from firstlight.runfolder import RunFolder

WORKER = Path(__file__).with_name("kill_worker.py")
# Batches after which the run is killed (an epoch has 18), and updates between its checkpoints (an
# epoch has 9, the last of a single batch). With 9 every checkpoint is of an epoch's last batch.
MOMENTS = (
    (1, 4), (6, 4), (9, 4), (13, 4), (18, 4), (19, 9), (24, 1), (31, 9), (34, 9), (47, 4),
)  # fmt: skip
TABLES = (
    "per_class", "predictions", "confusions", "classes", "fisher_trace", "sharpness", "events",
)  # fmt: skip
QUICK = ((13, 4), (31, 9))


def train(folder, kill_after=0, every=4, ranks=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), WORKER, folder, str(kill_after),
         str(every), str(ranks)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = train(folder)
    assert run.returncode == 0, run.stderr
    return folder


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def rows(folder, table):
    """As text, since NaN differs from itself; without the time that a measurement took."""
    return [str({**row, "seconds": None}) for row in folder.read(table).to_pylist()]


def assert_same_end(folder, whole):
    ends = [torch.load(path / "end.pt", weights_only=True) for path in (folder, whole)]
    assert same(*ends)
    (killed_run,), (whole_run,) = (
        [run for run in path.glob("firstlight*") if RunFolder.open(run).run["status"] == "finished"]
        for path in (folder, whole)
    )
    for table in TABLES:
        a, b = (rows(RunFolder.open(run), table) for run in (killed_run, whole_run))
        assert a == b, table
    a, b = ((run / "figures/early_training.png").read_bytes() for run in (killed_run, whole_run))
    assert a == b


def test_series_are_complete(never_killed):
    (run,) = never_killed.glob("firstlight*")
    folder = RunFolder.open(run)
    for table in ("fisher_trace", "sharpness"):
        steps = folder.read(table).filter(folder.read(table)["block"].to_numpy() == "")["step"]
        assert steps.to_pylist() == [0, 4, 8, 12, 14, 20, 26], table
    events = folder.read("events")
    assert events["step"].to_pylist() == [9, 18]
    assert set(events["kind"].to_pylist()) == {"lr"}


@pytest.mark.xdist_group("kill")
@pytest.mark.parametrize(
    "moment", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS]
)
def test_killed_and_resumed_equals_never_killed(moment, never_killed, tmp_path):
    batches, every = moment
    killed = train(tmp_path, batches, every)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "end.pt").exists()
    had_checkpoint = any(tmp_path.rglob("*.ckpt"))
    resumed = train(tmp_path, every=every)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(tmp_path, never_killed)
    # Without a checkpoint it began anew, in a folder of its own.
    assert len(list(tmp_path.glob("firstlight*"))) == (1 if had_checkpoint else 2)


@pytest.mark.slow
def test_also_on_two_ranks(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, ranks=2).returncode == 0
    assert train(killed, 11, ranks=2).returncode != 0
    resumed = train(killed, ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(killed, whole)


def test_another_seed_ends_elsewhere(never_killed):
    """The comparison above can fail: one weight that differs is seen."""
    end = torch.load(never_killed / "end.pt", weights_only=True)
    other = torch.load(never_killed / "end.pt", weights_only=True)
    next(iter(other["model"].values())).flatten()[0] += 1e-6
    assert not same(end, other)
