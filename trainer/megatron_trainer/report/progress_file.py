"""Keeps the progress record (megatron_trainjob.progress) up to date: the operator and the progress bar read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron_trainer.report.records import (
    CheckpointRecord,
    EvalRecord,
    Event,
    FinishRecord,
    LogRecord,
    PhaseRecord,
    SlowRankRecord,
)
from megatron_trainjob import progress
from megatron_trainjob.progress import Progress

SECONDS_BETWEEN_WRITES = 1.0


class ProgressFile:
    """Follows the run and replaces the file: immediately for a phase, a checkpoint, an evaluation or the end; for steps
    at most once per second.
    """

    interval = 1

    def __init__(self, path: Path, *, attempt: int, report_path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._written_at = float("-inf")
        self._state = Progress(phase="starting", attempt=attempt, report_path=str(report_path))

    def write(self, event: Event) -> None:
        """Updates the record and writes it, except for a step too soon after the last write."""
        self._state = replace(follow(self._state, event), updated_at=self._now())
        if not isinstance(event, LogRecord) or self._now() - self._written_at >= SECONDS_BETWEEN_WRITES:
            progress.write(self._state, self._path)
            self._written_at = self._now()

    def close(self) -> None:
        """Does nothing: no file is kept open, and a failed run leaves its last record."""


def follow(state: Progress, event: Event) -> Progress:
    """The record after the event."""
    match event:
        case LogRecord():
            return after_step(state, event)
        case EvalRecord():
            metrics = {f"eval_{name}": value for name, value in event.losses.items()}
            return replace(state, metrics={**state.metrics, **metrics})
        case CheckpointRecord():
            return replace(state, checkpoint_iteration=event.iteration, checkpoint_path=event.path)
        case PhaseRecord():
            return replace(state, phase=event.phase)
        case SlowRankRecord():
            return replace(state, slow_rank=event.rank, slow_rank_ratio=event.ratio)
        case FinishRecord():
            return replace(state, phase=event.phase, outputs=dict(event.outputs), remaining_s=remaining(event, state))
        case _:
            return replace(
                state,
                iteration=event.start_iteration,
                total_iterations=event.total_iterations,
                consumed_samples=event.consumed_samples,
            )


def after_step(state: Progress, record: LogRecord) -> Progress:
    """The record after a step: iteration, remaining time, rate, and the step's metrics beside the last evaluation's."""
    metrics = {**record.losses, "learning_rate": record.learning_rate}
    if record.gradient_norm is not None:
        metrics["grad_norm"] = record.gradient_norm
    return replace(
        state,
        iteration=record.iteration,
        total_iterations=record.total_iterations,
        consumed_samples=record.consumed_samples,
        elapsed_s=record.elapsed_s,
        remaining_s=record.remaining_s,
        tokens_per_second=record.tokens_per_second,
        tokens_per_second_per_gpu=record.tokens_per_second_per_gpu,
        metrics={**state.metrics, **metrics},
    )


def remaining(event: FinishRecord, state: Progress) -> float | None:
    """Remaining time: zero for a finished run; a stopped one keeps its estimate."""
    return 0.0 if event.phase == "finished" else state.remaining_s
