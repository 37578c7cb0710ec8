"""The learning-rate schedule against hand-computed values."""

import math

import pytest

from megatron_trainer.train.schedule import Schedule, learning_rate

COSINE = Schedule(peak=1e-3, floor=1e-4, warmup_steps=10, decay_steps=110, style="cosine")


def test_warmup_rises_linearly_from_zero():
    assert [learning_rate(COSINE, step) for step in (0, 5, 9)] == pytest.approx([0.0, 5e-4, 9e-4])


@pytest.mark.parametrize(
    ("style", "step", "expected"),
    [
        ("cosine", 10, 1e-3),
        ("cosine", 60, 1e-4 + 9e-4 * 0.5),
        ("cosine", 35, 1e-4 + 9e-4 * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 110, 1e-4),
        ("cosine", 500, 1e-4),
        ("linear", 60, 1e-4 + 9e-4 * 0.5),
        ("linear", 35, 1e-4 + 9e-4 * 0.75),
        ("linear", 111, 1e-4),
        ("constant", 60, 1e-3),
        ("constant", 500, 1e-3),
    ],
)
def test_decay_runs_from_the_end_of_warmup_to_the_floor(style, step, expected):
    schedule = Schedule(peak=1e-3, floor=1e-4, warmup_steps=10, decay_steps=110, style=style)
    assert learning_rate(schedule, step) == pytest.approx(expected)


def test_a_warmup_fraction_may_end_inside_a_step():
    """5 % of 206 steps: the fifth step after the start uses 5 / 10.3 of the peak, as the reference logs it."""
    schedule = Schedule(peak=1e-5, floor=0.0, warmup_steps=0.05 * 206, decay_steps=206, style="cosine")
    assert learning_rate(schedule, 5) == pytest.approx(4.854369e-06)


@pytest.mark.parametrize(
    ("style", "share"),
    [
        ("linear", 0.75),
        ("cosine", (1 + math.cos(math.pi / 4)) / 2),
        ("exponential", 2 * 0.5**0.25 - 1),
        ("minus_sqrt", 0.5),
    ],
)
def test_a_late_decay_stays_at_the_peak_and_falls_at_the_end(style, share):
    """40 of 110 steps fall: a quarter of it is done after step 80. Source: Megatron-LM's OptimizerParamScheduler."""
    late = Schedule(
        peak=1e-3, floor=1e-4, warmup_steps=10, decay_steps=110, style="WSD", late_steps=40, late_style=style
    )
    assert [learning_rate(late, step) for step in (10, 70)] == [1e-3, 1e-3]
    assert learning_rate(late, 80) == pytest.approx(1e-4 + 9e-4 * share)
    assert [learning_rate(late, step) for step in (110, 500)] == pytest.approx([1e-4, 1e-4])
