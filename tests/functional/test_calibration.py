import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from torch.nn import functional as F

from firstlight.functional import calibration, fit_temperature


def logits(n=400, k=4, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=generator, dtype=torch.float64)
    y = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
    return scale * z, y


def test_calibration_by_hand():
    """Four examples in two bins: .9, .9 (one right), .6, .6 (both right)."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    found = calibration(p.log(), torch.tensor([0, 1, 0, 1]), bins=10)
    assert found.ece == pytest.approx((abs(0.9 - 0.5) + abs(0.6 - 1)) / 2, rel=1e-5)
    assert found.brier == pytest.approx(2 * (0.01 + 0.81 + 0.16 + 0.16) / 4, rel=1e-9)
    want = log_loss([0, 1, 0, 1], p.numpy())
    assert found.nll == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_temperature_is_scipys_minimum(scale, weighted):
    z, y = logits(scale=scale)
    w = torch.linspace(0, 2, 400).double() if weighted else None

    def loss(log_t):
        each = F.cross_entropy(z / math.exp(log_t), y, reduction="none")
        return float(each @ (torch.ones(400).double() if w is None else w))

    want = math.exp(minimize_scalar(loss, bounds=(-5, 5), options={"xatol": 1e-9}).x)
    found = fit_temperature(z, y, w)
    assert found == pytest.approx(want, rel=1e-5)


def test_a_temperature_undoes_a_scale_and_calibrates():
    z, y = logits(n=20_000, scale=1.0)
    once, four_times = fit_temperature(z, y), fit_temperature(4 * z, y)
    assert four_times == pytest.approx(4 * once, rel=1e-8)
    assert once == pytest.approx(1, abs=0.03)
    before, after = calibration(4 * z, y), calibration(4 * z / four_times, y)
    assert after.ece < 0.02 < 0.1 < before.ece
    assert after.nll < before.nll and after.brier < before.brier
    half = fit_temperature((4 * z).float(), y)
    assert half == pytest.approx(four_times, rel=1e-5)


def test_where_no_temperature_is_best():
    z, _ = logits()
    with pytest.warns(UserWarning, match="every example is right"):
        assert fit_temperature(z, z.argmax(1)) == pytest.approx(math.exp(-7))
    with pytest.warns(UserWarning, match="say nothing"):
        assert fit_temperature(z, z.argmin(1)) == pytest.approx(math.exp(7))


def test_bad_arguments_are_refused():
    z, y = logits(n=5)
    with pytest.raises(ValueError, match="targets must lie in"):
        fit_temperature(z, y + 4)
    with pytest.raises(ValueError, match="sample_weights must be"):
        fit_temperature(z, y, -torch.ones(5))
    z[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(z, y)
    with pytest.raises(ValueError, match="no examples"):
        calibration(z[:0], y[:0])
