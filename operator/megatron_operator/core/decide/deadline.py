"""Deadlines: how long a job may run in total, wait for nodes, and how long a scheduled pod may take to start."""

from __future__ import annotations

from megatron_operator.api import names
from megatron_operator.core.decide import waiting
from megatron_operator.core.decide.decision import Fail, Failure
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.timestamp import to_seconds


def decide(job: Job, seen: Seen, now: float) -> Fail | None:
    """Fail when the job as a whole, its wait for nodes, or the start of one pod took too long."""
    ends = active_ends(job, seen)
    if ends is not None and now >= ends:
        return exceeded(job.run_policy.active_deadline_s)
    return _no_place(job, seen, now) or _no_start(job, seen, now)


def exceeded(seconds: int | None) -> Fail:
    """The end of a job that ran for too long."""
    return Fail(
        reason=names.DEADLINE_EXCEEDED,
        message=f"The job ran longer than runPolicy.activeDeadlineSeconds ({seconds} s).",
    )


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """The earliest time at which a deadline can expire."""
    ends = (active_ends(job, seen), _place_ends(job, seen, now), _startup_ends(job, seen, now))
    return min((each for each in ends if each is not None), default=None)


def active_ends(job: Job, seen: Seen) -> float | None:
    """When the job's active deadline expires; it starts over when a suspended job resumes."""
    return ends_at(seen, job.run_policy.active_deadline_s)


def ends_at(seen: Seen, seconds: int | None) -> float | None:
    """The same for a deadline of so many seconds."""
    started = to_seconds(seen.status.get("startTime"))
    return None if started is None or seconds is None else started + seconds


def _place_ends(job: Job, seen: Seen, now: float) -> float | None:
    seconds = job.run_policy.scheduling_timeout_s
    if seconds is None or waiting.for_a_place(job, seen, now) is None:
        return None
    return waiting.place_since(seen, now) + seconds


def _no_place(job: Job, seen: Seen, now: float) -> Fail | None:
    ends = _place_ends(job, seen, now)
    if ends is None or now < ends:
        return None
    limit = f"runPolicy.schedulingTimeoutSeconds ({job.run_policy.scheduling_timeout_s} s)"
    why = waiting.for_a_place(job, seen, now)
    return Fail(reason=names.SCHEDULING_TIMEOUT, message=f"The job waited for nodes longer than {limit}: {why}")


def _startup_ends(job: Job, seen: Seen, now: float) -> float | None:
    start = waiting.starts_since(job, seen, now)
    return None if start is None else start[1] + job.run_policy.startup_deadline_s


def _no_start(job: Job, seen: Seen, now: float) -> Fail | None:
    start = waiting.starts_since(job, seen, now)
    if start is None or now < start[1] + job.run_policy.startup_deadline_s:
        return None
    hindrance = start[0]
    pod, seconds = hindrance.pod, job.run_policy.startup_deadline_s
    message = f"Pod {pod.name} could not start within {seconds} s: {hindrance.reason} {hindrance.message}"
    failure = Failure(
        reason=hindrance.reason,
        message=hindrance.message,
        pod=pod.name,
        node=pod.node,
        attempt=seen.attempt,
        time=now,
    )
    return Fail(reason=names.STARTUP_FAILED, message=message.rstrip(), failure=failure)
