"""The root cause of an attempt's failure: one failed pod takes all the others down with it."""

from __future__ import annotations

import signal

from megatron_operator.api import names
from megatron_operator.core.decide import program
from megatron_operator.core.decide.decision import Failure
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_trainjob.exit_codes import ExitCode, describe, describe_foreign, retry_class

POD_DELETED = "PodDeleted"

# How a rank that lost a peer ends: by an exception in the collective, or aborted by NCCL's watchdog.
CONSEQUENCES = frozenset({ExitCode.ERROR, 128 + signal.SIGABRT})
# Kubelets report the ends of a gang's pods some seconds apart, with a resolution of one second.
CAUSE_WITHIN_S = 3.0


def find(job: Job, seen: Seen, now: float) -> Failure | None:
    """The root cause of this attempt's failure, None if it has not failed.

    Order: a pod marked for disruption; a pod whose exit code rules out a retry (the others then merely lost their
    peer); a pod that is being deleted or is missing; the pod that failed first, among near ties preferably the
    one that was killed over one that lost its peer. While only the latter is known, wait for the cause.
    """
    unsuccessful = [pod for pod in seen.current if pod.phase != "Succeeded"]
    for candidates in (
        [pod for pod in unsuccessful if pod.disruption is not None],
        [pod for pod in failed(seen) if is_permanent(job, pod)],
        [pod for pod in unsuccessful if pod.deleting],
    ):
        if candidates:
            return _of_pod(job, min(candidates, key=_when), seen, now)
    if gone := _of_missing(job, seen, now):
        return gone
    cause = _cause(failed(seen))
    return None if cause is None or _known_at(seen, cause, now) > now else _of_pod(job, cause, seen, now)


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the wait for the root cause ends, None without a failure."""
    cause = _cause(failed(seen))
    return None if cause is None else _known_at(seen, cause, now)


def failed(seen: Seen) -> list[Pod]:
    """Pods of this attempt that failed, or that their node lost track of."""
    return [pod for pod in seen.current if pod.phase in ("Failed", "Unknown")]


def is_permanent(job: Job, pod: Pod) -> bool:
    """Whether a retry is pointless: the trainer's exit code says so, or the image has no such program."""
    return is_final_code(job, pod) or bool(program.refusal(pod.reason, pod.message))


def is_final_code(job: Job, end: Pod | Failure) -> bool:
    """Whether the trainer's own exit code says that a retry cannot help."""
    return is_trainers_code(job, end) and end.exit_code is not None and retry_class(end.exit_code) == "never"


def is_trainers_code(job: Job, end: Pod | Failure) -> bool:
    """Whether the exit code is an `ExitCode`: 2 or 64 mean something else in any other program.

    A user's own command is trusted if it leaves the trainer's termination record.
    """
    return end.container == names.CONTAINER and (not job.command or end.is_recorded)


def missing(job: Job, seen: Seen) -> tuple[str, ...]:
    """Names of this attempt's pods that do not exist."""
    there = {pod.name for pod in seen.current}
    expected = names.replica_names(job.name, seen.pod_attempt, job.num_nodes)
    return tuple(name for name in expected if name not in there)


def was_complete(job: Job, seen: Seen) -> bool:
    """True once all pods of the attempt have existed: a missing pod was then deleted.

    The status says so unless no operator saw them together. Ranks also succeed together only: where a pod has, the
    trainer in a second copy of a missing one would wait for it forever. A user's own command may succeed alone.
    """
    condition = seen.condition(names.PODS_READY)
    if condition is not None and condition["reason"] in (names.PODS_PENDING, names.ALL_PODS_READY):
        return True
    return not job.command and any(pod.phase == "Succeeded" for pod in seen.current)


def _when(pod: Pod) -> tuple[float, bool, int]:
    return (_end(pod), pod.role != names.MASTER, pod.index)


def _end(pod: Pod) -> float:
    return pod.finished_at if pod.finished_at is not None else float("inf")


def _cause(pods: list[Pod]) -> Pod | None:
    """Among the pods that failed together with the first, one that did not merely lose its peer."""
    until = min(map(_end, pods), default=0.0) + CAUSE_WITHIN_S
    early = [pod for pod in pods if _end(pod) <= until]
    return min(early, key=lambda pod: (_may_be_consequence(pod), *_when(pod)), default=None)


def _may_be_consequence(pod: Pod) -> bool:
    """Whether the pod ended like a rank that lost a peer; other containers have no peers."""
    return pod.container == names.CONTAINER and pod.exit_code in CONSEQUENCES


def _known_at(seen: Seen, cause: Pod, now: float) -> float:
    """Earliest time at which this failure is accepted as the root cause; later if it may follow from another.

    A node's clock that is ahead of ours never prolongs the wait.
    """
    have_all_ended = all(pod.is_finished for pod in seen.current)
    if not _may_be_consequence(cause) or have_all_ended or cause.finished_at is None or cause.finished_at > now:
        return now
    return cause.finished_at + CAUSE_WITHIN_S


def _of_pod(job: Job, pod: Pod, seen: Seen, now: float) -> Failure:
    reason = pod.disruption or pod.reason
    if not reason and pod.deleting:
        reason = POD_DELETED
    if reason in ("", "Error") and pod.exit_code is not None:
        reason = describe(pod.exit_code) if is_trainers_code(job, pod) else describe_foreign(pod.exit_code)
    beat = seen.beat
    return Failure(
        pod=pod.name,
        node=pod.node,
        container=pod.container if pod.exit_code is not None else "",
        container_kind=pod.container_kind,
        exit_code=pod.exit_code,
        is_recorded=pod.is_recorded,
        rank=pod.rank if pod.rank in range(job.world_size) else None,
        reason=reason or "Unknown",
        message=pod.message,
        host=pod.host,
        stack=pod.stack,
        gpu_error=pod.gpu_error,
        iteration=pod.iteration if pod.iteration is not None else (beat.iteration if beat else None),
        attempt=seen.attempt,
        time=pod.finished_at if pod.finished_at is not None else now,
    )


def _of_missing(job: Job, seen: Seen, now: float) -> Failure | None:
    gone = missing(job, seen)
    if not gone or not was_complete(job, seen):
        return None
    return Failure(
        pod=gone[0],
        reason=POD_DELETED,
        message=f"{len(gone)} of {job.num_nodes} pods no longer exist.",
        iteration=seen.beat.iteration if seen.beat else None,
        attempt=seen.attempt,
        time=now,
    )
