"""Which failure ended this attempt: one failed pod takes the others with it, so the cause is told apart."""

from __future__ import annotations

from megatron_operator import names
from megatron_operator.decide import program
from megatron_operator.decide.decision import Failure
from megatron_operator.job import Job
from megatron_operator.observe import Pod, Seen
from megatron_trainjob.exit_codes import ExitCode, describe, retry_class

POD_DELETED = "PodDeleted"


def find(job: Job, seen: Seen, now: float) -> Failure | None:
    """The cause of this attempt's end, None while all is well.

    Order: a pod marked for disruption; a pod that says that no retry can help (the others then merely lost their
    peer); a pod deleted by somebody else, or gone altogether; the pod that failed first, within one
    second rather the one that was killed than the one that lost its peer.
    """
    for candidates in (
        [pod for pod in seen.current if pod.disruption is not None],
        [pod for pod in failed(seen) if is_permanent(pod)],
        [pod for pod in seen.current if pod.deleting],
    ):
        if candidates:
            return _of_pod(min(candidates, key=_when), seen, now)
    first = min(failed(seen), key=_when, default=None)
    return _of_missing(job, seen, now) or (_of_pod(first, seen, now) if first else None)


def failed(seen: Seen) -> list[Pod]:
    """Pods of this attempt that ended badly, or of which the node lost track."""
    return [pod for pod in seen.current if pod.phase in ("Failed", "Unknown")]


def is_permanent(pod: Pod) -> bool:
    """Whether no retry can help: the trainer's code says so, or there is no such program."""
    return retry_class(pod.exit_code or ExitCode.ERROR) == "never" or bool(program.refusal(pod.reason, pod.message))


def missing(job: Job, seen: Seen) -> tuple[str, ...]:
    """Names of this attempt's pods that do not exist."""
    there = {pod.name for pod in seen.current}
    expected = names.replica_names(job.name, seen.attempt, job.num_nodes)
    return tuple(name for name in expected if name not in there)


def was_complete(seen: Seen) -> bool:
    """Whether the whole gang of this attempt was there once: a missing pod then is one somebody deleted."""
    condition = seen.condition(names.PODS_READY)
    return condition is not None and condition["reason"] in (names.PODS_PENDING, names.ALL_PODS_READY)


def _when(pod: Pod) -> tuple[float, bool, bool, int]:
    """Kubernetes knows ends to the second: of equal ones a plain error comes last, for a lost peer ends in it."""
    ended = pod.finished_at if pod.finished_at is not None else float("inf")
    return (ended, pod.exit_code == ExitCode.ERROR, pod.role != names.MASTER, pod.index)


def _of_pod(pod: Pod, seen: Seen, now: float) -> Failure:
    reason = pod.disruption or pod.reason
    if not reason and pod.deleting:
        reason = POD_DELETED
    if reason in ("", "Error") and pod.exit_code is not None:
        reason = describe(pod.exit_code)
    beat = seen.beat
    return Failure(
        pod=pod.name,
        node=pod.node,
        exit_code=pod.exit_code,
        reason=reason or "Unknown",
        message=pod.message,
        iteration=pod.iteration if pod.iteration is not None else (beat.iteration if beat else None),
        attempt=pod.attempt,
        time=pod.finished_at if pod.finished_at is not None else now,
    )


def _of_missing(job: Job, seen: Seen, now: float) -> Failure | None:
    gone = missing(job, seen)
    if not gone or not was_complete(seen):
        return None
    return Failure(
        pod=gone[0],
        reason=POD_DELETED,
        message=f"{len(gone)} of {job.num_nodes} pods are not there any more.",
        iteration=seen.beat.iteration if seen.beat else None,
        attempt=seen.attempt,
        time=now,
    )
