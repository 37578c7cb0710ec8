"""Reporter: the loop's one call point for everything it reports. Which sinks there are is decided in open_reporter.

Ranks other than the first get a reporter without sinks, so that call sites never ask for the rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megatron_trainer.report import window
from megatron_trainer.report.records import (
    CheckpointRecord,
    EvalRecord,
    Event,
    FinishRecord,
    PhaseRecord,
    RunInfo,
    Sink,
    StepRecord,
)
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.progress import Phase

logger = logging.getLogger(__name__)


class Reporter:
    """Spreads the loop's records over the sinks, and averages the steps of each sink's interval.

    now: seconds since the epoch. Every method may be called on every rank; without sinks they do nothing.
    """

    def __init__(self, sinks: Sequence[Sink], *, now: Callable[[], float]) -> None:
        self._sinks = tuple(sinks)
        self._now = now
        self._run: RunInfo | None = None
        self._started_at = now()
        self._open_windows: dict[int, list[StepRecord]] = {sink.interval: [] for sink in self._sinks}
        self._step_seconds: list[float] = []

    def start(self, run: RunInfo) -> None:
        """Call once, after the model is built and before the first step."""
        self._run = run
        self._started_at = self._now()
        self._emit(run)
        self.phase("training")

    def step(self, record: StepRecord) -> None:
        """Call after every step, skipped ones too."""
        if self._run is None or not self._sinks:
            return
        self._step_seconds.append(record.seconds)
        for interval, steps in self._open_windows.items():
            steps.append(record)
            if window.is_boundary(
                record.iteration, interval=interval, total_iterations=self._run.total_iterations
            ):
                self._log(interval, self._run)

    def evaluation(self, record: EvalRecord) -> None:
        """Call after every evaluation round."""
        self._emit(record)

    def checkpoint(self, record: CheckpointRecord) -> None:
        """Call when a checkpoint is complete (its tracker file is written)."""
        self._emit(record)

    def phase(self, phase: Phase) -> None:
        """Call when the run turns to "evaluating", "saving", "exporting", and back to "training"."""
        self._emit(PhaseRecord(phase=phase))

    def finish(self, record: FinishRecord) -> None:
        """Call once at the end of a run that finished, or stopped in a state that can be resumed."""
        if self._run is not None:
            for interval in self._open_windows:
                self._log(interval, self._run)
        self._emit(record)

    def close(self) -> None:
        """Call last, also after a failure. Lets go of all files."""
        for sink in self._sinks:
            try:
                sink.close()
            except OSError:
                logger.exception("cannot close report sink=%s", type(sink).__name__)

    def _log(self, interval: int, run: RunInfo) -> None:
        steps = self._open_windows[interval]
        if not steps:
            return
        now = self._now()
        record = window.summarise(
            steps,
            run,
            elapsed_s=now - self._started_at,
            seconds_per_step=_expected_seconds(self._step_seconds),
            now=now,
        )
        self._open_windows[interval] = []
        self._emit(record, interval)

    def _emit(self, event: Event, interval: int | None = None) -> None:
        for sink in self._sinks:
            if interval is not None and sink.interval != interval:
                continue
            try:
                sink.write(event)
            except OSError:
                logger.exception("cannot write report sink=%s event=%s", type(sink).__name__, type(event).__name__)


def open_reporter(
    args: TrainArgs,
    *,
    save: Path,
    rank: int,
    environment: Mapping[str, str],
    now: Callable[[], float],
) -> Reporter:
    """The reporter of this rank; on the first rank it writes to every sink that args ask for.

    save: the run's folder (version folder included). environment: the process environment (MTJ_PROGRESS_FILE,
    MTJ_RESTART_ATTEMPT, KUBEFLOW_TRAINER_SERVER_*).
    """
    return Reporter((), now=now)


def _expected_seconds(step_seconds: Sequence[float]) -> float:
    """Mean seconds of a step, without the first one, which pays for compilation and warm caches."""
    steady = step_seconds[1:] or step_seconds
    return sum(steady) / len(steady) if steady else 0.0
