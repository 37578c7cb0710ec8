"""Conditions and phase: the decision and the observed pods in words. Pure; writes nothing.

Polarity is fixed per type. Reconciling and Stalled follow kstatus and are present only while True.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.decide import backoff, failure, waiting, whole
from megatron_operator.core.decide.decision import Decision, Fail, Queue, Resize, Restart, Succeed, Suspend, Withdraw
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.timestamp import to_text

Object = Mapping[str, Any]
ORDER = (
    names.ADMITTED,
    names.PODS_READY,
    names.RUNNING,
    names.SUSPENDED,
    names.RESTARTING,
    names.SUCCEEDED,
    names.COMPLETE,
    names.FAILED,
    names.RECONCILING,
    names.STALLED,
    names.SLOW_RANK,
    names.HAS_WARNINGS,
)
NOT_TAKEN_UP = (
    "Kueue does not manage the pods: it is not installed, does not integrate pods, or lists this kind as an external "
    "framework, for which kueue.mode must be External."
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One condition's status, reason and message."""

    is_true: bool
    reason: str
    message: str = ""


Claims = Mapping[str, Claim]


def compute(job: Job, seen: Seen, decision: Decision, now: float) -> Claims:
    """All current conditions of the job, by type."""
    return {**_of_decision(job, seen, decision, now), **_warned(job)}


def warning_text(job: Job) -> str:
    """Warnings about fields that are accepted but have no effect, or are rarely intended; "" without any."""
    return "; ".join(map(str, job.warnings))[:1024]


def _warned(job: Job) -> Claims:
    return {names.HAS_WARNINGS: _yes(names.SPEC_WARNINGS, warning_text(job))} if job.warnings else {}


def _of_decision(job: Job, seen: Seen, decision: Decision, now: float) -> Claims:
    match decision:
        case Succeed():
            return succeeded(seen, decision)
        case Fail():
            return failed(seen, decision.reason, decision.message)
        case Suspend():
            return _suspended()
        case Queue():
            return _queued(seen, decision)
        case Restart(in_place=True):
            return {**_active(job, seen, now), names.RESTARTING: _no(names.RESTARTED_IN_PLACE, _why(decision))}
        case Restart():
            return _again(seen, decision.reason, _why(decision))
        case Resize():
            return _again(seen, decision.reason, decision.message)
        case Withdraw():
            return {**_active(job, seen, now), names.STALLED: _yes(decision.reason, decision.message)}
        case _:
            return _active(job, seen, now)


def _why(decision: Restart) -> str:
    cause = decision.failure
    return f"Attempt {cause.attempt} ended: {cause.reason} in {cause.place}. {cause.message}".strip()[:1024]


def succeeded(seen: Seen, decision: Succeed) -> Claims:
    """The conditions of a job that has succeeded."""
    done = _yes(decision.reason, decision.message)
    return {**_ended(seen), names.SUCCEEDED: done, names.COMPLETE: done}


def failed(seen: Seen, reason: str, message: str) -> Claims:
    """The conditions of a failed job."""
    over = {names.FAILED: _yes(reason, message), names.STALLED: _yes(names.JOB_FAILED, message)}
    return {**_ended(seen), **over}


def phase(claims: Claims, *, has_pods: bool) -> str:
    """One word for the printer column, derived from the conditions and nothing else.

    A restarted gang may wait for its quota again, for hours: then it is Queued, not Restarting.
    """
    if stopped := _first_true(claims, names.FAILED, names.SUCCEEDED, names.SUSPENDED):
        return stopped
    if not claims[names.ADMITTED].is_true:
        return "Queued"
    return _first_true(claims, names.RESTARTING, names.RUNNING) or ("Starting" if has_pods else "Pending")


def reason(claims: Claims, phase: str) -> str:
    """The reason for the phase, in one word."""
    behind = {"Queued": names.ADMITTED, "Pending": names.PODS_READY, "Starting": names.PODS_READY}
    return claims[behind.get(phase, phase)].reason


def stamped(claims: Claims, seen: Seen, job_generation: int, now: float) -> list[Object]:
    """The conditions as metav1.Condition; lastTransitionTime is kept while the status is unchanged."""
    return [_stamp(type_, claims[type_], seen, job_generation, now) for type_ in ORDER if type_ in claims]


def all_running(job: Job, seen: Seen) -> bool:
    """Whether every pod of the attempt is running or has succeeded."""
    running = [pod for pod in seen.current if pod.phase in ("Running", "Succeeded")]
    return len(running) == job.num_nodes


