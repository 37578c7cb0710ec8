"""The log lines of a run, in the form of the argument reference, with real tokens per second and MFU added."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TextIO

from megatron_trainer.report import duration
from megatron_trainer.report.facts import data_facts, examples_of
from megatron_trainer.report.records import (
    DATA_WAIT,
    Answer,
    CheckpointRecord,
    EvalRecord,
    Event,
    FinishRecord,
    LogRecord,
    RunInfo,
)
from megatron_trainjob import shown

GIB = 2**30
MAX_EXPONENT = 20
"""Perplexity is exp(loss), with the loss clipped here: an early loss would overflow and hide all later points."""


class Console:
    """Writes one line per event to a stream and flushes it, so that a pod's log shows it at once."""

    def __init__(self, stream: TextIO, *, interval: int, log_throughput: bool) -> None:
        self.interval = interval
        self._stream = stream
        self._log_throughput = log_throughput

    def write(self, event: Event) -> None:
        """Writes the event's lines; phases produce none."""
        for line in self._lines(event):
            self._stream.write(f" {shown.message(line)}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the stream open: it belongs to the process."""

    def _lines(self, event: Event) -> list[str]:
        match event:
            case RunInfo():
                return run_lines(event)
            case LogRecord():
                return [log_line(event, log_throughput=self._log_throughput)]
            case EvalRecord():
                return [eval_line(event)]
            case CheckpointRecord():
                return [f"saved checkpoint of iteration {event.iteration} in {event.seconds:.1f} s: {event.path}"]
            case FinishRecord():
                return finish_lines(event)
            case _:
                return []


def log_line(record: LogRecord, *, log_throughput: bool) -> str:
    """One line for a LogRecord: its parts joined by " | ", in the reference's order."""
    time_of_day = datetime.fromtimestamp(record.logged_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    parts = [
        f"[{time_of_day}] iteration {record.iteration:8d}/{record.total_iterations:8d}",
        f"consumed samples: {record.consumed_samples:12d}",
        f"elapsed time per iteration (ms): {record.seconds_per_step * 1000:.1f}",
        *_data_wait(record),
        *_memory(record),
        f"elapsed time: {duration.in_words(record.elapsed_s)}",
        f"remaining time: {duration.in_words(record.remaining_s)}",
        f"tokens per second: {record.tokens_per_second:.0f}",
        *_speed(record, log_throughput=log_throughput),
        f"learning rate: {record.learning_rate:.6E}",
        f"global batch size: {record.global_batch_size:5d}",
        *(f"{name}: {value:.6E}" for name, value in record.losses.items()),
        f"loss scale: {record.loss_scale:.1f}",
        *_norms(record),
        f"number of skipped iterations: {record.num_skipped:3d}",
        f"number of nan iterations: {record.num_nan:3d} |",
    ]
    return " | ".join(parts)


def _data_wait(record: LogRecord) -> list[str]:
    """Part of the time per iteration, where it is more than a hundredth of it."""
    waited_s = record.timers_s.get(DATA_WAIT, 0.0)
    return [f"data wait (ms): {waited_s * 1000:.1f}"] if waited_s > record.seconds_per_step / 100 else []


def eval_line(record: EvalRecord) -> str:
    """Each metric of the round, with its perplexity where it has one."""
    parts = [f"validation loss at iteration {record.iteration}"]
    for name, value in record.losses.items():
        parts.append(f"{name} value: {value:.6E}")
        if has_perplexity(name):
            parts.append(f"{name} PPL: {perplexity(value):.6E}")
    return " | ".join([*parts, f"{record.num_samples} samples in {record.seconds:.1f} s |"])


def has_perplexity(name: str) -> bool:
    """Whether a metric of this name is a cross entropy; the loss and rewards of preference training are not."""
    return "/" not in name and name != "loss"


def perplexity(loss: float) -> float:
    """exp(loss), for a loss in nats, at most exp(20)."""
    return math.exp(min(MAX_EXPONENT, loss))


def run_lines(run: RunInfo) -> list[str]:
    """The start of a run: model, layout, starting point, and the data report."""
    share = 100 * run.num_trainable_parameters / run.num_parameters if run.num_parameters else 0.0
    layout = " ".join(f"{name}={size}" for name, size in run.layout.items())
    start = f"resuming after iteration {run.start_iteration}" if run.start_iteration else "starting"
    return [
        f"{run.task} {run.train_type} of {run.model}: {run.num_parameters / 1e6:,.1f} M parameters, "
        f"{run.num_trainable_parameters / 1e6:,.2f} M trained ({share:.2f} %), {run.dtype}",
        f"{run.world_size} x {run.device} | {layout} | global batch size {run.global_batch_size} | "
        f"{run.total_iterations} iterations | {start}",
        *(f"{label}: {fact}" for label, fact in data_facts(run.data)),
        *(f"first row as trained, \u27e6so\u27e7: {row}" for row in examples_of(run.data)[:1]),
    ]


def finish_lines(record: FinishRecord) -> list[str]:
    """The end of a run: how it ended, the paths of its outputs, and the model's answers."""
    head = f"{record.phase} after iteration {record.iteration}"
    return [
        f"{head}: {record.message}" if record.message else head,
        *(f"{name}: {path}" for name, path in record.outputs.items()),
        *(line for answer in record.answers for line in _answer_lines(answer)),
    ]


def _answer_lines(answer: Answer) -> list[str]:
    lines = [f"question: {answer.question}"]
    if answer.before is not None:
        lines.append(f"before: {answer.before}")
    return [*lines, f"after: {answer.after}"]


def _memory(record: LogRecord) -> list[str]:
    return [] if record.memory_bytes is None else [f"memory(GiB): {record.memory_bytes / GIB:.2f}"]


def _speed(record: LogRecord, *, log_throughput: bool) -> list[str]:
    parts = []
    if log_throughput and record.tflops_per_gpu is not None:
        parts.append(f"throughput per GPU (TFLOP/s/GPU): {record.tflops_per_gpu:.3g}")
    if record.utilization is not None:
        parts.append(f"MFU: {100 * record.utilization:.1f} %")
    return parts


def _norms(record: LogRecord) -> list[str]:
    named = (
        ("grad norm", record.gradient_norm),
        ("params norm", record.params_norm),
        ("num zeros", record.num_zeros_in_gradient),
    )
    return [f"{name}: {value:.3f}" for name, value in named if value is not None]
