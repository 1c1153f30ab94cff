"""Frozen weights and statistics stay bitwise as they were until their block opens, and so does
their average, whatever the optimiser would do to them."""

from functools import partial

import contract_checks as checks
import pytest
import torch
from contract_modules import ModuleCase, Ours
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_avg_fn

from firstlight.callbacks import GradualUnfreezing

OPENS = {"layer3": 3, "layer2": 7, "layer1": 11, "stem": 15}  # interval=4
PREFIXES = {block: (f"model.{block}.",) for block in OPENS} | {"stem": ("model.conv1", "model.bn1")}
DECAY = {"lr": 0.05, "weight_decay": 0.1}
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, momentum=0.9, nesterov=True, **DECAY),
    "AdamW": partial(torch.optim.AdamW, **DECAY),
    "AdamW, foreach": partial(torch.optim.AdamW, foreach=True, **DECAY),
    "RMSprop": partial(torch.optim.RMSprop, momentum=0.9, **DECAY),
}


class Optimised(Ours):
    """With an optimiser that would move what it has a gradient for, were it zero."""

    def __init__(self, optimizer):
        super().__init__()
        self.make = OPTIMIZERS[optimizer]

    def configure_optimizers(self):
        return self.make(self.parameters())


class ZeroedInPlace(Optimised):
    """Keeps gradients as zeros, and begins training with some from elsewhere."""

    def on_validation_end(self):
        if self.trainer.sanity_checking:
            with torch.enable_grad():
                self(torch.randn(4, 3, 4, 4)).sum().backward()

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)


class Remembers(checks.L.Callback):
    """Weights and statistics after each update: of the module, and of its average."""

    def __init__(self, average):
        self.average, self.raw, self.averaged = average, [], []

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        averaged = self.average._average_model.module
        for kept, module in ((self.raw, pl_module), (self.averaged, averaged)):
            kept.append({name: value.clone() for name, value in module.state_dict().items()})


def moved(states, block):
    """The first update with which each tensor of a block was other than at the start."""
    keys = [key for key in states[0] if key.startswith(PREFIXES[block])]
    return {
        key: next(
            (i for i, state in enumerate(states) if not torch.equal(state[key], states[0][key])),
            len(states),
        )
        for key in keys
    }


def remembered(build, root, decay=0.5, **arguments):
    """With a decay of a half, the average of equal numbers is the number itself, bit for bit."""
    average = EMAWeightAveraging(decay=decay)
    watch = Remembers(average)
    callback = GradualUnfreezing(interval=4, **arguments)
    case = ModuleCase(build, blocks=4)
    checks.fit(case, root, [callback, average, watch], epochs=5)
    assert callback._opened == OPENS
    return watch


@pytest.mark.parametrize("kind", [Optimised, ZeroedInPlace])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_weights_their_average_and_statistics_stand_still(optimizer, kind, tmp_path):
    watch = remembered(lambda: kind(optimizer), tmp_path, batch_norm="eval")
    for block, step in OPENS.items():
        for states in (watch.raw, watch.averaged):
            first = moved(states, block)
            assert len(first) > 4 and min(first.values()) == step + 1, block
        weights = [i for key, i in moved(watch.raw, block).items() if key.endswith("weight")]
        assert set(weights) == {step + 1}, "what opened trains from its first update on"


def test_statistics_that_may_move_do_and_weights_stand_still(tmp_path):
    watch = remembered(lambda: Optimised("SGD"), tmp_path, batch_norm="train")
    for block, step in OPENS.items():
        for states in (watch.raw, watch.averaged):
            first = moved(states, block)
            statistics = {i for key, i in first.items() if "running" in key}
            others = {i for k, i in first.items() if "running" not in k and "num_b" not in k}
            assert max(statistics) <= 2 and min(others) == step + 1, block


def test_an_average_that_rounds_is_that_of_weights_that_stand_still(tmp_path):
    """Of any other decay, 0.9 x + 0.1 x is not always x: the average moves, by rounding alone."""
    watch = remembered(lambda: Optimised("SGD"), tmp_path, decay=0.9, batch_norm="eval")
    averaged, rounded = get_ema_avg_fn(0.9), 0
    for block, step in OPENS.items():
        for key in moved(watch.raw, block):
            start = expected = watch.raw[0][key]
            for update in range(2, step + 1):  # the first one copies
                expected = torch.empty_like(start).copy_(averaged(expected, start, update))
                assert torch.equal(watch.averaged[update][key], expected), (key, update)
            rounded += not torch.equal(start, expected)
    assert rounded


def test_adams_moments_begin_with_the_block(tmp_path):
    average = EMAWeightAveraging(decay=0.7)
    callback = GradualUnfreezing(interval=4)
    trainer, module = checks.fit(
        ModuleCase(lambda: Optimised("AdamW")), tmp_path, [callback, average], epochs=5
    )
    state = trainer.optimizers[0].state
    for block, step in OPENS.items():
        owned = [p for n, p in module.named_parameters() if n.startswith(PREFIXES[block])]
        assert {int(state[p]["step"]) for p in owned} == {25 - step}
