"""TensorBoard scalars under Megatron's names, each also over consumed samples ("lm loss vs samples").

All scalars of a step go into one event, which keeps files small. A resumed run first removes what it will write again:
TensorBoard's own purge applies one step number to all tags and would purge the "vs samples" curves too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event as EventProto
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from megatron_trainer.report.console import has_perplexity, perplexity
from megatron_trainer.report.records import EvalRecord, Event, LogRecord, PhaseRecord, RunInfo

VERSUS_SAMPLES = " vs samples"
LENGTH = struct.Struct("<Q")
CHECKSUM_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Which optional scalars are written (arguments log_*_to_tensorboard and log_throughput)."""

    learning_rate: bool = True
    timers: bool = True
    memory: bool = True
    validation_perplexity: bool = True
    throughput: bool = False


class TensorBoard:
    """Writes event files into a folder; at most `queue_size` events wait in memory."""

    def __init__(
        self, folder: Path, *, interval: int, queue_size: int, choices: Choices, now: Callable[[], float]
    ) -> None:
        self.interval = interval
        self._folder = folder
        self._queue_size = queue_size
        self._choices = choices
        self._now = now
        self._writer: EventFileWriter | None = None

    def write(self, event: Event) -> None:
        """Writes the event's scalars; opens the folder when the run starts."""
        match event:
            case RunInfo():
                rewind(self._folder, iteration=event.start_iteration, samples=event.consumed_samples)
                self._writer = EventFileWriter(str(self._folder), max_queue_size=self._queue_size)
            case LogRecord():
                scalars = log_scalars(event, self._choices)
                self._add(scalars, event.iteration, event.consumed_samples, event.logged_at)
            case EvalRecord():
                scalars = eval_scalars(event, self._choices)
                self._add(scalars, event.iteration, event.consumed_samples, self._now())
            case PhaseRecord(phase="saving"):
                self._flush()  # a run that resumes from this checkpoint has everything up to it on disk

    def close(self) -> None:
        """Writes pending events and closes the file."""
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _add(self, scalars: Mapping[str, float], iteration: int, samples: int, time: float) -> None:
        if self._writer is None:
            return
        self._writer.add_event(_event(scalars, iteration, time))
        versus_samples = {name + VERSUS_SAMPLES: value for name, value in scalars.items()}
        self._writer.add_event(_event(versus_samples, samples, time))


def log_scalars(record: LogRecord, choices: Choices) -> dict[str, float]:
    """The scalars of a logged step by tag; unknown values are left out."""
    scalars: dict[str, float | None] = {
        **record.losses,
        "grad-norm": record.gradient_norm,
        "params-norm": record.params_norm,
        "num-zeros": record.num_zeros_in_gradient,
        "loss-scale": record.loss_scale,
        "batch-size": record.global_batch_size,
        "iteration-time": record.seconds_per_step,
        "tokens-per-second": record.tokens_per_second,
        "tokens-per-second-per-gpu": record.tokens_per_second_per_gpu,
        "model-flops-utilization": record.utilization,
    }
    if choices.learning_rate:
        scalars["learning-rate"] = record.learning_rate
    if choices.throughput:
        scalars["throughput"] = record.tflops_per_gpu
    if choices.memory:
        scalars["mem-max-allocated-bytes"] = record.memory_bytes
    if choices.timers:
        scalars |= {f"{name}-time": seconds for name, seconds in record.timers_s.items()}
    return {name: value for name, value in scalars.items() if value is not None}


def eval_scalars(record: EvalRecord, choices: Choices) -> dict[str, float]:
    """Losses of an evaluation round, and their perplexity if that is wanted."""
    scalars = {f"{name} validation": value for name, value in record.losses.items()}
    if choices.validation_perplexity:
        losses = {name: value for name, value in record.losses.items() if has_perplexity(name)}
        scalars |= {f"{name} validation ppl": perplexity(value) for name, value in losses.items()}
    return scalars


def rewind(folder: Path, *, iteration: int, samples: int) -> None:
    """Removes all scalars beyond this iteration, and beyond these samples in the "vs samples" curves.

    Ranks wait for it at every restart, so records are copied as they are: TensorBoard's own reader and writer compute
    checksums in Python, half a millisecond for each logged step of the run.
    """
    for path in sorted(folder.glob("*.tfevents.*")):
        content = path.read_bytes()
        kept = b"".join(record for record, event in _records(content) if not _is_beyond(event, iteration, samples))
        if len(kept) < len(content):
            aside = path.with_name(f".{path.name}.tmp".replace("tfevents", "rewound"))
            aside.write_bytes(kept)
            aside.replace(path)


def _records(content: bytes) -> Iterator[tuple[bytes, EventProto]]:
    """The records of an event file, framed as they are (TFRecord), up to one that is incomplete or unreadable."""
    start = 0
    while start + LENGTH.size <= len(content):
        (num_bytes,) = LENGTH.unpack_from(content, start)
        record = content[start : start + LENGTH.size + num_bytes + 2 * CHECKSUM_BYTES]
        start += LENGTH.size + num_bytes + 2 * CHECKSUM_BYTES
        if start > len(content):
            return
        try:
            event = EventProto.FromString(record[LENGTH.size + CHECKSUM_BYTES : -CHECKSUM_BYTES])
        except DecodeError:
            return
        yield record, event


def _is_beyond(event: EventProto, iteration: int, samples: int) -> bool:
    if not event.HasField("summary") or not event.summary.value:
        return False
    is_over_samples = event.summary.value[0].tag.endswith(VERSUS_SAMPLES)
    return bool(event.step > (samples if is_over_samples else iteration))


def _event(scalars: Mapping[str, float], step: int, time: float) -> EventProto:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
    return EventProto(step=step, wall_time=time, summary=Summary(value=values))