def _first_true(claims: Claims, *types: str) -> str | None:
    return next((type_ for type_ in types if type_ in claims and claims[type_].is_true), None)


def _active(job: Job, seen: Seen, now: float) -> Claims:
    is_running = all_running(job, seen)
    pods_ready = _pods_ready(job, seen, now)
    claims = {
        names.ADMITTED: _admitted(job, seen),
        names.PODS_READY: pods_ready,
        names.RUNNING: _yes(names.ALL_PODS_RUNNING) if is_running else _no(pods_ready.reason),
    }
    if seen.condition(names.SUSPENDED):
        claims[names.SUSPENDED] = _no(names.RESUMED)
    restarting = seen.condition(names.RESTARTING)
    if restarting and is_running and restarting["status"] == "True":
        claims[names.RESTARTING] = _no(names.GANG_RUNNING)
    elif restarting:
        is_true = restarting["status"] == "True"
        message = restarting.get("message", "")
        claims[names.RESTARTING] = Claim(is_true=is_true, reason=restarting["reason"], message=message)
    if not is_running:
        claims[names.RECONCILING] = _yes(pods_ready.reason)
    return {**claims, **_stalled(job, seen, now), **(_slow(job, seen) if is_running else {})}


def _slow(job: Job, seen: Seen) -> Claims:
    """The rank that the trainer says has been far slower than the others for minutes, with its pod and node."""
    beat = seen.beat
    if beat is None or beat.slow_rank is None or beat.slow_rank not in range(job.world_size):
        return {}
    name = names.pod_name(job.name, seen.pod_attempt, beat.slow_rank // job.nproc_per_node)
    node = next((pod.node for pod in seen.current if pod.name == name), "")
    place = f"pod {name}, node {node}" if node else f"pod {name}"
    times = "far more than" if beat.slow_rank_ratio is None else f"{beat.slow_rank_ratio:.2f} times"
    message = f"Rank {beat.slow_rank} ({place}) has taken {times} the median time of all ranks for minutes."
    return {names.SLOW_RANK: _yes(names.FAR_ABOVE_MEDIAN, message)}


def _stalled(job: Job, seen: Seen, now: float) -> Claims:
    """What blocks the job until someone intervenes, None if nothing does."""
    if seen.gang is not None and not seen.gang.served:
        message = f"scheduling.gang is {job.scheduling.gang}, but this cluster has no such PodGroup resource."
        return {names.STALLED: _yes(names.GANG_SCHEDULER_MISSING, message)}
    if seen.problem is not None:
        return {names.STALLED: _yes(*whole.named(seen.problem))}
    stored = seen.condition(names.STALLED)
    if stored and whole.refused_since(seen) is not None and failure.missing(job, seen):
        return {names.STALLED: _yes(stored["reason"], stored.get("message", ""))}
    for each in waiting.hindrances(job, seen):
        if each.is_trouble:
            return {names.STALLED: _yes(each.reason, f"Pod {each.pod.name}: {each.message}")}
    for pod in backoff.overdue(seen, now):
        remedy = "Check its node and finalizers; force-delete it only if it is certainly no longer running."
        return {names.STALLED: _yes(names.POD_TERMINATING, f"{_still_ends(pod, seen)} {remedy}")}
    return {}


def _still_ends(pod: Pod, seen: Seen) -> str:
    of = "the deleted job with this name" if pod in seen.predecessors else f"attempt {pod.attempt}"
    return f"Pod {pod.name} of {of} has not ended; two attempts at once would write the same checkpoint."


def _admitted(job: Job, seen: Seen) -> Claim:
    if job.has_pod_group and any(not pod.in_queue for pod in seen.current):
        return _yes(names.NOT_QUEUED, NOT_TAKEN_UP)
    for pod in seen.current:
        if pod.gated and (job.kueue_queue or pod.gate.startswith(names.KUEUE_PREFIX)):
            return _no(
                names.WAITING_FOR_QUOTA, f"Kueue queue {job.kueue_queue or 'default'} has not admitted the pods."
            )
        if pod.gated:
            message = f"Pod {pod.name}: {waiting.why_unplaced(pod)}; whoever set it must remove it."
            return _no(names.SCHEDULING_GATED, message)
    unplaced = [pod for pod in seen.current if pod.unschedulable is not None]
    if unplaced and job.scheduling.gang != "None":
        return _no(names.GANG_UNSCHEDULABLE, str(unplaced[0].unschedulable))
    if held := waiting.why_held(job, seen):
        return _no(names.WAITING_FOR_QUOTA, held)
    return _yes(names.QUOTA_RESERVED if job.kueue_queue or job.scheduling.queue else names.NOT_QUEUED)


def _pods_ready(job: Job, seen: Seen, now: float) -> Claim:
    if failure.missing(job, seen):
        earlier = backoff.blocking(seen, now)
        return _no(names.PODS_CREATING, _still_ends(earlier[0], seen) if earlier else "")
    if all(pod.ready or pod.phase == "Succeeded" for pod in seen.current):
        return _yes(names.ALL_PODS_READY)
    return _no(names.PODS_PENDING, _why_pending(job, seen, now))


def _why_pending(job: Job, seen: Seen, now: float) -> str:
    """Why the first pod with a known reason is not ready: unscheduled, not starting, or fetching, or slow."""
    for each in waiting.hindrances(job, seen):
        return f"Pod {each.pod.name}: {each.reason} {each.message}".strip()[:1024]
    for pod in seen.current:
        why = (
            (pod.unschedulable or (pod.gated and waiting.why_unplaced(pod)))
            or (pod.waiting and f"{pod.waiting} {pod.waiting_message}")
            or (pod.initializing and f"init container {pod.initializing} is running")
        )
        if why:
            return f"Pod {pod.name}: {why}"[:1024]
    slow = waiting.slow(seen, now)
    return f"Pod {slow[0].name}: {waiting.why_slow(slow[0])}" if slow else ""


def _ended(seen: Seen) -> Claims:
    """The conditions of a finished job, without those that were never true."""
    said = [type_ for type_ in (names.SUSPENDED, names.RESTARTING) if seen.condition(type_)]
    claims = {type_: _no(names.JOB_FINISHED) for type_ in (names.PODS_READY, names.RUNNING, *said)}
    admitted = seen.condition(names.ADMITTED)
    if admitted:
        is_true = admitted["status"] == "True"
        claims[names.ADMITTED] = Claim(is_true=is_true, reason=admitted["reason"])
    return claims


def _suspended() -> Claims:
    stopped = {type_: _no(names.JOB_SUSPENDED) for type_ in (names.ADMITTED, names.PODS_READY, names.RUNNING)}
    return {**stopped, names.SUSPENDED: _yes(names.USER_REQUESTED, "The pods are stopped; everything else is kept.")}


def _queued(seen: Seen, decision: Queue) -> Claims:
    over = {
        names.SUSPENDED: _no(names.RESUMED),
        names.RESTARTING: _no(decision.reason),
    }
    claims = {
        names.ADMITTED: _no(decision.reason, decision.message),
        names.PODS_READY: _no(names.PODS_CREATING),
        names.RUNNING: _no(decision.reason),
        **{type_: claim for type_, claim in over.items() if seen.condition(type_)},
        names.RECONCILING: _yes(decision.reason),
    }
    lacking = _lacking(seen) or seen.problem
    return {**claims, **({names.STALLED: _yes(*lacking)} if lacking else {})}


def _lacking(seen: Seen) -> tuple[str, str] | None:
    """What prevents the job from being queued: (reason, message)."""
    if not seen.kueue.served:
        message = "The job is queued by a kueue.x-k8s.io/v1beta2 Workload, which this cluster does not serve."
        return names.KUEUE_MISSING, message
    if seen.kueue.priority is None:
        return names.PRIORITY_CLASS_MISSING, "The priority class of the job does not exist."
    return None


def _again(seen: Seen, reason: str, message: str) -> Claims:
    """The whole gang stops and is recreated."""
    return {
        names.ADMITTED: _yes(names.NOT_QUEUED),
        names.PODS_READY: _no(names.PODS_CREATING),
        names.RUNNING: _no(reason),
        **({names.SUSPENDED: _no(names.RESUMED)} if seen.condition(names.SUSPENDED) else {}),
        names.RESTARTING: _yes(reason, message),
        names.RECONCILING: _yes(reason),
    }


def _stamp(type_: str, claim: Claim, seen: Seen, generation: int, now: float) -> Object:
    value = "True" if claim.is_true else "False"
    before = seen.condition(type_)
    is_same = before is not None and before["status"] == value
    return {
        "type": type_,
        "status": value,
        "reason": claim.reason,
        "message": claim.message,
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before and is_same else to_text(now),
    }


def _yes(reason: str, message: str = "") -> Claim:
    return Claim(is_true=True, reason=reason, message=message)


def _no(reason: str, message: str = "") -> Claim:
    return Claim(is_true=False, reason=reason, message=message)
