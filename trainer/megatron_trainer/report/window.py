"""Averages the steps between two log lines. Pure: no clock, no files; rates come from the steps' own seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from megatron_trainer.report.records import LogRecord, Number, RunInfo, StepRecord


def summarize(
    steps: Sequence[StepRecord], run: RunInfo, *, elapsed_s: float, seconds_per_step: float, now: float
) -> LogRecord:
    """One record for the steps of a window, in order, at least one.

    elapsed_s: since this process group started training. seconds_per_step: expected duration of one more step.
    now: seconds since the epoch, kept as logged_at. Tensors in the steps are read here.
    """
    last = steps[-1]
    seconds = sum(step.seconds for step in steps)
    tokens = sum(float(step.tokens) for step in steps)
    tokens_per_second = tokens / seconds if seconds > 0 else 0.0
    tflops = _tflops_per_gpu(steps, seconds, run.world_size)
    return LogRecord(
        iteration=last.iteration,
        total_iterations=run.total_iterations,
        num_steps=len(steps),
        losses=_mean_losses(steps) | _pooled_losses(steps),
        learning_rate=last.learning_rate,
        gradient_norm=_optional(last.gradient_norm),
        params_norm=_optional(last.params_norm),
        num_zeros_in_gradient=_optional(last.num_zeros_in_gradient),
        loss_scale=last.loss_scale,
        consumed_samples=last.consumed_samples,
        global_batch_size=run.global_batch_size,
        tokens=int(tokens),
        seconds_per_step=seconds / len(steps),
        tokens_per_second=tokens_per_second,
        tokens_per_second_per_gpu=tokens_per_second / run.world_size,
        tflops_per_gpu=tflops,
        utilization=_utilization(tflops, run.peak_flops_per_second_per_gpu),
        memory_bytes=max((step.memory_bytes for step in steps if step.memory_bytes is not None), default=None),
        timers_s=_mean(step.timers_s for step in steps),
        num_skipped=sum(step.is_skipped for step in steps),
        num_nan=sum(step.has_nan for step in steps),
        elapsed_s=elapsed_s,
        remaining_s=max(run.total_iterations - last.iteration, 0) * seconds_per_step,
        logged_at=now,
    )


def is_boundary(iteration: int, *, interval: int, total_iterations: int) -> bool:
    """Whether a window ends at this iteration: after the first, every `interval`-th and the last."""
    return iteration == 1 or iteration % interval == 0 or iteration == total_iterations


def _mean_losses(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Means over the steps that counted: a skipped step's loss is inf or nan and would hide all others."""
    counted = [step.losses for step in steps if not step.is_skipped]
    return _mean(counted or [steps[-1].losses])


def _mean(values: Iterable[Mapping[str, Number]]) -> dict[str, float]:
    by_name: dict[str, list[float]] = {}
    for mapping in values:
        for name, value in mapping.items():
            by_name.setdefault(name, []).append(float(value))
    return {name: math.fsum(numbers) / len(numbers) for name, numbers in by_name.items()}


def _pooled_losses(steps: Sequence[StepRecord]) -> dict[str, float]:
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for step in steps:
        for name, (loss_sum, count) in step.pooled_losses.items():
            sums[name] = sums.get(name, 0.0) + float(loss_sum)
            counts[name] = counts.get(name, 0.0) + float(count)
    return {name: sums[name] / counts[name] for name in sums if counts[name] > 0}


def _tflops_per_gpu(steps: Sequence[StepRecord], seconds: float, world_size: int) -> float | None:
    flops = [step.flops for step in steps if step.flops is not None]
    if len(flops) < len(steps) or seconds <= 0:
        return None
    return math.fsum(flops) / seconds / world_size / 1e12


def _utilization(tflops: float | None, peak_flops: float | None) -> float | None:
    return tflops * 1e12 / peak_flops if tflops is not None and peak_flops else None


def _optional(value: Number | None) -> float | None:
    return None if value is None else float(value)
