import pytest
import torch
from contract_modules import network

from firstlight.callbacks.frozen_blocks import FrozenBlocks
from firstlight.callbacks.update_scale import grown

BLOCKS = {"stem": ["0.weight", "0.bias", "1.weight", "1.bias"], "head": ["5.weight", "5.bias"]}


def test_a_gradient_that_was_there_moves_nothing_once_frozen():
    """Neither by itself nor by the weight decay that it would let through."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    net(torch.randn(4, 3, 4, 4)).sum().backward()
    before = net[0].weight.detach().clone()
    FrozenBlocks(net, BLOCKS, "eval").apply({"head"})
    optimizer.step()
    assert torch.equal(net[0].weight, before)


def test_what_the_user_froze_stays_frozen():
    net = network()
    net[0].bias.requires_grad_(False)
    frozen = FrozenBlocks(net, BLOCKS, "eval")
    frozen.apply({"stem", "head"})
    frozen.release()
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["0.bias"]


@pytest.mark.parametrize(
    ("mode", "warm", "training", "affine"),
    [
        ("eval", False, False, False),
        ("train", True, True, False),
        ("train_affine", True, True, True),
        ("auto", False, True, False),
        ("auto", True, False, False),
    ],
)
def test_modes_of_batch_norm_in_a_frozen_block(mode, warm, training, affine):
    """``auto`` asks whether the statistics were ever updated."""
    net = network()
    if warm:
        net(torch.randn(8, 3, 4, 4))
    frozen = FrozenBlocks(net, BLOCKS, mode)
    frozen.apply({"head"})
    net.train()
    frozen.keep_modes({"head"})
    assert (net[1].training, net[1].weight.requires_grad) == (training, affine)
    frozen.apply({"stem", "head"})
    assert net[1].training and net[1].weight.requires_grad


def test_growth_of_updates():
    assert [grown(0.5, 4, step) for step in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert grown(0.5, 0, 0) == 0.5
