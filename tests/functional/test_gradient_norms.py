"""Per-example norms of every kind of layer, against autograd one example and class at a time."""

import gc
import resource
from pathlib import Path

import pytest
import torch
from exact_fisher import exact_by_parameter
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from firstlight.functional.fisher_trace import fisher_trace

N = 5


class Tail(nn.Module):
    """A layer, something curved behind it, a mean over what is left, and a fixed linear map."""

    def __init__(self, *layers, shape):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            width = self.layers.double().eval()(torch.zeros(1, *shape).double()).flatten(1).shape[1]
        self.register_buffer("map", torch.randn(3, width).double() / width**0.5)

    def forward(self, x):
        return F.linear(torch.tanh(self.layers(x)).flatten(1), self.map)


class Scaled(nn.Module):
    """Class token, position embedding and layer scale, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 5, 6))
        self.scale = nn.Parameter(torch.randn(6))
        self.temperature = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.scale * x.sin()
        x *= self.temperature
        return x


class Twice(nn.Module):
    """One layer called twice, one weight shared by two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.more = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.relu_(self.norm(self.conv(x)))
        y = self.more(x)
        y += x
        return F.relu_(y)


class Standardised(nn.Conv2d):
    """The weight that meets the data is made of the parameter."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class Windows(nn.Module):
    """Positions folded into the batch, one example after the other or the other way round."""

    def __init__(self, minor):
        super().__init__()
        self.minor = minor
        self.linear, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.bias = nn.Parameter(torch.randn(1, 4, 6))

    def forward(self, x):  # (n, 8, 6)
        n = len(x)
        x = x.view(n, 2, 4, 6)
        x = x.transpose(0, 1) if self.minor else x
        x = self.norm(torch.tanh(self.linear(x.reshape(2 * n, 4, 6)) + self.bias))
        x = x.view(2, n, 4, 6).transpose(0, 1) if self.minor else x.view(n, 2, 4, 6)
        return x.reshape(n, 8, 6)


class ImageWindows(nn.Module):
    """Convolutions of windows that are folded into the batch."""

    def __init__(self, minor):
        super().__init__()
        self.minor = minor
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 1, stride=(2, 1)), nn.Tanh(), nn.Conv2d(4, 4, 5, 1, 2, groups=4),
            nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 3),
        )  # fmt: skip

    def forward(self, x):  # (n, 3, 8, 4)
        n = len(x)
        x = x.view(n, 3, 2, 4, 4).movedim(2, 0 if self.minor else 1)
        y = self.layers(x.reshape(2 * n, 3, 4, 4).repeat(1, 1, 2, 1))
        return y.view(2, n, -1).transpose(0, 1) if self.minor else y.view(n, 2, -1)


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Text(nn.Module):
    """Token ids made of the numbers; the padding token counts for nothing."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(4, 6, padding_idx=0)

    def forward(self, x):
        return self.tokens(x.abs().mul(2).long().clamp(max=3))


class TextTransformer(nn.Module):
    """Tokens and learned positions, one encoder layer, the words' own vectors as its head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(4, 6), nn.Embedding(24, 6)
        self.layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x):
        ids = x.flatten(1).abs().mul(2).long().clamp(max=3)
        y = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.layer(y).mean(1) @ self.tokens.weight.T


class Partly(nn.Module):
    """Frozen and trained parameters in one layer, a frozen layer behind a trained one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.a.weight.requires_grad_(False)
        self.b.requires_grad_(False)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


IMAGE, TALL, SEQUENCE, VECTOR = (3, 7, 7), (3, 5, 5, 4), (4, 6), (6,)

