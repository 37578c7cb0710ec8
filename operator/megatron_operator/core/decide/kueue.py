"""Kueue: a job with a Workload has pods only while the Workload is admitted."""

from __future__ import annotations

from megatron_operator.api import names
from megatron_operator.core.decide.decision import Queue
from megatron_operator.core.desired import workload
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.core.observe_kueue import Workload

LACKING_INTERVAL_S = 60.0


def decide(job: Job, seen: Seen, now: float) -> Queue | None:
    """Queue until the Workload is admitted, and again when it is evicted or deleted.

    Running pods stay when Kueue's API itself disappears: that says nothing about the quota.
    """
    if not job.has_workload or (not seen.kueue.served and seen.current):
        return None
    found = workload.current(job, seen)
    if found and found.is_true(workload.ADMITTED) and not found.is_true(workload.EVICTED):
        return None
    reason = names.KUEUE_EVICTED if found and found.is_true(workload.EVICTED) else names.WAITING_FOR_QUOTA
    return Queue(reason=reason, message=_why(job, found))


def attempt(seen: Seen) -> int:
    """The attempt to persist while queued: the next one once pods of the current one were created."""
    return seen.attempt + 1 if seen.current else seen.attempt


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When to check again for what the queue lacks and no watch covers: its API, a priority class."""
    is_lacking = not seen.kueue.served or seen.kueue.priority is None
    return now + LACKING_INTERVAL_S if job.has_workload and is_lacking else None


def _why(job: Job, found: Workload | None) -> str:
    """The queue's own message if it has one."""
    for type_ in (workload.EVICTED, workload.QUOTA_RESERVED):
        condition = found.condition(type_) if found else None
        if condition and condition.get("message") and (type_ != workload.EVICTED or condition["status"] == "True"):
            return f"Queue {job.kueue_queue}: {condition['message']}"
    return f"Queue {job.kueue_queue} has not admitted the job."
