"""Reporter: the loop's one call point for everything it reports. The sinks are listed in sinks.py.

Ranks other than the first get a reporter without sinks, so that call sites need not check the rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megatron_trainer.report import carry, window
from megatron_trainer.report.records import (
    CheckpointRecord,
    EvalRecord,
    Event,
    FinishRecord,
    PhaseRecord,
    RunInfo,
    Sink,
    SlowRankRecord,
    StepRecord,
)
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.progress import Phase

logger = logging.getLogger(__name__)


class Reporter:
    """Distributes the loop's records to the sinks, and averages the steps of each sink's interval.

    now: seconds since the epoch. carry_path: file that preserves unlogged steps over a restart, None to disable.
    door: through which it is replaced, unset: beside it.
    Every method may be called on every rank; without sinks they do nothing.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        now: Callable[[], float],
        carry_path: Path | None = None,
        door: Path | None = None,
    ) -> None:
        self._sinks = tuple(sinks)
        self._now = now
        self._carry_path = carry_path
        self._door = door
        self._run: RunInfo | None = None
        self._windows: dict[int, list[StepRecord]] = {sink.interval: [] for sink in sinks}
        self._pace = Pace(now())
        self._iteration = 0

    def start(self, run: RunInfo) -> None:
        """Call once, when all is built and the iteration to start after is known; before the first step."""
        self._run = run
        self._iteration = run.start_iteration
        self._pace = Pace(self._now())
        if self._sinks and self._carry_path and run.start_iteration:
            places = (self._carry_path, _of_memory(self._carry_path))
            carried = next(filter(None, (carry.load(path, run.start_iteration) for path in places)), {})
            self._windows = {interval: carried.get(interval, []) for interval in self._windows}
        self._emit(run)
        self.phase("training")

    def step(self, record: StepRecord) -> None:
        """Call after every step, skipped ones too."""
        if self._run is None or not self._sinks:
            return
        self._iteration = record.iteration
        self._pace.count_step(self._now())
        total = self._run.total_iterations
        for interval, steps in self._windows.items():
            steps.append(record)
            if window.is_boundary(record.iteration, interval=interval, total_iterations=total):
                self._log(interval, self._run)

    def evaluation(self, record: EvalRecord) -> None:
        """Call after every evaluation round."""
        self._emit(record)

    def checkpoint(self, record: CheckpointRecord) -> None:
        """Call when a checkpoint is complete (its tracker file is written)."""
        self._emit(record)

    def phase(self, phase: Phase) -> None:
        """Call when the run turns to "evaluating", "saving" (before a save), "exporting", and back to "training"."""
        if phase == "saving" and self._sinks and self._carry_path:
            self._carry(self._carry_path)
        self._emit(PhaseRecord(phase=phase))

    def remember(self) -> None:
        """Call when a checkpoint in memory has been begun: a run may continue from it too."""
        if self._sinks and self._carry_path and any(self._windows.values()):
            self._carry(_of_memory(self._carry_path))

    def slow_rank(self, record: SlowRankRecord) -> None:
        """Call when a rank becomes slow, and when it no longer is."""
        self._emit(record)

    def finish(self, record: FinishRecord) -> None:
        """Call once at the end of a run that finished, or stopped in a state that can be resumed."""
        if self._run is not None and record.phase == "finished":
            for interval in self._windows:
                self._log(interval, self._run)
        self._emit(record)

    def close(self) -> None:
        """Call last, also after a failure. Closes all files."""
        for sink in self._sinks:
            try:
                sink.close()
            except OSError:
                logger.exception("cannot close report sink=%s", type(sink).__name__)

    def _carry(self, path: Path) -> None:
        """The other ranks are saving already: a failure to store the windows on the first rank must not block them."""
        try:
            carry.store(path, self._iteration, self._windows, door=self._door)
        except OSError:
            logger.exception("cannot keep the steps that are not logged yet path=%s", path)

    def _log(self, interval: int, run: RunInfo) -> None:
        """Logs a window to the sinks of its interval and empties it."""
        steps = self._windows[interval]
        if not steps:
            return
        self._windows[interval] = []
        now = self._now()
        record = window.summarize(
            steps, run, elapsed_s=now - self._pace.started_at, seconds_per_step=self._pace.seconds_per_step, now=now
        )
        self._emit(record, interval)

    def _emit(self, event: Event, interval: int | None = None) -> None:
        """Passes an event to all sinks, or to those of an interval."""
        for sink in self._sinks:
            if interval is not None and sink.interval != interval:
                continue
            try:
                sink.write(event)
            except OSError:
                logger.exception("cannot write report sink=%s event=%s", type(sink).__name__, type(event).__name__)


def _of_memory(carry_path: Path) -> Path:
    """The same file for checkpoints in memory, which are more frequent and would displace the entries of the others."""
    return carry_path.with_stem(f"{carry_path.stem}_memory")


class Pace:
    """Time per step, including evaluations and saves between steps. The first step, which includes warmup, is excluded
    as soon as there is another.
    """

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.seconds_per_step = 0.0
        self._first_ended_at = started_at
        self._num_steps = 0

    def count_step(self, now: float) -> None:
        """Counts one more finished step."""
        self._num_steps += 1
        if self._num_steps == 1:
            self._first_ended_at = now
            self.seconds_per_step = now - self.started_at
        else:
            self.seconds_per_step = (now - self._first_ended_at) / (self._num_steps - 1)


def open_reporter(
    args: TrainArgs,
    *,
    save: Path,
    rank: int,
    environment: Mapping[str, str],
    now: Callable[[], float],
    door: Path | None = None,
) -> Reporter:
    """The reporter of this rank; on the first rank it writes to every sink that args ask for.

    save: the run's folder (version folder included). environment: the process environment (MTJ_PROGRESS_FILE,
    MTJ_RESTART_ATTEMPT, KUBEFLOW_TRAINER_SERVER_*). door: where files are written before they are renamed; unset:
    beside their places.
    Raises InvalidInput when W&B is asked for but not installed.
    """
    if rank != 0:
        return Reporter((), now=now)
    from megatron_trainer.report.sinks import open_sinks  # TensorBoard, jinja2: only this rank pays for them

    return Reporter(
        open_sinks(args, save, environment, now, door),
        now=now,
        carry_path=save / "unlogged_steps.json",
        door=door,
    )
