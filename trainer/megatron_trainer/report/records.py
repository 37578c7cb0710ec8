"""The records that the loop passes to the reports, as frozen values. Nothing here formats, averages or writes.

The loop makes StepRecord, EvalRecord, CheckpointRecord, PhaseRecord and FinishRecord; window.py turns the steps of a
log interval into one LogRecord, which is what the sinks see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, SupportsFloat

from megatron_trainjob.progress import Phase

Number = SupportsFloat
"""A float, or a 0-d tensor that is read (and thus synchronized) only when its window is logged."""
DATA_WAIT = "data-wait"
"""The timer of the time for which a step waits until its micro-batches are there."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Facts that hold for the whole run. `start_iteration` is the resumed iteration, 0 for a fresh start."""

    job_name: str
    task: str
    model: str
    train_type: str
    num_parameters: int
    num_trainable_parameters: int
    device: str
    world_size: int
    layout: Mapping[str, int]
    dtype: str
    micro_batch_size: int
    global_batch_size: int
    max_length: int
    start_iteration: int
    total_iterations: int
    consumed_samples: int = 0
    peak_flops_per_second_per_gpu: float | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    arguments_given: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One training step, complete on the first rank: losses reduced over the global batch, tokens over all ranks.

    losses: mean of this step by name ("lm loss", "load_balancing_loss"); steps of a window have equal weight.
    pooled_losses: (sum, count) by name; pooled over the window (channel losses).
    gradient_norm: before clipping. tokens: real ones, without padding. seconds: of the step and the wait for its data.
    flops: model FLOPs of the step over all ranks, forward and backward, for real tokens only (see flops.py).
    memory_bytes: peak of the rank with the highest usage. timers_s: seconds of it by name
    ("forward-backward", DATA_WAIT).
    """

    iteration: int
    losses: Mapping[str, Number]
    learning_rate: float
    tokens: Number
    seconds: float
    consumed_samples: int
    pooled_losses: Mapping[str, tuple[Number, Number]] = field(default_factory=dict)
    gradient_norm: Number | None = None
    params_norm: Number | None = None
    num_zeros_in_gradient: Number | None = None
    loss_scale: float = 1.0
    is_skipped: bool = False
    has_nan: bool = False
    flops: float | None = None
    memory_bytes: int | None = None
    timers_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LogRecord:
    """The steps since the last record, averaged; rates count real tokens. Norms, rate and scale are the last step's.

    tflops_per_gpu and utilization (MFU, 0 to 1) are None when FLOPs (flops.py), or the device's peak, are not known.
    num_skipped and num_nan count the steps of this window.
    """

    iteration: int
    total_iterations: int
    num_steps: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float | None
    params_norm: float | None
    num_zeros_in_gradient: float | None
    loss_scale: float
    consumed_samples: int
    global_batch_size: int
    tokens: int
    seconds_per_step: float
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    tflops_per_gpu: float | None
    utilization: float | None
    memory_bytes: int | None
    timers_s: Mapping[str, float]
    num_skipped: int
    num_nan: int
    elapsed_s: float
    remaining_s: float
    logged_at: float


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation round. losses: mean over the round by the names that training uses ("lm loss")."""

    iteration: int
    losses: Mapping[str, float]
    num_samples: int
    seconds: float
    consumed_samples: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """One complete checkpoint: its folder, and how long the loop was blocked by it."""

    iteration: int
    path: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """The run entered another phase."""

    phase: Phase


@dataclass(frozen=True, kw_only=True)
class SlowRankRecord:
    """A rank has become slow, or none is any more (None). ratio: its time over the median of all ranks."""

    rank: int | None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer to one question, `after` training and, if generated, before."""

    question: str
    after: str
    before: str | None = None
    expected: str | None = None


@dataclass(frozen=True, kw_only=True)
class FinishRecord:
    """How the run ended. outputs: what was written, by name ("checkpoint", "adapter", "hf") to path.

    phase: "finished" when all iterations are done, "stopped" when it ended earlier and can be resumed.
    """

    phase: Phase
    iteration: int
    outputs: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    message: str = ""


Event = RunInfo | LogRecord | EvalRecord | CheckpointRecord | PhaseRecord | SlowRankRecord | FinishRecord


class Sink(Protocol):
    """One destination of reports. It receives every event and ignores those it does not use.

    interval: steps between two LogRecords for this sink; the first and the last step are always logged.
    """

    interval: int

    def write(self, event: Event) -> None:
        """Shows or stores the event. OSError is logged by the caller and does not stop the training."""

    def close(self) -> None:
        """Flushes and closes files and connections; called once, also after a failure."""
