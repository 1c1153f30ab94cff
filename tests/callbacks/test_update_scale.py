"""Scaled updates, against the same optimiser at a scaled rate."""

import pytest
import torch

from firstlight.callbacks.update_scale import UpdateScale, refuse_unscalable

KINDS = {n: k for n, k in vars(torch.optim).items() if isinstance(k, type) and n != "Optimizer"}
NOT_PROPORTIONAL = ("LBFGS", "Rprop")
SCALABLE = sorted(set(KINDS) - {*NOT_PROPORTIONAL, "SparseAdam"})


def start():
    generator = torch.Generator().manual_seed(2)
    return torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))


def path(kind, rate, factor=None, detach_before=None, steps=4):
    """A parameter on its way down a bowl."""
    p, scale = start(), UpdateScale()
    optimizer = KINDS[kind]([p], lr=rate)
    if factor is not None:
        scale.attach([optimizer])
        scale.attach([optimizer])  # a second time changes nothing
        scale.set({factor: [p], 1.0: []})
    seen = []
    for step in range(steps):
        if step == detach_before:
            scale.detach()
            assert not optimizer._optimizer_step_pre_hooks
            assert not optimizer._optimizer_step_post_hooks
        optimizer.zero_grad()
        (p - 1).square().sum().backward()
        optimizer.step()
        assert not scale._before, "copies are kept during the step only"
        seen.append(p.detach().clone())
    return seen


@pytest.mark.parametrize("kind", SCALABLE)
def test_a_scaled_update_is_that_of_a_scaled_rate(kind):
    for a, b in zip(path(kind, 0.01, factor=0.25), path(kind, 0.0025), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(a, path(kind, 0.01)[-1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", NOT_PROPORTIONAL)
def test_what_is_not_proportional_to_its_rate_is_refused(kind):
    with pytest.raises(ValueError, match=f"the updates of {kind} are not proportional"):
        refuse_unscalable([KINDS[kind]([start()])], "Me")
    refuse_unscalable([KINDS[kind]([start()]) for kind in SCALABLE], "Me")


def test_once_detached_updates_are_whole_again():
    scaled = path("SGD", 0.01, factor=0.25, detach_before=2)
    whole = 0.98 * (scaled[1] - 1) + 1  # a step of SGD with rate 0.01 from there
    assert torch.allclose(scaled[2], whole)
