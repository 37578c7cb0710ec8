"""Preserves steps that are not logged yet over a restart, so that a resumed run logs the same averages.

With log_interval 5, a run that is saved after step 7 and resumed logs steps 6 to 10 at step 10, not 8 to 10.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_trainer.report.records import StepRecord
from megatron_trainjob import input_file

NUM_KEPT = 2
"""The save in progress may still fail, and then the run resumes from the previous one."""

Windows = Mapping[int, Sequence[StepRecord]]


def store(path: Path, iteration: int, windows: Windows, *, door: Path | None = None) -> None:
    """Stores the open windows (interval to steps) at this iteration. door: as for Reporter."""
    before = [entry for entry in _entries(path) if entry["iteration"] != iteration]
    entry = {
        "iteration": iteration,
        "windows": [[interval, [_plain(step) for step in steps]] for interval, steps in windows.items()],
    }
    aside = (door or path.parent) / f"{path.name}.tmp"
    aside.write_text(json.dumps([*before, entry][-NUM_KEPT:]))
    aside.replace(path)


def load(path: Path, iteration: int) -> dict[int, list[StepRecord]]:
    """The windows that were open at this iteration; empty if unknown."""
    for entry in _entries(path):
        if entry["iteration"] == iteration:
            return {interval: [_step(fields) for fields in steps] for interval, steps in entry["windows"]}
    return {}


def _entries(path: Path) -> list[dict]:  # type: ignore[type-arg]  # JSON that this module wrote
    try:
        return list(input_file.read_json(path))
    except (FileNotFoundError, ValueError):
        return []


def _plain(step: StepRecord) -> dict[str, object]:
    """The step's fields, with tensors converted to numbers."""
    return {
        **asdict(step),
        "losses": {name: float(value) for name, value in step.losses.items()},
        "pooled_losses": {name: [float(a), float(b)] for name, (a, b) in step.pooled_losses.items()},
        "tokens": float(step.tokens),
        "gradient_norm": _optional(step.gradient_norm),
        "params_norm": _optional(step.params_norm),
        "num_zeros_in_gradient": _optional(step.num_zeros_in_gradient),
    }


def _optional(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]  # a Number


def _step(fields: dict[str, object]) -> StepRecord:
    return StepRecord(**fields)  # type: ignore[arg-type]  # what _plain wrote
