"""Reports of a run. The loop talks to Reporter; the sinks, in one visible list, are in open_reporter (reporter.py)."""

from megatron_trainer.report.records import (
    Answer,
    CheckpointRecord,
    EvalRecord,
    FinishRecord,
    LogRecord,
    PhaseRecord,
    RunInfo,
    SlowRankRecord,
    StepRecord,
)
from megatron_trainer.report.reporter import Reporter, open_reporter

__all__ = [
    "Answer",
    "CheckpointRecord",
    "EvalRecord",
    "FinishRecord",
    "LogRecord",
    "PhaseRecord",
    "Reporter",
    "RunInfo",
    "SlowRankRecord",
    "StepRecord",
    "open_reporter",
]
