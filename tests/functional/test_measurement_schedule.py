"""The oracle is the definition, walked step by step: pieces expanded by range()."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.functional.measurement_schedule import MeasurementSchedule

LAST = 300
pieces = st.dictionaries(st.integers(0, 200), st.integers(1, 60), min_size=1, max_size=4)


def expanded(given_pieces):
    starts = sorted(given_pieces)
    ends = [*starts[1:], LAST + 1]
    return {
        step
        for start, end in zip(starts, ends, strict=True)
        for step in range(start, end, given_pieces[start])
    }


@given(pieces)
def test_due_steps_and_their_count(chosen):
    schedule = MeasurementSchedule.parse([[start, chosen[start]] for start in sorted(chosen)])
    due = expanded(chosen)
    assert {step for step in range(LAST + 1) if schedule.is_due(step)} == due
    for last in (0, 1, 57, LAST):
        assert schedule.count(last) == len([step for step in due if step <= last])


@given(pieces, st.integers(-1, LAST), st.integers(1, 5))
def test_nothing_is_missed_when_the_count_jumps(chosen, seen, jump):
    schedule = MeasurementSchedule.parse([[start, chosen[start]] for start in sorted(chosen)])
    now = seen + jump
    inside = any(seen < step <= now for step in expanded(chosen) if step <= LAST)
    if now <= LAST:
        assert schedule.is_due(now, seen) == inside


def test_an_interval_is_one_piece_from_the_start():
    assert MeasurementSchedule.parse(7) == MeasurementSchedule.parse([[0, 7]])
    assert MeasurementSchedule.parse([(3, 7)]) == MeasurementSchedule.parse([[3, 7]])
    assert str(MeasurementSchedule.parse([[0, 1], [5, 50]])) == (
        "every step, then every 50 steps from step 5"
    )


@pytest.mark.parametrize(
    ("junk", "message"),
    [
        (0, "every 1 or more"),
        (-5, "every 1 or more"),
        (True, "a number of steps"),
        (2.0, "a number of steps"),
        (None, "a number of steps"),
        ("10", "a number of steps"),
        ([], "a number of steps"),
        ([0, 10], "a number of steps"),
        ([[0]], "a number of steps"),
        ([[0, 10, 3]], "a number of steps"),
        ([[0, 1.5]], "a number of steps"),
        ([[0, True]], "a number of steps"),
        ([["a", 1]], "a number of steps"),
        ([[0, 0]], "every 1 or more"),
        ([[-1, 5]], "step 0 or later"),
        ([[0, 10], [0, 20]], "must increase"),
        ([[500, 10], [0, 20]], "must increase"),
    ],
)
def test_junk_is_refused(junk, message):
    with pytest.raises(ValueError, match=message):
        MeasurementSchedule.parse(junk)
