"""The events that a decision is worth: at most one each for what a person wants to read of a job's life."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_operator import conditions, names
from megatron_operator.decide import failure
from megatron_operator.decide.decision import Decision, Fail, Queue, Resize, Restart, Succeed, Suspend
from megatron_operator.job import Job
from megatron_operator.observe import Seen
from megatron_operator.plan import Event

Object = Mapping[str, Any]


def of_decision(job: Job, seen: Seen, decision: Decision, *, creates_pods: bool) -> tuple[Event, ...]:
    """What to tell about this decision. The status is written first, so each is told once a transition."""
    is_made = not failure.missing(job, seen) and not failure.was_complete(seen)
    new_gang = (_gang_created(job, seen),) if is_made else ()
    warned = (_warning(names.SPEC_WARNINGS, conditions.warning_text(job)),) if _is_newly_warned(job, seen) else ()
    return (*warned, *new_gang, *_of_decision(job, seen, decision, creates_pods=creates_pods))


def _is_newly_warned(job: Job, seen: Seen) -> bool:
    return bool(job.warnings) and not seen.is_true(names.HAS_WARNINGS)


def of_stall(seen: Seen, status: Object) -> tuple[Event, ...]:
    """Told when a job stops going on by itself, in the words of who refused it; a failed job says more itself."""
    stalled = next((each for each in status["conditions"] if each["type"] == names.STALLED), None)
    if stalled is None or stalled["reason"] == names.JOB_FAILED or seen.is_true(names.STALLED):
        return ()
    return (_warning("JobStalled", f"{stalled['reason']}: {stalled['message']}"[:1024]),)


def _of_decision(job: Job, seen: Seen, decision: Decision, *, creates_pods: bool) -> tuple[Event, ...]:
    match decision:
        case Restart():
            return _restarting(decision)
        case Fail():
            return _failed(decision)
        case Succeed():
            return (_normal("JobSucceeded", decision.message),)
        case Suspend():
            return _suspended(seen)
        case Resize():
            return (_normal("JobResized", decision.message),)
        case Queue():
            return _queued(seen, decision)
        case _:
            return _going_on(job, seen, creates_pods=creates_pods)


def _restarting(decision: Restart) -> tuple[Event, ...]:
    failure = decision.failure
    code = "" if failure.exit_code is None else f" with exit code {failure.exit_code}"
    cause = f"{failure.place.capitalize()} ended{code}: {failure.reason}. {failure.message}".strip()[:1024]
    first = "JobHung" if decision.reason == names.HUNG else "PodFailed"
    wait = f" in {decision.delay_s:.0f} s" if decision.delay_s else ""
    then = f"Attempt {failure.attempt + 1} starts{wait} ({decision.reason})."
    return (_warning(first, cause), _normal("JobRestarting", then))


def _failed(decision: Fail) -> tuple[Event, ...]:
    reason = names.DEADLINE_EXCEEDED if decision.reason == names.DEADLINE_EXCEEDED else "JobFailed"
    detail = decision.failure.message if decision.failure else ""
    return (_warning(reason, f"{decision.reason}: {decision.message} {detail}".strip()[:1024]),)


def _suspended(seen: Seen) -> tuple[Event, ...]:
    if seen.is_true(names.SUSPENDED):
        return ()
    return (_normal("JobSuspended", "The pods are being stopped; everything else is kept."),)


def _queued(seen: Seen, decision: Queue) -> tuple[Event, ...]:
    """Told when the job enters the queue, and when it is put back there."""
    admitted = seen.condition(names.ADMITTED)
    if decision.reason == names.KUEUE_EVICTED:
        return (_warning("JobEvicted", decision.message),) if seen.current else ()
    is_new = admitted is None or admitted["status"] == "True"
    return (_normal("JobQueued", decision.message),) if is_new else ()


def _going_on(job: Job, seen: Seen, *, creates_pods: bool) -> tuple[Event, ...]:
    events = []
    if seen.is_true(names.SUSPENDED):
        events.append(_normal("JobResumed", "The job goes on."))
    if not (seen.status or seen.current or creates_pods):
        events.append(_normal("JobAccepted", "The manifest is valid; the pods wait."))
    if conditions.all_running(job, seen) and not seen.is_true(names.RUNNING):
        events.append(_normal("JobRunning", f"All {job.num_nodes} pods of attempt {seen.attempt} run."))
    return tuple(events)


def _gang_created(job: Job, seen: Seen) -> Event:
    return _normal("GangCreated", f"{len(seen.current)} pods of attempt {seen.attempt}.")


def _normal(reason: str, message: str) -> Event:
    return Event(type="Normal", reason=reason, message=message)


def _warning(reason: str, message: str) -> Event:
    return Event(type="Warning", reason=reason, message=message)
