"""When weight noise has which strength."""

import math

import pytest

from firstlight.functional import NoiseSchedule
from firstlight.functional.unfreezing_schedule import RunLength

RUN, UNKNOWN = RunLength(200, 50), RunLength(None, None)


def steps(schedule, last=200):
    return [schedule.at(step) for step in range(last)]


def test_a_number_holds_until_the_noise_free_end():
    found = steps(NoiseSchedule.of(0.3, "10%", RUN))
    assert found == [0.3] * 180 + [0.0] * 20
    assert steps(NoiseSchedule.of(0.3, "1 epoch", RUN)) == [0.3] * 150 + [0.0] * 50
    assert steps(NoiseSchedule.of(0.3, 7, RUN)) == [0.3] * 193 + [0.0] * 7
    assert steps(NoiseSchedule.of(0.3, 0, UNKNOWN)) == [0.3] * 200
    assert steps(NoiseSchedule.of(0.3, 500, RUN)) == [0.0] * 200


def test_levels_by_steps_epochs_and_shares():
    schedule = NoiseSchedule.of([[10, 0.3], ["1 epoch", 0.1], ["50%", 0], [150, 1]], "1%", RUN)
    assert steps(schedule) == (
        [0.0] * 10 + [0.3] * 40 + [0.1] * 50 + [0.0] * 50 + [1.0] * 48 + [0.0] * 2
    )
    assert schedule.largest == 1
    assert str(schedule) == (
        "0.3 from step 10, 0.1 from step 50, off from step 100, 1 from step 150, off from step 198"
    )


def test_levels_after_the_noise_free_end_are_left_out():
    assert NoiseSchedule.of([[0, 1], ["95%", 2]], "10%", RUN).pieces == ((0, 1.0), (180, 0.0))


@pytest.mark.parametrize(
    ("sigma", "free", "length", "message"),
    [
        (-0.1, 0, RUN, "sigma must be finite and 0 or more, not -0.1"),
        (math.inf, 0, RUN, "sigma must be finite"),
        (True, 0, RUN, "sigma must be finite"),
        ("big", 0, RUN, "sigma must be finite"),
        ([[0, -1]], 0, RUN, "sigma must be finite and 0 or more, not -1"),
        ([], 0, RUN, "a list of"),
        ([0.1, 0.2], 0, RUN, r"a list of .*found 0\.1"),
        ([["later", 1]], 0, RUN, "the time in sigma is a number"),
        ([[5, 1], [5, 2]], 0, RUN, r"must increase, got the steps \[5, 5\]"),
        ([["50%", 1], [50, 2]], 0, RUN, r"must increase, got the steps \[100, 50\]"),
        ([["50%", 1]], 0, UNKNOWN, "the time in sigma '50%' needs the length of the run"),
        (0.1, "10%", UNKNOWN, "noise_free='10%' counts from the end.*or noise_free=0"),
        (0.1, 5, UNKNOWN, "noise_free=5 counts from the end"),
        (0.1, -5, RUN, "noise_free must be 0 or more"),
        (0.1, 0.1, RUN, "noise_free is a number of optimiser steps"),
    ],
)
def test_what_cannot_be_read_is_refused(sigma, free, length, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.of(sigma, free, length)
