"""Per-example gradients of one layer's parameters, and their squared norms by the cheapest way.

``a`` is what went into the layer, ``g`` the gradient at what came out. Their first axis counts
examples, the second counts positions that one example holds beside the layer's own (windows, or a
sequence folded into the batch; length 1 elsewhere). All results are float32 or better.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**22
"""Most numbers in a temporary array of per-example gradients (16 MiB in float32)."""

CORRELATED = 16
"""Channels are convolved with their gradients in chunks this many times smaller, for the cache."""

GRAM_MARGIN = 2.0
"""A Gram form has to need this many times fewer multiplications: its other work costs as much."""


def precise(x: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_chunks(count: int, numbers_each: int) -> Iterator[slice]:
    """Cut ``count`` examples into slices of at most `CHUNK` numbers, one example at least."""
    step = max(1, CHUNK // max(1, numbers_each))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))


def squares(gradients: Callable[[slice], Tensor], count: int, numbers_each: int) -> Tensor:
    """Return squared norms (count,) of gradients that are made a chunk at a time."""
    parts = [gradients(rows) for rows in in_chunks(count, numbers_each)]
    return torch.cat([example_norms(p) for p in parts])


def example_norms(gradients: Tensor) -> Tensor:
    """Return squared norms (b,) of gradients (b, ...)."""
    norms: Tensor = torch.linalg.vector_norm(gradients.reshape(len(gradients), -1), dim=1)
    return norms.square()


def linear_gradients(a: Tensor, g: Tensor) -> Tensor:
    """Return (b, o, d), the gradients of a weight, from a (b, T, d) and g (b, T, o)."""
    return torch.bmm(g.transpose(1, 2), a)


def linear_norms(a: Tensor, g: Tensor) -> Tensor:
    """Return squared norms (b,) of `linear_gradients`.

    One position: the product of the norms. Otherwise ``|sum_t g_t a_t^T|_F^2`` either directly, T d
    o multiplications, or as the inner product of two T x T Gram matrices, T^2 (d + o).
    """
    count, positions, d = a.shape
    o = g.shape[2]
    if positions == 1:
        return a.square().sum((1, 2)) * g.square().sum((1, 2))
    if GRAM_MARGIN * positions * (d + o) < d * o:
        return _by_chunks(_gram_product, a, g, 2 * positions**2)
    return squares(lambda rows: linear_gradients(a[rows], g[rows]), count, d * o)


def _by_chunks(norms: Callable[..., Tensor], a: Tensor, g: Tensor, numbers_each: int) -> Tensor:
    return torch.cat([norms(a[rows], g[rows]) for rows in in_chunks(len(a), numbers_each)])


def _gram_product(a: Tensor, g: Tensor) -> Tensor:
    left, right = torch.bmm(a, a.transpose(1, 2)), torch.bmm(g, g.transpose(1, 2))
    return _inner(left, right)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Return <left_i, right_i> (b,)."""
    found: Tensor = torch.linalg.vecdot(left.flatten(1), right.flatten(1))
    return found


