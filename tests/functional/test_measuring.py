"""What measurements need of a model, and give back."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from firstlight.functional import estimate_batch_norm, untouched_batch_norms, warm_batch_norm
from firstlight.functional.measuring import batches_of_two, logits_of, measuring


class Transposed(nn.Module):
    """BatchNorm whose gradient comes transposed."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(x).flatten(2).transpose(1, 2).tanh()).mean(1)


def test_the_gradient_of_one_example_is_right_where_batch_norm_s_own_is_not():
    """Oracle: central differences. torch's own gradient of a batch of one may differ."""
    torch.manual_seed(0)
    model, x = Transposed().double().eval(), torch.randn(1, 6, 3, 3).double()
    model.norm.running_var.uniform_(0.5, 2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(logits_of(model, x, 1)[0, 0], x)
    direction = torch.randn_like(x)
    with torch.no_grad():
        ends = [float(model(x + s * 1e-5 * direction)[0, 0]) for s in (1, -1)]
    slope = float((gradient * direction).sum())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-7)


def test_untouched_statistics_are_found():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert untouched_batch_norms(model) == ["0", "2"]
    model(torch.randn(4, 3, 5, 5))
    assert untouched_batch_norms(model) == []


def test_warm_statistics_are_those_of_the_batches_and_then_as_before():
    """Oracle: mean and unbiased variance of what comes in, averaged over the two batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Flatten(), nn.Linear(75, 2)).eval()
    model[0].running_mean.fill_(7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [torch.randn(8, 3, 5, 5) * 2 + 1, torch.randn(8, 3, 5, 5) - 3]
    with warm_batch_norm(model, batches):
        each = [b.transpose(0, 1).flatten(1) for b in batches]
        mean = sum(b.mean(1) for b in each) / 2
        variance = sum(b.var(1) for b in each) / 2
        torch.testing.assert_close(model[0].running_mean, mean)
        torch.testing.assert_close(model[0].running_var, variance)
        assert not model[0].training and model[0].momentum == 0.3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_flags_and_requires_grad_come_back_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].bias.requires_grad_(False)
    model.grad_checkpointing = True
    model[1].eval()
    with pytest.raises(KeyError), measuring(model, [model[0].bias]):
        assert not model.training and not model.grad_checkpointing
        assert model[0].bias.requires_grad and not model[0].weight.requires_grad
        raise KeyError
    assert model.training and not model[1].training and model.grad_checkpointing
    assert model[0].weight.requires_grad and not model[0].bias.requires_grad


def test_estimated_statistics_are_those_of_torch_s_update_bn():
    """Oracle: torch.optim.swa_utils.update_bn, which leaves modes and dropout otherwise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    model.double().train()
    other = copy.deepcopy(model)
    batches = [torch.randn(n, 3, 6, 6).double() for n in (8, 8, 3)]
    update_bn(batches, other)
    seen = []
    estimate_batch_norm(model, batches, forward=lambda x: seen.append(len(x)) or model(x))
    assert seen == [8, 8, 3]
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert model[1].momentum == 0.1 and model.training
    before = model[3].running_mean.clone()
    model[1].eval()
    estimate_batch_norm(model, [x * 3 for x in batches], norms=[model[1]])
    assert torch.equal(model[3].running_mean, before)
    assert not torch.equal(model[1].running_mean, other[1].running_mean)
    assert not model[1].training and model[3].training


def test_no_batch_has_a_single_example():
    assert batches_of_two(9, 4) == [slice(0, 4), slice(4, 9)]
    assert batches_of_two(8, 4) == [slice(0, 4), slice(4, 8)]
    assert batches_of_two(1, 4) == [slice(0, 1)]
