"""Runs that unfreeze, killed by SIGKILL at moments of which many lie between a thaw and the next
checkpoint, and resumed: they end bitwise equal to one never killed."""

import random
import signal

import pytest
import torch
from killed_runs import assert_same_end, end_of, finished, same, train

from firstlight.runfolder import RunFolder

BATCHES = {"fixed": 144, "auto": 90}
HOOKS = ("on_train_batch_start", "on_after_backward", "on_train_batch_end")
TABLES = {"fixed": ("events",), "auto": ("events", "unfreezing_signal")}
# Updates before which a block opens, in a run that is never killed.
THAWS = {
    "fixed": {"layer3": 12, "layer2": 25, "layer1": 38, "stem": 51},
    "auto": {"stem": 10, "layer2": 20, "layer1": 30, "layer3": 40},
}
# Drawn by `draw`: the mode of kill_worker.py, updates between checkpoints, and in which batch and
# hook the run dies. Then, as found when it was dead: what had opened since the last checkpoint.
MOMENTS = {
    ("fixed", 20, 140, "on_train_batch_start"): [],
    ("auto", 20, 61, "on_train_batch_end"): [],
    ("fixed", 20, 4, "on_after_backward"): [],
    ("auto", 20, 30, "on_train_batch_start"): ["layer2"],
    ("auto", 20, 71, "on_after_backward"): [],
    ("auto", 20, 20, "on_train_batch_start"): ["stem"],
    ("fixed", 20, 100, "on_train_batch_end"): [],
    ("fixed", 20, 17, "on_train_batch_start"): [],
    ("fixed", 9, 8, "on_after_backward"): [],
    ("auto", 20, 50, "on_train_batch_end"): ["layer3"],
    ("auto", 9, 74, "on_after_backward"): [],
    ("fixed", 9, 25, "on_train_batch_start"): ["layer3"],
    ("fixed", 9, 56, "on_after_backward"): [],
    ("auto", 20, 39, "on_after_backward"): ["layer2", "layer1"],
    ("auto", 20, 45, "on_train_batch_end"): ["layer3"],
    ("auto", 20, 30, "on_after_backward"): ["layer2"],
    ("fixed", 9, 42, "on_train_batch_end"): [],
    ("auto", 20, 74, "on_train_batch_end"): [],
    ("fixed", 20, 55, "on_train_batch_end"): ["layer2"],
    ("auto", 9, 16, "on_train_batch_start"): ["stem"],
}
QUICK = (("fixed", 20, 55, "on_train_batch_end"), ("auto", 9, 16, "on_train_batch_start"))


def draw(count, seed=3):
    source = random.Random(seed)
    for _ in range(count):
        mode, every = source.choice(("fixed", "auto")), source.choice((4, 9, 20))
        yield mode, every, source.randint(1, BATCHES[mode]), source.choice(HOOKS)


def cases():
    for moment, opened in MOMENTS.items():
        since = "+".join(opened) or "nothing"
        name = "-".join(map(str, moment)) + f"-{since}_since_checkpoint"
        yield pytest.param(
            moment, opened, id=name, marks=[] if moment in QUICK else pytest.mark.slow
        )


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folders = {}

    def of(mode):
        if mode not in folders:
            folders[mode] = tmp_path_factory.mktemp(mode)
            run = train(folders[mode], mode=mode)
            assert run.returncode == 0, run.stderr
        return folders[mode]

    return of


def thaws(run):
    rows = run.read("events").to_pylist()
    return {row["block"]: row["step"] for row in rows if row["kind"] == "thaw"}


def opened_since_the_checkpoint(folder):
    """By the dead run's table of events, and by its last checkpoint."""
    (run,) = folder.glob("firstlight*")
    last = folder / "checkpoints" / "last.ckpt"
    kept = {}
    if last.exists():
        kept = torch.load(last, weights_only=True)["callbacks"]["GradualUnfreezing"]["opened"]
    return [block for block in thaws(RunFolder.open(run)) if block not in kept]


def test_the_moments_are_those_drawn_and_many_follow_a_thaw():
    assert list(MOMENTS) == list(draw(20))
    assert sum(bool(opened) for opened in MOMENTS.values()) >= 5


@pytest.mark.xdist_group("kill while unfreezing")
@pytest.mark.parametrize("mode", ["fixed", "auto"])
def test_blocks_open_all_over_the_run(mode, never_killed):
    assert thaws(finished(never_killed(mode))) == THAWS[mode]
    reasons = set(finished(never_killed(mode)).read("events")["reason"].to_pylist())
    assert any("settled" in reason for reason in reasons) == (mode == "auto")


@pytest.mark.xdist_group("kill while unfreezing")
@pytest.mark.parametrize(("moment", "opened"), [*cases()])
def test_killed_while_unfreezing_equals_never_killed(moment, opened, never_killed, tmp_path):
    mode, every, batches, hook = moment
    killed = train(tmp_path, batches, every, mode=mode, hook=hook)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "end.pt").exists()
    assert opened_since_the_checkpoint(tmp_path) == opened
    resumed = train(tmp_path, every=every, mode=mode)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(tmp_path, never_killed(mode), TABLES[mode])


@pytest.mark.xdist_group("kill while unfreezing")
def test_what_is_compared_holds_optimizer_and_decision(never_killed):
    """A momentum or an opening that differs is seen."""
    for mode, part in (("fixed", "momentum_buffer"), ("auto", "exp_avg")):
        end, other = end_of(never_killed(mode)), end_of(never_killed(mode))
        assert same(end, other)
        other["optimizer"]["state"][0][part].flatten()[0] += 1e-6
        assert not same(end, other)
        other = end_of(never_killed(mode))
        other["unfreezing"][0]["opened"]["stem"] += 1
        assert not same(end, other)
