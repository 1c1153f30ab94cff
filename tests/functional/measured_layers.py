"""Layers and small networks whose parameters are measured, by what they show.

Each stands with the shape of an example. `FAST` ones have a form that keeps examples apart; `SLOW`
ones are differentiated one example at a time.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


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


class Tokens(nn.Module):
    """Tokens repeated for every example in other ways."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.register = nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        repeated = self.token.repeat(len(x), 2, 1), self.register.expand(len(x), 2, 6)
        return torch.cat([*repeated, x], 1)


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


class Opaque(torch.autograd.Function):
    """Squares what it is given, and knows nothing of torch's transforms."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(g.numpy() * 2) * x


class Squared(nn.Module):
    """A weight made of the parameters by a function of the user's; used as it is, too."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = F.linear(x, Opaque.apply(self.weight), self.bias)
        return torch.tanh(x) @ self.weight + Opaque.apply(self.bias)


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


class FromTheEnd(Text):
    """The padding token named from the end of the table."""

    def forward(self, x):
        ids = x.abs().mul(2).long().clamp(max=3)
        return F.embedding(ids, self.tokens.weight, padding_idx=-1)


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
    "transposed, dilated": ([nn.ConvTranspose2d(3, 4, 3, dilation=(2, 1))], IMAGE),
    "conv1d dilated": ([nn.Conv1d(4, 6, 3, 2, 2, dilation=2)], SEQUENCE),
    "conv3d grouped": ([nn.Conv3d(3, 6, (2, 3, 2), 1, 1, (2, 1, 1), 3)], TALL),
    "conv3d": ([nn.Conv3d(3, 4, (3, 3, 2), stride=(2, 1, 1), padding=1)], TALL),
    "batch norm 1d": ([nn.Linear(6, 6), nn.BatchNorm1d(6)], VECTOR),
    "batch norm over a sequence": ([nn.BatchNorm1d(4)], SEQUENCE),
    "batch norm 2d": ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)], IMAGE),
    "batch norm 3d": ([nn.BatchNorm3d(3)], TALL),
    "layer norm": ([nn.LayerNorm(6)], SEQUENCE),
    "layer norm, large eps": ([nn.LayerNorm(6, eps=0.5)], SEQUENCE),
    "layer norm over two axes": ([nn.LayerNorm((4, 6))], SEQUENCE),
    "group norm": ([nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)], IMAGE),
    "group norm, large eps": ([nn.GroupNorm(2, 4, eps=0.5)], SEQUENCE),
    "rms norm": ([nn.RMSNorm(6)], SEQUENCE),
    "rms norm, large eps": ([nn.RMSNorm(6, eps=0.5)], SEQUENCE),
    "embedding": ([Text()], SEQUENCE),
    "embedding, padding from the end": ([FromTheEnd()], SEQUENCE),
    "tokens repeated": ([Tokens()], SEQUENCE),
    "made by a function of the user's": ([Squared()], SEQUENCE),
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
