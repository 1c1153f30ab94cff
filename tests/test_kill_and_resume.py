"""A run killed by SIGKILL at any moment and resumed ends bitwise equal to one never killed."""

import signal

import pytest
from killed_runs import assert_same_end, end_of, finished, same, train

from firstlight.runfolder import RunFolder

# Batches after which the run is killed (an epoch has 18), and updates between its checkpoints (an
# epoch has 9, the last of a single batch). With 9 every checkpoint is of an epoch's last batch.
MOMENTS = (
    (1, 4), (6, 4), (9, 4), (13, 4), (18, 4), (19, 9), (24, 1), (31, 9), (34, 9), (47, 4),
)  # fmt: skip
TABLES = (
    "per_class", "predictions", "confusions", "classes", "fisher_trace", "sharpness", "events",
)  # fmt: skip
QUICK = ((13, 4), (31, 9))


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = train(folder)
    assert run.returncode == 0, run.stderr
    return folder


def assert_same_run(folder, whole):
    assert_same_end(folder, whole, TABLES)
    pictures = (finished(run).path / "figures/early_training.png" for run in (folder, whole))
    a, b = (picture.read_bytes() for picture in pictures)
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
    assert_same_run(tmp_path, never_killed)
    # Without a checkpoint it began anew, in a folder of its own.
    assert len(list(tmp_path.glob("firstlight*"))) == (1 if had_checkpoint else 2)


@pytest.mark.slow
def test_also_on_two_ranks(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, ranks=2).returncode == 0
    assert train(killed, 11, ranks=2).returncode != 0
    resumed = train(killed, ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(killed, whole)


def test_another_seed_ends_elsewhere(never_killed):
    """The comparison above can fail: one weight that differs is seen."""
    end, other = end_of(never_killed), end_of(never_killed)
    next(iter(other["model"].values())).flatten()[0] += 1e-6
    assert not same(end, other)
