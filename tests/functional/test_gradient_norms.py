"""Per-example norms of every kind of layer, against autograd one example and class at a time."""

import gc
import resource
from pathlib import Path

import pytest
import torch
from exact_fisher import exact_by_parameter
from measured_layers import FAST, SLOW, Tail
from torch import nn

from firstlight.functional.fisher_trace import fisher_trace
from firstlight.functional.gradient_norms import MISMATCH

N = 5


def compare(layers, shape, dtype=torch.float64):
    torch.manual_seed(3)
    model = Tail(*layers, shape=shape).to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
    x = torch.randn(N, *shape, dtype=dtype)
    want = exact_by_parameter(model, x)
    result = fisher_trace(model, x, estimator="exact", blocks={n: [n] for n in want})
    return {n: v.mean() for n, v in want.items()}, result


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", FAST)
def test_norms_of_every_layer_are_those_of_autograd(name):
    want, result = compare(*FAST[name])
    assert not result.slow
    for parameter, value in want.items():
        assert value > 0
        assert result.blocks[parameter] == pytest.approx(float(value), rel=1e-9), parameter


@pytest.mark.parametrize("name", SLOW)
def test_what_has_no_kernel_is_right_and_named(name):
    want, result = compare(*SLOW[name])
    assert result.slow and set(result.slow) <= set(want)
    assert MISMATCH not in result.slow.values()  # right by itself, not by the comparison's grace
    assert result.slow_parameters == sum(result.block_parameters[n] for n in result.slow)
    for parameter, value in want.items():
        assert result.blocks[parameter] == pytest.approx(float(value), rel=1e-9), parameter


@pytest.mark.parametrize("name", ["conv2d", "linear over tokens", "batch norm 2d", "attention"])
def test_single_precision_is_good_to_a_millionth(name):
    want, result = compare(*FAST[name], dtype=torch.float32)
    total = sum(float(v) for v in want.values())
    assert not result.slow
    assert result.value == pytest.approx(total, rel=2e-6)


def test_a_wrong_kernel_is_found_out_and_left_aside(monkeypatch):
    """A norm that is off by 2 % never reaches the result: the parameter goes the slow way."""
    from firstlight.functional import norm_kernels

    right = norm_kernels.linear_norms
    monkeypatch.setattr(norm_kernels, "linear_norms", lambda a, g: 1.02 * right(a, g))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(N, 6).double()
    want = sum(exact_by_parameter(model, x).values()).mean()
    result = fisher_trace(model, x, estimator="exact")
    assert set(result.slow) == {"0.weight", "2.weight"}
    assert all("disagreed with autograd" in why for why in result.slow.values())
    assert result.value == pytest.approx(float(want), rel=1e-12)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(300))

    def forward(self, x):
        return x + self.shift


@pytest.fixture
def no_collection():
    """Whatever only the collector of circular references would free stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own count")
@pytest.mark.parametrize("between", [nn.Tanh(), Shifted()])
def test_no_graph_stays_in_memory(between, no_collection):
    """A graph holds 5 MB: twenty that stayed would be 100."""

    def resident():
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[1]) * resource.getpagesize()

    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 300), between,
                          nn.Linear(300, 3))  # fmt: skip
    x = torch.randn(2000, 300)

    def measure(times):
        for _ in range(times):
            fisher_trace(model, x, batch_size=2000)

    measure(3)
    memory = resident()
    measure(20)
    assert resident() - memory < 30e6


class Picky(nn.Module):
    """Uses its second layer for some examples only."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        y = torch.tanh(self.a(x))
        rows = x[:, 0] > 0
        if rows.any():
            y = y.clone()
            y[rows] = y[rows] + self.b(y[rows])
        return self.head(y)


def test_layers_that_only_some_examples_pass_are_counted():
    torch.manual_seed(1)
    model, x = Picky().double(), torch.randn(12, 6).double()
    x[:, 0] = torch.tensor([-1.0, -1, -1, 1, 1, -1, -1, 1, -1, -1, -1, -1])
    want = {n: v.mean() for n, v in exact_by_parameter(model, x).items()}
    result = fisher_trace(model, x, estimator="exact", blocks={n: [n] for n in want})
    for name, value in want.items():
        assert result.blocks[name] == pytest.approx(float(value), rel=1e-9), name
