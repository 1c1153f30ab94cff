"""Runs with weight noise, killed by SIGKILL while it lies on the weights, and resumed: they end
bitwise equal to one never killed. Checkpoints hold perturbed weights, and the clean ones beside."""

import signal

import pytest
import torch
from killed_runs import assert_same_end, finished, train

# Updates between checkpoints, and in which batch of 72 and which hook the run dies.
MOMENTS = [
    (4, 37, "on_after_backward"),
    (9, 57, "on_train_batch_start"),  # the noise goes off before update 29
    (1, 16, "on_train_batch_end"),
    (4, 11, "on_before_zero_grad"),
]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    run = train(folder, mode="noise")
    assert run.returncode == 0, run.stderr
    return folder


def cases():
    for number, moment in enumerate(MOMENTS):
        yield pytest.param(moment, marks=[pytest.mark.slow] if number > 1 else [])


@pytest.mark.xdist_group("kill under noise")
def test_the_noise_changes_and_goes_off(never_killed):
    events = finished(never_killed).read("events").to_pylist()
    assert [(e["step"], e["reason"].split(";")[0]) for e in events] == [
        (0, "sigma 0.5"), (8, "sigma 0.5 -> 0.2"), (28, "sigma 0.2 -> 0"),
    ]  # fmt: skip
    assert "BatchNorm layers estimated on 24 examples" in events[-1]["reason"]


@pytest.mark.xdist_group("kill under noise")
@pytest.mark.parametrize("moment", [*cases()])
def test_killed_under_noise_equals_never_killed(moment, never_killed, tmp_path):
    every, batches, hook = moment
    killed = train(tmp_path, batches, every, mode="noise", hook=hook)
    assert killed.returncode == -signal.SIGKILL
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    state = saved["callbacks"]["WeightNoise"]
    clean = [torch.equal(v, saved["state_dict"][n]) for n, v in state["clean"].items()]
    assert len(clean) > 10 and not any(clean), "the checkpoint holds both"
    resumed = train(tmp_path, every=every, mode="noise")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(tmp_path, never_killed, ["events"])
