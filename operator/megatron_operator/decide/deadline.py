"""Deadlines: how long a job may run in all, and how long a placed pod may fail to start."""

from __future__ import annotations

from megatron_operator import names
from megatron_operator.decide.decision import Fail, Failure
from megatron_operator.job import Job
from megatron_operator.observe import Pod, Seen
from megatron_operator.timestamp import to_seconds

# Reasons for which a container stays unstarted until somebody changes something.
STUCK_REASONS = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)


def decide(job: Job, seen: Seen, now: float) -> Fail | None:
    """Fail when the job as a whole, or the start of one pod, took too long."""
    ends = active_ends(job, seen)
    if ends is not None and now >= ends:
        seconds = job.run_policy.active_deadline_s
        return Fail(
            reason=names.DEADLINE_EXCEEDED,
            message=f"The job ran longer than runPolicy.activeDeadlineSeconds ({seconds} s).",
        )
    for pod in stuck(seen):
        if now >= _startup_ends(job, pod, now):
            return _startup_failed(job, pod, now)
    return None


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """The next moment at which a deadline can pass."""
    moments = [_startup_ends(job, pod, now) for pod in stuck(seen)]
    ends = active_ends(job, seen)
    return min([*moments, ends] if ends is not None else moments, default=None)


def active_ends(job: Job, seen: Seen) -> float | None:
    """When the whole job's time is up; it starts anew when a suspended job resumes."""
    started = to_seconds(seen.status.get("startTime"))
    seconds = job.run_policy.active_deadline_s
    return None if started is None or seconds is None else started + seconds


def stuck(seen: Seen) -> tuple[Pod, ...]:
    """Pods of this attempt that have a place but cannot start there."""
    return tuple(pod for pod in seen.current if pod.waiting in STUCK_REASONS)


def _startup_ends(job: Job, pod: Pod, now: float) -> float:
    return (pod.scheduled_at if pod.scheduled_at is not None else now) + job.run_policy.startup_deadline_s


def _startup_failed(job: Job, pod: Pod, now: float) -> Fail:
    seconds = job.run_policy.startup_deadline_s
    message = f"Pod {pod.name} could not start within {seconds} s: {pod.waiting} {pod.waiting_message}"
    failure = Failure(
        reason=str(pod.waiting),
        message=pod.waiting_message,
        pod=pod.name,
        node=pod.node,
        attempt=pod.attempt,
        time=now,
    )
    return Fail(reason=names.STARTUP_FAILED, message=message.rstrip(), failure=failure)
