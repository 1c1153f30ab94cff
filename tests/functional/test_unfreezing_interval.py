import math

import numpy as np
import pytest

from firstlight.functional import StabilityRule, unfreezing_interval

SAMPLES = 200
# First settled sample, and the sample at which the online rule fires. exp(-i/s): by the closed form
# below; the others by hand from the definition.
CURVES = {
    "fast decay": (lambda i: math.exp(-i / 8), 14, 19),
    "slow decay": (lambda i: math.exp(-i / 16), 17, 25),
    "logistic": (lambda i: 1 / (1 + math.exp(-(i - 30) / 4)), 38, 43),
    "constant": (lambda i: 3.0, 10, 80),
}
LONG = {"longest": 2000}


def samples(curve):
    return [CURVES[curve][0](i) for i in range(SAMPLES)]


def fires_at(rule, signal):
    return next(n for n in range(len(signal)) if rule.online(signal[: n + 1]) is not None)


@pytest.mark.parametrize("curve", CURVES)
def test_curves_with_known_answers(curve):
    _, offline, online = CURVES[curve]
    signal, rule = samples(curve), StabilityRule()
    found = unfreezing_interval(signal)
    assert (found.index, found.steps) == (offline, 10 * offline)
    n = fires_at(rule, signal)
    assert (n, rule.online(signal[: n + 1]).steps) == (online, 10 * online)
    assert found.settled == rule.online(signal[: n + 1]).settled == (curve != "constant")


@pytest.mark.parametrize("scale", [5, 8, 11, 16, 23])
@pytest.mark.parametrize("window", [3, 8])
@pytest.mark.parametrize("tolerance", [0.01, 0.02])
def test_closed_form_of_an_exponential(scale, window, tolerance):
    """d_i = exp(-i/s) (1 - exp(-w/s)) / w falls monotonically: half of d_0 at s ln 2, then eps."""
    quiet = scale * math.log((1 - math.exp(-window / scale)) / (window * tolerance))
    expected = math.ceil(max(quiet, scale * math.log(2)))
    found = unfreezing_interval(
        [math.exp(-i / scale) for i in range(2000)], window=window, tolerance=tolerance, **LONG
    )
    assert found.index == expected and found.settled


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(("factor", "shift"), [(1e6, -3.0), (-1e-4, 17.0), (-5.0, 0.0)])
def test_unit_and_sign_do_not_matter(curve, factor, shift):
    signal = samples(curve)
    other = [factor * value + shift for value in signal]
    assert unfreezing_interval(other) == unfreezing_interval(signal)
    assert fires_at(StabilityRule(), other) == fires_at(StabilityRule(), signal)


def test_noise_of_two_percent_moves_the_answer_little():
    """The 10 to 90 % range that the method's reference gives: 11 to 16 offline, 16 to 22 online."""
    generator = np.random.default_rng(0)
    clean = np.array(samples("fast decay"))
    found = [
        (unfreezing_interval(noisy).index, fires_at(StabilityRule(), noisy.tolist()))
        for noisy in clean + 0.02 * generator.standard_normal((400, SAMPLES))
    ]
    low, high = np.quantile(found, [0.1, 0.9], axis=0)
    assert np.abs(low - [11, 16]).max() <= 1 and np.abs(high - [16, 22]).max() <= 1


def test_the_interval_is_bounded():
    quick = [1.0] + [0.0] * 50
    assert unfreezing_interval(quick, every=10).steps == 10
    assert unfreezing_interval(samples("logistic"), longest=100).steps == 100
    rising = [float(i * i) for i in range(30)]
    never = unfreezing_interval(rising, longest=100)
    assert (never.steps, never.settled) == (100, False) and "did not settle" in never.reason


def test_one_quiet_step_is_not_enough():
    """Falls, stands still for a moment, falls on, and stops."""
    signal = [1.0 - 0.1 * i for i in range(6)] + [0.5] * 3 + [0.4, 0.3, 0.2, 0.1] + [0.0] * 30
    patient = unfreezing_interval(signal, window=1, quiet=4).index
    assert unfreezing_interval(signal, window=1, quiet=2).index == 5
    assert patient == 13


def test_online_fires_by_the_longest_interval_and_not_before_the_eighth_sample():
    rule = StabilityRule(every=10, longest=50)
    assert [rule.online([3.0] * n) is None for n in range(1, 7)] == [True] * 5 + [False]
    step = [1.0] + [0.0] * 20
    assert fires_at(StabilityRule(), step) == 8


def test_online_does_not_take_a_steady_rise_for_quiet():
    """Steps within the tolerance, but more than half of the largest: the change goes on."""
    rise = [0.0, 0.03, *(0.03 + 0.019 * i for i in range(1, 52))]
    rule = StabilityRule(window=1, longest=10_000)
    assert rule.online(rise) is None
    assert rule.online([*rise, rise[-1], rise[-1]]).settled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be a whole number above 0"),
        ({"window": 2.5}, "window must be a whole number"),
        ({"tolerance": 0}, "tolerance must be a number above 0"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"quiet": True}, "quiet must be"),
        ({"longest": -1}, "longest must be"),
    ],
)
def test_bad_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StabilityRule(**arguments)


def test_bad_signals_are_refused():
    with pytest.raises(ValueError, match="sample 2 of the signal is nan"):
        unfreezing_interval([1.0, 2.0, math.nan, *range(9)])
    with pytest.raises(ValueError, match="sample 0 of the signal is inf"):
        StabilityRule().online([math.inf])
    with pytest.raises(ValueError, match="4 samples are too few"):
        unfreezing_interval([4.0, 3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="a sequence of numbers"):
        unfreezing_interval([[1.0, 2.0]])
