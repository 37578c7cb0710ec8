"""The progress record: what a running trainer tells the outside, as one small JSON file.

The trainer's rank 0 replaces the file at every logged step and at each change of phase; the operator reads it for
status, hang detection and the progress bar. Numbers that a machine reads go through here, never out of log text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from megatron_trainjob import input_file

FILE: Final = "progress.json"
"""Its name in a run's folder, where nothing else is asked for."""

Phase = Literal["starting", "training", "evaluating", "saving", "exporting", "finished", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of the run. Times are seconds; `updated_at` is seconds since the epoch, of the last heartbeat."""

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
    outputs: Mapping[str, str] = field(default_factory=dict)
    updated_at: float = 0.0

    @property
    def percentage(self) -> int:
        """Whole percent of the iterations done, 0 when the total is not known yet."""
        return min(100, 100 * self.iteration // self.total_iterations) if self.total_iterations else 0


def write(progress: Progress, path: Path) -> None:
    """Replaces the record at once: a reader sees the old one or the new one, never a half."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(asdict(progress)))
    aside.replace(path)


def read(path: Path) -> Progress | None:
    """The record, or None when there is none (yet) or it is not ours."""
    try:
        return Progress(**input_file.read_json(path))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