class Convolution:
    """The geometry of one convolution, and the gradients of its weight.

    Args:
        weight: (o, d / groups, *kernel); only shape, type and device are used.
        stride: one number an axis; padding and dilation likewise.
        padding: zeros on both sides.
        dilation: steps between the kernel's taps.
        groups: of channels.
    """

    def __init__(
        self,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        self.weight = weight.detach()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def gradients(self, a: Tensor, g: Tensor) -> Tensor:
        """Return (b, *weight.shape) from a (b, m, d, *size) and g (b, m, o, *size).

        Kernels of one tap: a linear layer over positions. Large kernels of single channels: each
        channel is convolved with its gradient. Otherwise the library's own weight gradient, one
        example after the other: as fast as for the batch.
        """
        if self._has_one_tap:
            return linear_gradients(*self._as_linear(a, g)).view(len(a), *self.weight.shape)
        if self._correlates(a):
            parts = in_chunks(len(a), CORRELATED * a[0].numel())
            return torch.cat([self._correlations(a[rows], g[rows]) for rows in parts])
        zeros = [0] * len(self.stride)
        weight = self.weight.to(a.dtype)
        settings = (self.stride, self.padding, self.dilation, False, zeros, self.groups)
        only_weight = [False, True, False]
        backward = torch.ops.aten.convolution_backward
        return torch.stack(
            [backward(g[i], a[i], weight, None, *settings, only_weight)[1] for i in range(len(a))]
        )

    def norms(self, a: Tensor, g: Tensor) -> Tensor:
        """Return squared norms (b,) of `gradients`, by the cheapest form.

        Where the output is small, the inner product of two Gram matrices over positions. That of
        the patches is summed from the pixels' own, shifted by each of the kernel's taps, so that no
        patch is ever copied out (our own derivation).
        """
        if self._has_one_tap:
            return linear_norms(*self._as_linear(a, g))
        if self._gram_is_cheaper(a, g):
            length = prod(s + 2 * p for s, p in zip(a.shape[3:], self.padding, strict=True))
            return _by_chunks(self._gram, a[:, 0], g[:, 0], 2 * length**2)
        return squares(lambda rows: self.gradients(a[rows], g[rows]), len(a), self.weight.numel())

    @property
    def _has_one_tap(self) -> bool:
        return self.groups == 1 and not any(self.padding) and prod(self.weight.shape[2:]) == 1

    def _as_linear(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return views (b, T, d) and (b, T, o) of what a kernel of one tap sees and puts out."""
        seen: tuple[Any, ...] = (..., *(slice(None, None, stride) for stride in self.stride))
        left, right = (x.flatten(3).transpose(2, 3).flatten(1, 2) for x in (a[seen], g))
        return left, right

    def _correlates(self, a: Tensor) -> bool:
        """Whether on a CPU the library would take up to ten times as long.

        It has a kernel of its own for 3 x 3 taps, and a slow one for double precision.
        """
        return (
            self.groups == a.shape[2] > 1
            and prod(self.weight.shape[2:]) > 9
            and a.device.type == "cpu"
            and a.dtype == torch.float32
        )

    def _correlations(self, a: Tensor, g: Tensor) -> Tensor:
        """Return `gradients` of kernels of single channels.

        Examples count as channels, the gradient at the output is the kernel, and stride and
        dilation change places.
        """
        channels = prod(a.shape[:3])
        found = torch.convolution(
            a.reshape(1, channels, *a.shape[3:]), g.reshape(-1, 1, *g.shape[3:]), None,
            self.dilation, self.padding, self.stride, False, [0] * len(self.stride), channels,
        )  # fmt: skip
        for axis, taps in enumerate(self.weight.shape[2:], start=2):
            found = found.narrow(axis, 0, taps)  # a stride may leave pixels that no tap met
        return found.reshape(*a.shape[:2], *self.weight.shape).sum(1)

    def _gram_is_cheaper(self, a: Tensor, g: Tensor) -> bool:
        if self.groups != 1 or a.shape[1] != 1 or len(self.stride) != 2:
            return False
        d, o, taps = a.shape[2], g.shape[2], prod(self.weight.shape[2:])
        pixels = prod(s + 2 * p for s, p in zip(a.shape[3:], self.padding, strict=True))
        out = prod(g.shape[3:])
        sums = 6  # a shifted sum of memory costs about as much as six multiplications
        gram = pixels**2 * d + out**2 * (o + sums * taps)
        return GRAM_MARGIN * gram < out * d * o * taps

    def _gram(self, a: Tensor, g: Tensor) -> Tensor:
        top, left = self.padding
        a = F.pad(a, (left, left, top, top))
        height, width = a.shape[2:]
        pixels = a.flatten(2)
        gram = torch.bmm(pixels.transpose(1, 2), pixels)
        gram = gram.view(-1, height, width, height, width)
        taps = product(self._taps(0, g.shape[2]), self._taps(1, g.shape[3]))
        patches = reduce(torch.add, (gram[:, y, x, y, x] for y, x in taps))
        outputs = g.flatten(2)
        weights = torch.bmm(outputs.transpose(1, 2), outputs)
        return _inner(patches, weights)

    def _taps(self, axis: int, length: int) -> Iterator[slice]:
        stride = self.stride[axis]
        for tap in range(self.weight.shape[2 + axis]):
            start = tap * self.dilation[axis]
            yield slice(start, start + stride * (length - 1) + 1, stride)


def bias_gradients(g: Tensor, channels: int) -> Tensor:
    """Return (b, C): the sum of g over all axes but the first and that of the channels."""
    axes = [axis for axis in range(1, g.ndim) if axis != channels]
    return g.sum(axes) if axes else g


def batch_norm_gradients(
    a: Tensor, g: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients (b, C) of scale and shift of a BatchNorm with running statistics.

    With examples counted as channels, the library's own backward keeps them apart.

    Args:
        a: (b, m, C, *size).
        g: likewise.
        mean: running, (C,).
        variance: running, (C,).
        eps: added to the variance.
    """
    b, m, channels = a.shape[:3]
    merged = (1, b * m * channels, *a.shape[3:])
    mean, variance = (x.to(a.dtype).repeat(b * m) for x in (mean, variance))
    _, scale, shift = torch.ops.aten.native_batch_norm_backward(
        g.reshape(merged).contiguous(), a.reshape(merged).contiguous(),
        torch.ones_like(mean), mean, variance, None, None,
        False, eps, [False, True, True],
    )  # fmt: skip
    return scale.view(b, m, channels).sum(1), shift.view(b, m, channels).sum(1)


def embedding_norms(tokens: Tensor, g: Tensor) -> Tensor:
    """Return squared norms (b,) of the gradients of an embedding's table.

    Positions with the same token add up before they are squared: ``sum_ts [token_t = token_s] g_t .
    g_s``.

    Args:
        tokens: integers (b, T).
        g: (b, T, d), zero where a position is padding.
    """

    def norms(tokens: Tensor, g: Tensor) -> Tensor:
        same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
        return _inner(torch.bmm(same.to(g.dtype), g), g)

    return _by_chunks(norms, tokens, g, tokens.shape[1] ** 2)


def embedding_gradients(tokens: Tensor, g: Tensor, rows: int) -> Tensor:
    """Return (b, rows, d), the gradients themselves."""
    table = g.new_zeros(len(g), rows, g.shape[2])
    return table.scatter_add_(1, tokens.unsqueeze(2).expand_as(g), g)
