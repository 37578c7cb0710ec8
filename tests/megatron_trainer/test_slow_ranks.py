"""Which rank is called slow: one far above the median, for minutes, not in a bad moment or among tiny steps."""

import pytest

from megatron_trainer.train.slow_ranks import NUM_WINDOWS, WINDOW_S, SlowRank, SlowRanks

STEP_S = 10.0
STEPS_A_WINDOW = int(WINDOW_S / STEP_S)


def windows(watch, own_s, count):
    """Whether `slow` changed in any step of so many windows."""
    return [watch.add(own_s, STEP_S) for _ in range(count * STEPS_A_WINDOW)]


def test_a_rank_far_above_the_median_for_minutes_is_slow_and_reported_once():
    watch = SlowRanks()
    told = windows(watch, [4.0, 4.0, 8.0, 4.4], NUM_WINDOWS)
    assert told == [False] * (NUM_WINDOWS * STEPS_A_WINDOW - 1) + [True]
    assert watch.slow == SlowRank(rank=2, ratio=2.0)
    assert not any(windows(watch, [4.0, 4.0, 7.0, 4.4], 2))
    assert watch.slow == SlowRank(rank=2, ratio=1.75)
    assert windows(watch, [4.0, 4.0, 5.0, 4.4], 1)[-1]
    assert watch.slow is None


@pytest.mark.parametrize(
    "own_s",
    [[4.0, 4.0, 5.9, 4.0], [0.001, 0.001, 0.1, 0.001], [4.0, 8.0, 8.0, 8.0], [4.0]],
    ids=["below the threshold", "tiny steps", "most are alike", "one rank"],
)
def test_others_are_not(own_s):
    watch = SlowRanks()
    assert not any(windows(watch, own_s, 2 * NUM_WINDOWS))
    assert watch.slow is None


def test_a_bad_moment_is_no_slow_rank():
    watch = SlowRanks()
    for _ in range(4):
        windows(watch, [4.0, 9.0], NUM_WINDOWS - 1)
        windows(watch, [4.0, 4.0], 1)
    assert watch.slow is None


def test_of_two_ranks_the_faster_one_is_the_measure():
    watch = SlowRanks()
    windows(watch, [4.0, 9.0], NUM_WINDOWS)
    assert watch.slow == SlowRank(rank=1, ratio=2.25)
