"""Jumps of the learning rate, told from smooth schedules."""

import contract_checks as checks
import pytest
import torch
from contract_modules import TupleBatch
from contract_table import loss_and_logits as measure
from probe_runs import folder_of, run

from firstlight.callbacks import ProbeMonitor
from firstlight.callbacks.schedule import LearningRateWatch


def test_jumps_of_the_learning_rate_become_events(tmp_path):
    class Steps(TupleBatch):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [
                {"scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 7], 0.1),
                 "interval": "step"}
            ]  # fmt: skip

    pair = ProbeMonitor(measure), ProbeMonitor(measure, name="other")
    run(tmp_path, *pair, case=checks.ModuleCase(Steps))
    events = folder_of(tmp_path).read("events").to_pylist()
    assert [(e["step"], e["kind"], e["block"]) for e in events] == [(4, "lr", ""), (7, "lr", "")]
    assert events[0]["reason"] == "learning rate 0.1 -> 0.01"


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200, eta_min=1e-6)


def linear(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 200)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=201)


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 20) / 20)


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.4)


def restarts(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50, eta_min=1e-4)


def warm_up_and_steps(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step + 1, 20) / 20 * 0.5 ** (step // 70)
    )


@pytest.mark.parametrize(
    ("schedule", "jumps"),
    [
        (cosine, []), (linear, []), (one_cycle, []), (warm_up, []), (exponential, []),
        (restarts, [50, 100, 150]), (warm_up_and_steps, [70, 140]),
    ],
)  # fmt: skip
def test_jumps_are_told_from_smooth_schedules(schedule, jumps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, watch, found = schedule(optimizer), LearningRateWatch(), []
    for step in range(200):
        if watch.look([optimizer]):
            found.append(step)
        optimizer.step()
        scheduler.step()
        if step == 60:  # as a resumed run
            watch, state = LearningRateWatch(), watch.state()
            watch.restore(state)
    assert found == jumps
