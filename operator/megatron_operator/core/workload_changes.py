"""Changes to a job's Kueue Workloads after a decision: create, update, release, delete."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_operator.api import names
from megatron_operator.core.decide.decision import Continue, Decision, Fail, Queue, Succeed, Suspend
from megatron_operator.core.desired import workload
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.core.observe_kueue import Workload
from megatron_operator.core.plan import Patch, Plan, Ref


def changes(job: Job, seen: Seen, decision: Decision, now: float) -> Plan:
    """Creations, patches and deletions of Workloads. A suspended job is not queued."""
    if not job.has_workload or not seen.kueue.served:
        return Plan()
    if isinstance(decision, Suspend):
        return Plan(delete=_refs(seen.kueue.workloads))
    found = workload.current(job, seen)
    stale = _refs(each for each in seen.kueue.workloads if each is not found)
    if found is None:
        is_wanted = isinstance(decision, Queue) and seen.kueue.priority is not None
        return Plan(delete=stale, create=(workload.workload(job, seen.kueue.priority or 0),) if is_wanted else ())
    patch = _told(seen, found, decision, now)
    return Plan(delete=stale, patch=(patch,) if patch else ())


def after_the_end(job: Job, seen: Seen, now: float) -> tuple[Patch, ...]:
    """Marks the Workload finished, unless it is already."""
    found = workload.current(job, seen) if job.has_workload else None
    if found is None:
        return ()
    succeeded = seen.is_true(names.SUCCEEDED)
    patch = workload.finished_patch(found, succeeded=succeeded, message="", now=now)
    return (patch,) if patch else ()


def leftovers(seen: Seen) -> tuple[Ref, ...]:
    """The Workloads to delete when the job's time to live is over."""
    return _refs(seen.kueue.workloads)


def _told(seen: Seen, found: Workload, decision: Decision, now: float) -> Patch | None:
    """Status updates of the Workload."""
    match decision:
        case Succeed() | Fail():
            succeeded = isinstance(decision, Succeed)
            return workload.finished_patch(found, succeeded=succeeded, message=decision.message, now=now)
        case Queue():
            return None if seen.pods or seen.spares else workload.release_patch(found, now)
        case Continue():
            is_ready = bool(seen.current) and all(pod.ready for pod in seen.current)
            return workload.ready_patch(found, is_ready=is_ready, now=now)
        case _:
            return None


def _refs(workloads: Iterable[Workload]) -> tuple[Ref, ...]:
    return tuple(
        Ref(api_version=workload.API_VERSION, kind=workload.KIND, name=each.name)
        for each in workloads
        if not each.deleting
    )