FAST = {
    "linear": ([nn.Linear(6, 4)], VECTOR),
    "linear over tokens": ([nn.Linear(6, 4)], SEQUENCE),
    "linear over few tokens": ([nn.Linear(6, 300), nn.Linear(300, 90)], (2, 6)),
    "linear over a grid": ([nn.Linear(6, 4, bias=False)], (2, 3, 6)),
    "conv1d": ([nn.Conv1d(4, 6, 3, padding=1, groups=2)], SEQUENCE),
    "conv2d": ([nn.Conv2d(3, 4, 3)], IMAGE),
    "conv2d strided, dilated, padded": (
        [nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=(2, 1))], IMAGE,
    ),
    "conv2d grouped": ([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2)], IMAGE),
    "conv2d depthwise": ([nn.Conv2d(3, 6, 3, groups=3, stride=2)], IMAGE),
    "conv2d depthwise, large": ([nn.Conv2d(3, 3, (5, 3), 2, (2, 0), groups=3)], IMAGE),
    "conv2d of one tap": ([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, stride=(2, 3))], IMAGE),
    "conv2d of one tap, padded": ([nn.Conv2d(3, 4, 1, padding=1)], IMAGE),
    "conv2d same": ([nn.Conv2d(3, 4, (2, 3), padding="same")], IMAGE),
    "conv2d circular": ([nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")], IMAGE),
    "conv2d by its pixels": (
        [nn.Conv2d(3, 96, 3, stride=2), nn.Conv2d(96, 96, (3, 2), 2, (1, 1), dilation=(1, 2))],
        IMAGE,
    ),
    "transposed convolution": ([nn.ConvTranspose2d(3, 4, 3)], IMAGE),
    "transposed, strided, grouped": (
        [nn.ConvTranspose2d(3, 4, 2), nn.ConvTranspose2d(4, 6, 3, 2, (1, 0), 1, groups=2)], IMAGE,
    ),
    "transposed by its pixels": (
        [nn.Conv2d(3, 96, 5, stride=2), nn.ConvTranspose2d(96, 96, 3, 1)], IMAGE,
    ),
    "conv3d": ([nn.Conv3d(3, 4, (3, 3, 2), stride=(2, 1, 1), padding=1)], TALL),
    "batch norm 1d": ([nn.Linear(6, 6), nn.BatchNorm1d(6)], VECTOR),
    "batch norm over a sequence": ([nn.BatchNorm1d(4)], SEQUENCE),
    "batch norm 2d": ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)], IMAGE),
    "batch norm 3d": ([nn.BatchNorm3d(3)], TALL),
    "layer norm": ([nn.LayerNorm(6)], SEQUENCE),
    "layer norm over two axes": ([nn.LayerNorm((4, 6))], SEQUENCE),
    "group norm": ([nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)], IMAGE),
    "rms norm": ([nn.RMSNorm(6)], SEQUENCE),
    "embedding": ([Text()], SEQUENCE),
    "bare parameters": ([Scaled()], SEQUENCE),
    "used twice": ([Twice()], VECTOR),
    "in place": ([InPlace()], IMAGE),
    "standardised": ([Standardised(3, 4, 3)], IMAGE),
    "weight norm": ([parametrizations.weight_norm(nn.Linear(6, 4))], SEQUENCE),
    "windows": ([Windows(minor=False)], (8, 6)),
    "windows, batch last": ([Windows(minor=True)], (8, 6)),
    "windows of images": ([ImageWindows(minor=False)], (3, 8, 4)),
    "windows of images, batch last": ([ImageWindows(minor=True)], (3, 8, 4)),
    "sequence first": ([SequenceFirst()], SEQUENCE),
    "attention": ([nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True)], SEQUENCE),
    "tokens": ([TextTransformer()], SEQUENCE),
    "partly frozen": ([Partly()], VECTOR),
}  # fmt: skip


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return torch.einsum("ntd,do->nto", x, self.weight)


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(6, 6, 4)

    def forward(self, x):
        return self.layer(x, x.sin())


class Routed(nn.Module):
    """What data are written with: no function of torch puts out anything."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = x.clone()
        x[:, 0] = self.mask * 2
        return x


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g * weight, (g * x).flatten(0, -2).sum(0)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return Hidden.apply(x, self.weight)


SLOW = {
    "einsum": ([Einsum()], SEQUENCE),
    "bilinear": ([Bilinear()], SEQUENCE),
    "prelu": ([nn.PReLU(3)], IMAGE),
    "written into the data": ([Routed()], SEQUENCE),
    "a function of the user's": ([Custom()], SEQUENCE),
}


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
