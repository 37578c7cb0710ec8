"""logging.jsonl: one JSON object per logged step, evaluation and checkpoint, for scripts and for the HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from megatron_trainer.report import duration
from megatron_trainer.report.records import DATA_WAIT, CheckpointRecord, EvalRecord, Event, LogRecord, RunInfo

GIB = 2**30
# fmt: off
STEP_KEYS = frozenset((
    "iteration", "global_step/max_steps", "grad_norm", "params_norm", "num_zeros", "learning_rate",
    "elapsed_time_per_iteration", "data_wait_s", "memory(GiB)", "elapsed_time", "remaining_time", "elapsed_s",
    "remaining_s", "throughput", "mfu", "tokens", "tokens_per_second", "tokens_per_second_per_gpu", "loss_scale",
    "consumed_samples", "skipped_iterations", "nan_iterations", "time",
))
# fmt: on
Row = Mapping[str, object]


class Jsonl:
    """Appends rows to a file. At the start of a run it removes the rows that a resumed run will write again.

    door: through which the file is replaced (checkpoint.folder), unset: beside it. The file is kept open: a run that
    was taken over writes to the old file that its successor has replaced. most_rows: of the file, None for unlimited.
    """

    def __init__(
        self,
        path: Path,
        *,
        interval: int,
        log_throughput: bool,
        door: Path | None = None,
        most_rows: int | None = None,
    ) -> None:
        self.interval = interval
        self._most_rows = most_rows
        self._num_rows = 0
        self._path = path
        self._log_throughput = log_throughput
        self._door = door
        self._stream: TextIO | None = None

    def write(self, event: Event) -> None:
        """Appends the event's row to the file at once, so that a killed run loses no reported row."""
        match event:
            case RunInfo():
                self._replace(line for line, row in _lines(self._path) if _iteration(row) <= event.start_iteration)
            case LogRecord():
                self._append(log_row(event, log_throughput=self._log_throughput))
            case EvalRecord():
                self._append(eval_row(event))
            case CheckpointRecord():
                self._append(checkpoint_row(event))

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _append(self, row: Row) -> None:
        self._stream = self._stream or self._path.open("a")
        self._stream.write(to_line(row))
        self._stream.flush()
        self._num_rows += 1
        if self._most_rows is not None and self._num_rows >= self._most_rows:
            self._replace(map(to_line, spread(_rows(self._path), self._most_rows // 4)))

    def _replace(self, lines: Iterable[str]) -> None:
        """Replaces the file atomically: a reader sees the old file or the new one."""
        aside = (self._door or self._path.parent) / f"{self._path.name}.tmp"
        num_rows = 0
        with aside.open("w") as file:
            for line in lines:
                file.write(line)
                num_rows += 1
        aside.replace(self._path)
        self.close()  # only now: without a door the path belongs to a successor, and the old file stays open
        self._stream, self._num_rows = self._path.open("a"), num_rows


def read_rows(path: Path, *, at_most: int | None = None) -> list[Row]:
    """All rows, in order; empty without a file. An incomplete last line of a killed run is skipped.

    at_most: maximum number of steps, of evaluations and of checkpoints; if there are more, one of every 2, 4, 8 ... is
    kept, and the last one. A kept row includes the tokens of the steps that were left out before it.
    """
    kinds: dict[str, Thinned] = {}
    for place, row in enumerate(_rows(path)):
        kinds.setdefault(_kind(row), Thinned(at_most)).add(place, row)
    kept = (found for kind in kinds.values() for found in kind.rows())
    return [row for _, row in sorted(kept, key=lambda found: found[0])]


def _kind(row: Row) -> str:
    if "learning_rate" in row:
        return "step"
    return "checkpoint" if "checkpoint" in row else "evaluation"


def spread(rows: Iterable[Row], at_most: int) -> list[Row]:
    """Of the steps, evaluations and checkpoints each the first, the last, and about this many at even distances."""
    known = list(enumerate(rows))
    last = max((_iteration(row) for _, row in known), default=0)
    width = 1 << (last // at_most).bit_length()  # intervals of one selection are contained in those of the next
    kept: dict[tuple[str, int], tuple[int, Row]] = {}
    for place, row in known:
        kind = _kind(row)
        bucket = (kind, -1 if (kind, -1) not in kept else _iteration(row) // width)
        (kept[bucket],) = _joined([kept[bucket]] if bucket in kept else [], (place, row))
    return [row for _, row in sorted(kept.values(), key=lambda found: found[0])]


class Thinned:
    """A bounded selection of rows, spread evenly over any number of rows."""

    def __init__(self, at_most: int | None) -> None:
        self._at_most = at_most
        self._kept: list[tuple[int, Row]] = []
        self._left_out: list[tuple[int, Row]] = []
        self._stride = 1
        self._count = 0

    def add(self, place: int, row: Row) -> None:
        """Keeps the row or drops it."""
        self._left_out = _joined(self._left_out, (place, row))
        if self._count % self._stride == 0:
            self._kept += self._left_out
            self._left_out = []
        self._count += 1
        if self._at_most is not None and len(self._kept) > 2 * self._at_most:
            first, *rest = self._kept
            pairs = zip(rest[::2], rest[1::2], strict=True)
            self._kept = [first, *(_joined([earlier], later)[0] for earlier, later in pairs)]
            self._stride *= 2

    def rows(self) -> list[tuple[int, Row]]:
        """The kept rows, and the last one."""
        return [*self._kept, *self._left_out]


def _joined(before: list[tuple[int, Row]], after: tuple[int, Row]) -> list[tuple[int, Row]]:
    """The later row, which includes the tokens of the earlier one."""
    place, row = after
    if not before or "tokens" not in row:
        return [after]
    tokens = [value for value in (before[0][1].get("tokens"), row["tokens"]) if isinstance(value, int | float)]
    return [(place, {**row, "tokens": sum(tokens)})]


def _rows(path: Path) -> Iterator[Row]:
    return (row for _, row in _lines(path))


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    """The lines that hold a row, and the row."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                yield f"{line.rstrip('\n')}\n", row


def _iteration(row: Row) -> int:
    return int(row["iteration"])  # type: ignore[call-overload,no-any-return]  # _rows has looked


def to_line(row: Row) -> str:
    """The row as one line of strict JSON: a number that is not finite becomes the string "NaN" or "Infinity"."""
    return json.dumps({name: _finite(value) for name, value in row.items()}, allow_nan=False) + "\n"


def losses_in(row: Row) -> dict[str, float]:
    """The losses and other task metrics of a logged step's row: all keys except those that every step has."""
    if "learning_rate" not in row:
        return {}
    return {name: value for name, value in row.items() if name not in STEP_KEYS and isinstance(value, int | float)}


def log_row(record: LogRecord, *, log_throughput: bool) -> Row:
    """The keys of the reference, plus rates in real tokens and times in seconds."""
    row: dict[str, object] = {
        "iteration": record.iteration,
        "global_step/max_steps": f"{record.iteration}/{record.total_iterations}",
        **record.losses,
        "grad_norm": record.gradient_norm,
        "params_norm": record.params_norm,
        "num_zeros": record.num_zeros_in_gradient,
        "learning_rate": record.learning_rate,
        "elapsed_time_per_iteration": record.seconds_per_step,
        "data_wait_s": record.timers_s.get(DATA_WAIT),
        "memory(GiB)": None if record.memory_bytes is None else round(record.memory_bytes / GIB, 3),
        "elapsed_time": duration.in_words(record.elapsed_s),
        "remaining_time": duration.in_words(record.remaining_s),
        "elapsed_s": round(record.elapsed_s, 3),
        "remaining_s": round(record.remaining_s, 3),
        "throughput": record.tflops_per_gpu if log_throughput else None,
        "mfu": record.utilization,
        "tokens": record.tokens,
        "tokens_per_second": record.tokens_per_second,
        "tokens_per_second_per_gpu": record.tokens_per_second_per_gpu,
        "loss_scale": record.loss_scale,
        "consumed_samples": record.consumed_samples,
        "skipped_iterations": record.num_skipped,
        "nan_iterations": record.num_nan,
        "time": datetime.fromtimestamp(record.logged_at, UTC).isoformat(timespec="seconds"),
    }
    return {name: value for name, value in row.items() if value is not None}


def eval_row(record: EvalRecord) -> Row:
    """Losses under the reference's `eval_` names."""
    return {
        "iteration": record.iteration,
        **{f"eval_{name}": value for name, value in record.losses.items()},
        "eval_samples": record.num_samples,
        "eval_seconds": round(record.seconds, 3),
        "consumed_samples": record.consumed_samples,
    }


def checkpoint_row(record: CheckpointRecord) -> Row:
    """The path of the checkpoint and how long training waited for it."""
    return {"iteration": record.iteration, "checkpoint": record.path, "checkpoint_seconds": round(record.seconds, 3)}


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
