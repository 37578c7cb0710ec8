"""Runs one job on this machine until it ends or is interrupted: observe, plan, apply, repeat."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal

from megatron_operator import clock
from megatron_operator.cluster.local.cluster import LocalCluster, Machine
from megatron_operator.cluster.local.state import State, reopened
from megatron_operator.core import reconcile
from megatron_operator.core.decide import completion
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.core.plan import Event
from megatron_trainjob.progress import Progress

Object = Mapping[str, Any]
LOOK_INTERVAL_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Ending = Literal["succeeded", "failed", "suspended", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The result of one reconcile, for display. `is_stopping`: the run was interrupted."""

    status: Object
    progress: Progress | None
    events: tuple[Event, ...]
    is_stopping: bool = False


@dataclass(kw_only=True)
class Interruption:
    """Received signals. The first stops the job, the next one kills it; a second SIGHUP only repeats the first."""

    count: int = 0
    number: int = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """Records one more; a closed terminal's shell and its kernel may each send a SIGHUP."""
        if number == signal.SIGHUP and self.count:
            return
        self.count, self.number = self.count + 1, number


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run; `signal` is the one that interrupted it."""

    ending: Ending
    status: Object
    signal: int = 0


def run(job: Job, state: State, machine: Machine, show: Callable[[Look], None]) -> Result:
    """Runs the job to its end. The caller holds the state's lock. A failed job is resumed.

    An interrupted job is suspended: its pods save and end, and the next run resumes it. Raises OSError when the state
    cannot be written; no process is left then.
    """
    status = state.read_status()
    if _is_failed(status):
        state.write_status(reopened(status))
    cluster = LocalCluster(state, machine, clock.now())
    with _signals() as interruption:
        try:
            result = _loop(job, state, cluster, interruption, show)
        except BaseException:  # a full disk, a closed pipe: no process is left without a supervisor
            _end_processes(cluster, interruption)
            raise
    cluster.free_memory(job)
    return result


def _loop(
    job: Job, state: State, cluster: LocalCluster, interruption: Interruption, show: Callable[[Look], None]
) -> Result:
    killed = False
    while True:
        now = clock.now()
        wanted = replace(job, suspend=job.suspend or interruption.count > 0)
        if interruption.count > 1 and not killed:
            cluster.kill(now)
            killed = True
        seen = cluster.see(wanted, now)
        plan = reconcile.plan(wanted, seen, now)
        cluster.apply(wanted, plan, now)
        status = plan.status or seen.status
        is_stopping = interruption.count > 0
        show(Look(status=status, progress=seen.progress, events=plan.events, is_stopping=is_stopping))
        if completion.is_finished(replace(seen, status=status)):
            cluster.stop(now)
        ending = _ending(wanted, replace(seen, status=status), cluster, interruption)
        if ending and not plan.delete:
            return Result(ending=ending, status=status, signal=interruption.number)
        time.sleep(LOOK_INTERVAL_S)


def _end_processes(cluster: LocalCluster, interruption: Interruption) -> None:
    """Terminates all pods and waits until they have saved, at most for their grace period or until another signal."""
    cluster.stop(clock.now())
    signals = interruption.count
    while cluster.has_pods:
        with suppress(OSError):  # what cannot be written about one process keeps none of the others
            cluster.poll(clock.now())
        if interruption.count > signals:
            cluster.kill(clock.now())
        time.sleep(LOOK_INTERVAL_S)


def _ending(job: Job, seen: Seen, cluster: LocalCluster, interruption: Interruption) -> Ending | None:
    if cluster.has_pods:
        return None
    if completion.is_finished(seen):
        return "failed" if _is_failed(seen.status) else "succeeded"
    if job.suspend:
        return "interrupted" if interruption.count else "suspended"
    return None


def _is_failed(status: Object) -> bool:
    return bool(status.get("phase") == "Failed")


@contextmanager
def _signals() -> Iterator[Interruption]:
    interruption = Interruption()
    kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()  # under nohup
    before = {number: signal.signal(number, interruption.take) for number in SIGNALS if number not in kept}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
