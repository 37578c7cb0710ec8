"""Completion: by successPolicy either the master decides, with time for the workers to end, or all pods together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megatron_operator.api import names
from megatron_operator.core.decide.decision import Succeed, Wait
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen

# Workers leave the last collective within moments of the master; a minute also covers slow file systems.
COMPLETION_GRACE_S = 60.0


def decide(job: Job, seen: Seen, now: float) -> Succeed | Wait | None:
    """Succeed, or wait for workers that have yet to end; None while the pods that count have not succeeded."""
    if job.success_policy == "All":
        return _when_all_succeeded(job, seen)
    master = succeeded_master(seen)
    if master is None:
        return None
    ends = wake_at(job, seen, now)
    if ends is not None and now < ends:
        return Wait()
    return Succeed(message=f"Pod {master.name} succeeded.")


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the wait for workers ends; None if there is nothing to wait for."""
    master = succeeded_master(seen) if job.success_policy == "Master" else None
    still_running = any(not pod.is_finished for pod in seen.current)
    if master is None or master.finished_at is None or not still_running:
        return None
    return master.finished_at + COMPLETION_GRACE_S


def _when_all_succeeded(job: Job, seen: Seen) -> Succeed | None:
    done = [pod for pod in seen.current if pod.phase == "Succeeded"]
    if len(done) < job.num_nodes:
        return None
    return Succeed(reason=names.ALL_SUCCEEDED, message=f"All {job.num_nodes} pods succeeded.")


def succeeded_master(seen: Seen) -> Pod | None:
    """This attempt's master if it has succeeded."""
    masters = (pod for pod in seen.current if pod.role == names.MASTER)
    return next((pod for pod in masters if pod.phase == "Succeeded"), None)


def with_removed(job: Job, seen: Seen) -> Seen:
    """The observed state, with this attempt's pods that had succeeded before they were deleted added back.

    The status records how many pods of a role have succeeded. Where that accounts for every missing pod of the role,
    they are added as succeeded and being deleted.
    """
    if seen.status.get("selector") != names.selector_text(job.name, seen.pod_attempt):
        return seen  # it is about another attempt
    there = {pod.name for pod in seen.current}
    gone = []
    for role in (names.MASTER, names.WORKER):
        of_role = [pod for pod in seen.current if pod.role == role]
        stored = (seen.status.get("replicaStatuses") or {}).get(role) or {}
        num_removed = stored.get("succeeded", 0) - sum(pod.phase == "Succeeded" for pod in of_role)
        if num_removed <= 0:
            continue
        absent = [pod for pod in _expected(job, seen) if pod.role == role and pod.name not in there]
        gone += absent if len(absent) <= num_removed else []
    return replace(seen, pods=(*seen.pods, *gone)) if gone else seen


def is_being_removed(seen: Seen) -> bool:
    """Whether a succeeded pod is about to be deleted, so that the status must record its success first."""
    return any(pod.phase == "Succeeded" and pod.deleting and pod.uid for pod in seen.current)


def _expected(job: Job, seen: Seen) -> Iterator[Pod]:
    """Every pod of this attempt as succeeded and deleted."""
    for name in names.replica_names(job.name, seen.pod_attempt, job.num_nodes):
        if place := names.place_of(name, job.name):
            yield Pod(name=name, **vars(place), phase="Succeeded", deleting=True)


def is_finished(seen: Seen) -> bool:
    """Whether the status has a terminal condition."""
    return seen.is_true(names.SUCCEEDED) or seen.is_true(names.FAILED)
