"""Kernels of single layers, against autograd in float64, one example at a time."""

import pytest
import torch
from torch.nn import functional as F

from firstlight.functional import norm_kernels
from firstlight.functional.norm_kernels import Convolution

B = 3
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

GEOMETRIES = {
    # weight, size of the input, stride, padding, dilation, groups, positions an example
    "a kernel a channel": ((4, 1, 5, 3), (7, 8), (1, 1), (2, 1), (1, 1), 4, 1),
    "pixels that no tap meets": ((4, 1, 4, 3), (9, 8), (3, 2), (0, 1), (1, 1), 4, 1),
    "strided and dilated": ((4, 1, 4, 3), (13, 10), (2, 3), (2, 0), (2, 1), 4, 1),
    "two kernels a channel": ((6, 1, 4, 4), (7, 7), (2, 2), (1, 1), (1, 1), 3, 1),
    "over windows": ((4, 1, 3, 5), (5, 5), (1, 1), (1, 1), (1, 1), 4, 2),
    "along a line": ((4, 1, 11), (19,), (2,), (2,), (1,), 4, 1),
    "in space": ((2, 1, 3, 2, 2), (4, 5, 6), (1, 2, 1), (1, 0, 0), (1, 1, 1), 2, 1),
    "a small kernel a channel": ((4, 1, 3, 3), (7, 8), (2, 1), (1, 0), (1, 1), 4, 2),
    "groups": ((6, 2, 4, 3), (6, 6), (1, 1), (1, 1), (1, 1), 3, 1),
    "one tap": ((5, 3, 1, 1), (4, 5), (1, 1), (0, 0), (1, 1), 1, 1),
    "one tap, strided, over windows": ((5, 3, 1, 1), (5, 4), (2, 3), (0, 0), (1, 1), 1, 2),
    "one tap, padded": ((5, 3, 1, 1), (4, 4), (1, 1), (1, 1), (1, 1), 1, 1),
    "one tap a channel": ((4, 1, 1, 1), (4, 4), (1, 1), (0, 0), (1, 1), 4, 1),
    "by its pixels": ((64, 64, 3, 3), (4, 4), (1, 1), (1, 1), (1, 1), 1, 1),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions(name, dtype, channels_last, monkeypatch):
    shape, size, *steps, groups, positions = GEOMETRIES[name]
    monkeypatch.setattr(norm_kernels, "CHUNK", 300)  # several chunks of examples
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).double()

    weight = random(*shape).requires_grad_()
    a = random(B, positions, shape[1] * groups, *size)
    convolve = CONVOLVE[len(size)]
    outputs = [convolve(x, weight, None, *steps, groups) for x in a]
    g = random(B, *outputs[0].shape)
    want = torch.stack(
        [torch.autograd.grad(out, weight, own)[0] for out, own in zip(outputs, g, strict=True)]
    )
    a, g = a.to(dtype), g.to(dtype)
    if channels_last:
        a, g = (x.movedim(2, -1).contiguous().movedim(-1, 2) for x in (a, g))
    layer = Convolution(weight, *(list(x) for x in steps), groups)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert layer.gradients(a, g).dtype == dtype
    error = (layer.gradients(a, g) - want).abs().amax() / want.abs().amax()
    assert float(error) < tolerance
    torch.testing.assert_close(
        layer.norms(a, g).double(), want.flatten(1).square().sum(1), rtol=5 * tolerance, atol=0
    )
