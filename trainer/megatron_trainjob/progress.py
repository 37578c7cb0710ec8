"""The progress record: the published state of a running trainer, as one small JSON file.

The trainer's rank 0 replaces the file at every logged step and at each change of phase; the operator reads it for
status, hang detection and the progress bar. Machine-readable numbers come from here, never from log text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from megatron_trainjob import input_file

FILE: Final = "progress.json"
"""Its default name in a run's folder."""

Phase = Literal["starting", "training", "evaluating", "saving", "exporting", "finished", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of the run. Times are seconds; `updated_at` is seconds since the epoch, of the last heartbeat.

    slow_rank: one that has taken `slow_rank_ratio` times the median of all ranks for minutes.
    """

    phase: Phase
    attempt: int = 0
    iteration: int = 0
    total_iterations: int = 0
    consumed_samples: int = 0
    elapsed_s: float = 0.0
    remaining_s: float | None = None
    tokens_per_second: float | None = None
    tokens_per_second_per_gpu: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    checkpoint_iteration: int | None = None
    checkpoint_path: str | None = None
    report_path: str | None = None
    slow_rank: int | None = None
    slow_rank_ratio: float | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)
    updated_at: float = 0.0

    @property
    def percentage(self) -> int:
        """Percentage of completed iterations as an integer, 0 if the total is not known yet."""
        return min(100, 100 * self.iteration // self.total_iterations) if self.total_iterations else 0


def write(progress: Progress, path: Path) -> None:
    """Replaces the record atomically: a reader sees the old one or the new one, never a partial one."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(asdict(progress)))
    aside.replace(path)


def read(path: Path) -> Progress | None:
    """The record, or None if there is none (yet) or it is invalid."""
    try:
        return Progress(**input_file.read_json(path))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
