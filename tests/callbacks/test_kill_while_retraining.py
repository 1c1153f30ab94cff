"""Killed by SIGKILL while features go to a file, and resumed, a fit ends as one never killed."""

import signal

import pytest
import torch
from killed_runs import assert_same_end, finished, same, train

BATCHES = 5
"""Of features in one retraining, 3 held out and 2 of validation; three retrainings in a run."""
MOMENTS = {"in the first": 2, "in the last": 2 * BATCHES + 2}


def run(folder, kill_after=0):
    return train(folder, kill_after, every=5, mode="retraining", hook="extraction")


def files(folder):
    """All but Lightning's own checkpoints."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)) for p in found if not p.name.startswith("epoch=")}


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    whole = run(folder)
    assert whole.returncode == 0, whole.stderr
    return folder


def head_of(folder):
    return torch.load(folder / "checkpoints/last-retrained.ckpt", weights_only=True)


@pytest.mark.xdist_group("kill")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_an_extraction_and_resumed_equals_never_killed(moment, never_killed, tmp_path):
    killed = run(tmp_path, MOMENTS[moment])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Nothing of the features that were in a file, and no head that was not fitted.
    assert files(tmp_path) <= files(never_killed) and not list(tmp_path.rglob("*-retrained*"))
    ended = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert (ended["epoch"], ended["global_step"]) == ((0, 5), (1, 15))[moment == "in the last"]
    resumed = run(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(tmp_path, never_killed, ("events",))
    assert files(tmp_path) == files(never_killed)
    a, b = head_of(tmp_path), head_of(never_killed)
    assert same(a["state_dict"], b["state_dict"])
    assert same(a["last_layer_retraining"], b["last_layer_retraining"])


def test_every_retraining_is_in_the_series(never_killed):
    events = finished(never_killed).read("events").to_pylist()
    assert [e["step"] for e in events if e["reason"].startswith("before")] == [8, 16]
    assert sum("kept" in e["reason"] for e in events) == 1
