"""Completion: by successPolicy the master decides, with time for the workers to end too, or all pods together."""

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
    """Succeed, or wait for workers that still end; None while those that count have not succeeded."""
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
    """When waiting for workers ends; None when there is nothing to wait for."""
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
    """The master of this attempt if it has succeeded."""
    masters = (pod for pod in seen.current if pod.role == names.MASTER)
    return next((pod for pod in masters if pod.phase == "Succeeded"), None)


def with_removed(job: Job, seen: Seen) -> Seen:
    """The observation, with the pods of this attempt that had succeeded before they were deleted.

    The status tells how many of a role have succeeded. Where that explains every pod of the role that is not there,
    nothing is missing: they are shown as succeeded and being deleted.
    """
    if seen.status.get("selector") != names.selector_text(job.name, seen.attempt):
        return seen  # it tells of another attempt
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
    """Whether a pod that has succeeded is about to go, so that the status has to tell of its success before."""
    return any(pod.phase == "Succeeded" and pod.deleting and pod.uid for pod in seen.current)


def _expected(job: Job, seen: Seen) -> Iterator[Pod]:
    """Every pod of this attempt as one that has succeeded and is gone."""
    for name in names.replica_names(job.name, seen.attempt, job.num_nodes):
        if place := names.place_of(name, job.name):
            yield Pod(name=name, **vars(place), phase="Succeeded", deleting=True)


def is_finished(seen: Seen) -> bool:
    """Whether a terminal condition is written down."""
    return seen.is_true(names.SUCCEEDED) or seen.is_true(names.FAILED)
