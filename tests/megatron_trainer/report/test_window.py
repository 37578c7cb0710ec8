"""The averages of a log interval, with the arithmetic in the assertions."""

import math

import numpy as np
import pytest

from megatron_trainer.report import window
from tests.support.data.report_records import run_info, step


def summary(steps, **changes):
    return window.summarize(steps, run_info(**changes), elapsed_s=12.0, seconds_per_step=3.0, now=100.0)


def test_losses_are_means_over_the_steps_and_norms_are_the_last_ones():
    record = summary([step(1, 3.0, gradient_norm=9.0), step(2, 2.0, gradient_norm=0.5, params_norm=7.0)])
    assert record.losses == {"lm loss": 2.5}
    assert (record.gradient_norm, record.params_norm, record.num_steps) == (0.5, 7.0, 2)
    assert (record.iteration, record.consumed_samples, record.logged_at) == (2, 32, 100.0)


def test_a_loss_that_only_some_steps_have_is_averaged_over_those():
    record = summary([step(1), step(2, losses={"lm loss": 4.0, "load_balancing_loss": 1.5})])
    assert record.losses == {"lm loss": 3.0, "load_balancing_loss": 1.5}


def test_a_skipped_step_does_not_hide_the_loss_of_the_others():
    record = summary([step(1, 2.0), step(2, math.inf, is_skipped=True, has_nan=True)])
    assert record.losses == {"lm loss": 2.0}
    assert (record.num_skipped, record.num_nan) == (1, 1)


def test_when_every_step_was_skipped_the_last_loss_is_shown():
    assert summary([step(1, math.inf, is_skipped=True)]).losses == {"lm loss": math.inf}


def test_pooled_losses_weigh_tokens_and_not_steps():
    """Channel "code": (10 + 2) nats over (4 + 2) tokens = 2 nats per token, where the mean of means would be 1.75."""
    steps = [step(1, pooled_losses={"loss_code": (10.0, 4)}), step(2, pooled_losses={"loss_code": (2.0, 2)})]
    assert summary(steps).losses["loss_code"] == 2.0


def test_a_channel_without_tokens_is_left_out():
    assert "loss_code" not in summary([step(1, pooled_losses={"loss_code": (0.0, 0)})]).losses


def test_rates_count_real_tokens_over_the_time_of_the_steps():
    record = summary([step(1, tokens=1000, seconds=4.0), step(2, tokens=500, seconds=1.0)])
    assert (record.tokens, record.seconds_per_step) == (1500, 2.5)
    assert (record.tokens_per_second, record.tokens_per_second_per_gpu) == (300.0, 150.0)


def test_utilization_is_flops_over_time_ranks_and_peak():
    """8e12 FLOPs in 4 s on 2 ranks: 1 TFLOP/s each, a quarter of a peak of 4e12."""
    record = summary([step(1, flops=8e12)], peak_flops_per_second_per_gpu=4e12)
    assert (record.tflops_per_gpu, record.utilization) == (1.0, 0.25)


def test_utilization_is_unknown_without_flops_or_without_a_peak():
    assert summary([step(1)], peak_flops_per_second_per_gpu=4e12).utilization is None
    without_peak = summary([step(1, flops=8e12)])
    assert (without_peak.tflops_per_gpu, without_peak.utilization) == (1.0, None)


def test_time_left_is_the_remaining_steps_at_the_expected_pace():
    assert summary([step(5)], total_iterations=20).remaining_s == 45.0


def test_arrays_of_one_number_are_read_when_the_window_is_logged():
    record = summary([step(1, np.array(1.5), gradient_norm=np.array(0.25), tokens=np.array(7))])
    assert (record.losses["lm loss"], record.gradient_norm, record.tokens) == (1.5, 0.25, 7)


def test_memory_is_the_peak_and_timers_are_means():
    steps = [step(1, memory_bytes=5, timers_s={"forward": 1.0}), step(2, memory_bytes=3, timers_s={"forward": 2.0})]
    record = summary(steps)
    assert (record.memory_bytes, record.timers_s) == (5, {"forward": 1.5})


@pytest.mark.parametrize(
    ("iteration", "expected"), [(1, True), (2, False), (5, True), (6, False), (10, True), (12, True)]
)
def test_windows_end_after_the_first_every_fifth_and_the_last_iteration(iteration, expected):
    assert window.is_boundary(iteration, interval=5, total_iterations=12) is expected
