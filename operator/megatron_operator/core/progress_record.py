"""Validates a progress record that a program wrote, by the types and bounds of the job's status.

Derived from the status schema: what is accepted here can be written there. Text is truncated and non-finite numbers
are dropped, with a line for the log; anything else that does not fit is rejected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from megatron_operator.api.schema import fit
from megatron_operator.api.schema.parts import choice, text
from megatron_operator.api.schema.status import status
from megatron_operator.guard import shortened
from megatron_trainjob.progress import Phase, Progress

Object = Mapping[str, Any]
MAX_FILE_BYTES = 64 * 1024
MAX_PATH_CHARACTERS = 4096
_STATUS = status()["properties"]
_PROGRESS, _CHECKPOINT = _STATUS["progress"]["properties"], _STATUS["checkpoint"]["properties"]
_METRIC = _PROGRESS["metrics"]["items"]["properties"]
MAX_METRICS: int = _PROGRESS["metrics"]["maxItems"]
MAX_METRIC_NAME: int = _METRIC["name"]["maxLength"]
_SECONDS = {**_PROGRESS["estimatedRemainingSeconds"], "type": "number"}
_SPEED = _PROGRESS["tokensPerSecondPerGPU"]

# Rejected when they do not fit.
STRICT = {
    "phase": choice("Phase.", *get_args(Phase)),
    "attempt": _STATUS["restarts"]["properties"]["attempt"],
    "iteration": _PROGRESS["iteration"],
    "total_iterations": _PROGRESS["totalIterations"],
    "consumed_samples": _PROGRESS["iteration"],
    "checkpoint_iteration": _CHECKPOINT["latestIteration"],
    "checkpoint_path": _CHECKPOINT["path"],
    "slow_rank": _PROGRESS["iteration"],
    "report_path": text("Path of the report.", max_length=MAX_PATH_CHARACTERS),
}
# Dropped when their number is not finite or out of bounds.
LENIENT = {
    "elapsed_s": _SECONDS,
    "remaining_s": _SECONDS,
    "tokens_per_second": _SPEED,
    "slow_rank_ratio": _SPEED,
    "tokens_per_second_per_gpu": _SPEED,
    "updated_at": _SECONDS,
}


def read(record: object) -> tuple[Progress, tuple[str, ...]]:
    """The progress, and one line for each part that was truncated or dropped. Raises ValueError if it is rejected."""
    if not isinstance(record, Mapping):
        raise ValueError("progress: must be an object")
    fields, problems = _numbers_and_text(record)
    metrics, more = metrics_of(record.get("metrics") or {})
    outputs = _outputs(record.get("outputs"))
    if fields.get("phase") is None:
        raise ValueError("progress.phase: is required")
    return Progress(**fields, metrics=metrics, outputs=outputs), (*problems, *more)


def read_file(path: Path) -> Progress | None:
    """The record in this file, None if there is none (yet) or it is not a record."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            return None
        return read(json.loads(content))[0]
    except (OSError, ValueError, RecursionError):
        return None


def metrics_of(given: object) -> tuple[dict[str, float], tuple[str, ...]]:
    """Metrics by name, and what was truncated or dropped. NaN and infinity are information, not errors."""
    if not isinstance(given, Mapping):
        raise ValueError("progress.metrics: must be an object of names and numbers")
    problems = [f"progress.metrics: more than {MAX_METRICS} entries; cut"] if len(given) > MAX_METRICS else []
    metrics: dict[str, float] = {}
    for name, value in list(given.items())[:MAX_METRICS]:
        cut = shortened(name, MAX_METRIC_NAME)
        problems += [f"progress.metrics: a name is longer than {MAX_METRIC_NAME} characters; cut"] * (cut != name)
        metrics[cut] = _number(cut, value)
    return metrics, tuple(problems)


def _numbers_and_text(record: Object) -> tuple[dict[str, Any], list[str]]:
    fields: dict[str, Any] = {}
    problems: list[str] = []
    for name, schema in (STRICT | LENIENT).items():
        if record.get(name) is None:
            continue
        found = fit.fitted(record[name], schema, f"progress.{name}")
        if found.value is None and name in STRICT:
            raise ValueError("; ".join(found.problems))
        problems += found.problems
        if found.value is not None:
            fields[name] = found.value
    return fields, problems


def _outputs(given: object) -> dict[str, str]:
    if not isinstance(given, Mapping):
        return {}
    pairs = list(given.items())[:MAX_METRICS]
    return {shortened(name, MAX_METRIC_NAME): shortened(path, MAX_PATH_CHARACTERS) for name, path in pairs}


def _number(name: str, value: object) -> float:
    """The metric as a number; text is accepted too, as Kubeflow's clients send it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"progress.metrics.{name}: must be a number, is {type(value).__name__}")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"progress.metrics.{name}: must be a number in the range of float64") from None
