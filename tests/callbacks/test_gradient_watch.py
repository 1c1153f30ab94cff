import pytest
import torch

from firstlight.callbacks.gradient_watch import PATIENCE, GradientWatch


def tensors(*gradients):
    """Parameters, with a gradient or without."""
    made = [torch.nn.Parameter(torch.ones(2)) for _ in gradients]
    for p, there in zip(made, gradients, strict=True):
        p.grad = torch.ones(2) if there else None
    return made


def test_one_gradient_in_a_block_is_enough_and_later_ones_are_not_asked_for():
    watch, held = GradientWatch(), tensors(False, True)
    watch.expect({"top": held}, step=3)
    watch.look()
    held[1].grad = None
    watch.look()
    watch.check(3 + 10 * PATIENCE, "Me")


def test_the_tenth_update_without_one_is_the_last():
    watch = GradientWatch()
    watch.expect({"first": tensors(False)}, step=3)
    watch.expect({"second": tensors(True)}, step=8)
    watch.look()
    watch.check(12, "Me")
    with pytest.raises(RuntimeError, match=r"Me opened 'first' at step 3, .* until step 13"):
        watch.check(13, "Me")
