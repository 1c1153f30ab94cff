import pytest

from firstlight.functional.unfreezing_schedule import (
    Opening,
    RunLength,
    check_order,
    check_schedule,
    open_blocks,
    opening_order,
    random_interval,
    regular_openings,
    scheduled_openings,
    steps_of,
)

BLOCKS = ["stem", "layer1", "layer2", "layer3", "layer4"]
LENGTH = RunLength(1000, 40)


def algorithm_1(blocks, interval, steps):
    """The published loop: before step i = 1, 2, ... a block opens if i mod k = 0 and i <= k L."""
    closed, opened, history = list(blocks), set(), []
    for i in range(1, steps + 1):
        if i % interval == 0 and i <= interval * len(blocks):
            opened.add(closed.pop(0))
        history.append(set(opened))
    return history


@pytest.mark.parametrize("interval", range(1, 15))
@pytest.mark.parametrize("count", range(1, 8))
def test_regular_openings_are_those_of_the_published_loop(interval, count):
    blocks = [f"b{i}" for i in range(count)]
    openings = regular_openings(blocks, interval)
    steps = interval * count + 3
    found = [open_blocks(openings, g) for g in range(steps)]
    assert found == algorithm_1(blocks, interval, steps)
    assert len(open_blocks(openings, interval * count - 2)) == count - 1
    assert len(open_blocks(openings, interval * count - 1)) == count


def test_openings_after_a_decision_go_on_from_it():
    openings = regular_openings(["a", "b"], 30, first=30, reason="settled")
    assert openings == [Opening(30, "a", "settled"), Opening(60, "b", "settled")]


def test_orders():
    assert opening_order(BLOCKS, "top-down")[0] == "layer4"
    assert opening_order(BLOCKS, "bottom-up") == BLOCKS
    drawn = {tuple(opening_order(BLOCKS, "random", seed)) for seed in range(200)}
    assert all(sorted(one) == sorted(BLOCKS) for one in drawn)
    assert len(drawn) > 90, "of 120 orders, 200 draws miss about 23"
    assert opening_order(BLOCKS, "random", 3) == opening_order(BLOCKS, "random", 3)


def test_random_intervals_are_uniform_from_one_to_the_longest():
    drawn = [random_interval(8, seed) for seed in range(4000)]
    counts = [drawn.count(k) for k in range(1, 9)]
    assert sum(counts) == 4000
    # A count is binomial(4000, 1/8): standard deviation 21; 4 of them for eight counts.
    assert all(abs(count - 500) < 84 for count in counts)


@pytest.mark.parametrize(
    ("time", "steps"),
    [(7, 7), ("7 steps", 7), ("2 epochs", 80), ("1 epoch", 40), (".5 epochs", None),
     ("0.5 epochs", 20), ("10%", 100), ("2.5 %", 25)],
)  # fmt: skip
def test_times(time, steps):
    if steps is None:
        with pytest.raises(ValueError, match="optimiser steps, such as 200"):
            steps_of(time, LENGTH, "interval")
    else:
        assert steps_of(time, LENGTH, "interval") == steps


@pytest.mark.parametrize("time", ["10", "ten%", "-5%", 2.5, True, None, "2 weeks"])
def test_times_that_cannot_be_read(time):
    with pytest.raises(ValueError, match=r"interval is a number of optimiser steps.*'2 epochs'"):
        steps_of(time, LENGTH, "interval")


def test_a_share_of_an_endless_run_is_refused():
    with pytest.raises(ValueError, match="length of the run, which this trainer cannot tell"):
        steps_of("10%", RunLength(None, 40), "interval")
    with pytest.raises(ValueError, match="length of the epochs, which this trainer cannot tell"):
        steps_of("2 epochs", RunLength(None, None), "interval")


def test_explicit_schedules():
    schedule = [["10%", ["layer2", "stem"]], [0, "layer4"], ["1 epoch", ["layer3"]]]
    found = scheduled_openings(schedule, BLOCKS, LENGTH)
    assert [(one.step, one.block) for one in found] == [
        (0, "layer4"), (40, "layer3"), (100, "layer2"), (100, "stem"),
    ]  # fmt: skip
    assert "layer1" not in open_blocks(found, 10**9)
    assert found[1].reason == "scheduled at 1 epoch"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (3, "schedule is a list of pairs"),
        ("layer4", "schedule is a list of pairs"),
        ([[0]], r"found \[0\]"),
        ([[0, []]], "for blocks"),
        ([[0, 4]], "for blocks"),
        ([["soon", "layer4"]], "the time in a schedule is"),
    ],
)
def test_schedules_that_cannot_be_read(schedule, message):
    with pytest.raises(ValueError, match=message):
        check_schedule(schedule)


def test_schedules_that_do_not_fit_the_blocks():
    with pytest.raises(ValueError, match="names the block 'layer9'; there is stem, layer1"):
        scheduled_openings([[0, "layer9"]], BLOCKS, LENGTH)
    with pytest.raises(ValueError, match="opens the block 'stem' twice"):
        scheduled_openings([[0, "stem"], [5, "stem"]], BLOCKS, LENGTH)


def test_unknown_orders_are_refused():
    with pytest.raises(ValueError, match="order must be one of top-down, bottom-up, random"):
        check_order("sideways")
