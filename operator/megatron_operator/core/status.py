"""The status of a job: computed from observed state and decision, written only when it changes.

Important changes are written at once. Counts, reasons and progress are throttled to `SOFT_INTERVAL_S`, or a thousand
running jobs would write a thousand times a second.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.api.schema import fit
from megatron_operator.api.schema.status import status as status_schema
from megatron_operator.core import conditions, last_restart
from megatron_operator.core.decide import kueue as kueue_decide
from megatron_operator.core.decide import node_exclusion, restart, suspend, waiting
from megatron_operator.core.decide.decision import (
    Counters,
    Decision,
    Fail,
    Failure,
    Queue,
    Resize,
    Restart,
    Succeed,
    Suspend,
    Withdraw,
)
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.guard import LogLimit
from megatron_operator.timestamp import to_seconds, to_text
from megatron_trainjob.args import derive
from megatron_trainjob.progress import Progress

Object = Mapping[str, Any]
logger = logging.getLogger(__name__)
LOG_LIMIT = LogLimit()
MAX_METRICS = 32
MAX_WARNINGS = 32
MAX_WARNING_CHARACTERS = 1024
SOFT_INTERVAL_S = 10.0
QUIET_INTERVAL_S = 60.0
SETTLING_S = 5.0
QUIET = {"progress": None, "replicas": None, "replicaStatuses": None}
SOFT_FIELDS = (
    *("phase", "reason", "replicas", "replicaStatuses", "spares", "progress", "checkpoint", "gang"),
    *("lastRestart", "lastUpdatedTime"),
)


def compute(job: Job, seen: Seen, decision: Decision, now: float) -> Object:
    """The whole status after this decision."""
    claims = conditions.compute(job, seen, decision, now)
    attempt, of_pods = next_attempt(seen, decision), next_pod_attempt(seen, decision)
    pods = tuple(pod for pod in seen.pods if pod.attempt == of_pods)
    phase = conditions.phase(claims, has_pods=bool(pods))
    status = {
        "observedGeneration": job.generation,
        "phase": phase,
        "reason": conditions.reason(claims, phase),
        "conditions": conditions.stamped(claims, seen, job.generation, now),
        "startTime": _start_time(seen, decision, now),
        "completionTime": to_text(now) if isinstance(decision, Succeed | Fail) else None,
        "lastRestartTime": to_text(now) if isinstance(decision, Restart) else seen.status.get("lastRestartTime"),
        "lastRestart": last_restart.describe(seen, decision, attempt, now),
        "restarts": _restarts(seen, decision, now),
        "replicas": len(pods),
        "replicaStatuses": replica_statuses(job, pods),
        "spares": _spares(job, seen, decision),
        "lastFailure": _last_failure(seen, decision),
        "failedNodes": _failed_nodes(job, seen, decision, now),
        "waiting": waiting.describe(job, seen, decision, now),
        "progress": _progress(seen),
        "checkpoint": _checkpoint(seen),
        "resolved": resolved(job),
        "warnings": [str(warning)[:MAX_WARNING_CHARACTERS] for warning in job.warnings][:MAX_WARNINGS] or None,
        "gang": _gang(job, of_pods, seen),
        "selector": names.selector_text(job.name, of_pods),
        "lastUpdatedTime": to_text(now),
    }
    return fitting({key: value for key, value in status.items() if value is not None})


def ended(seen: Seen, generation: int, claims: conditions.Claims, now: float) -> Object:
    """The status of a job that ends although its manifest is invalid here; earlier facts are kept."""
    phase = conditions.phase(claims, has_pods=False)
    spares = seen.status.get("spares")
    return fitting(
        {
            **seen.status,
            **({"spares": {**spares, "running": 0}} if spares else {}),
            "observedGeneration": generation,
            "phase": phase,
            "reason": conditions.reason(claims, phase),
            "conditions": conditions.stamped(claims, seen, generation, now),
            "completionTime": to_text(now),
            "lastUpdatedTime": to_text(now),
        }
    )


def fitting(status: Object) -> Object:
    """The status as the API server accepts it, whatever the messages of pods and queues contain."""
    found = fit.fitted(status, status_schema(), "status")
    if found.problems and LOG_LIMIT.suppressed("status") is not None:
        logger.warning("status does not fit its schema problems=%.1000s", "; ".join(found.problems))
    value: Object = found.value
    return value


def held(seen: Seen, generation: int, reason: str, message: str, now: float) -> Object:
    """The status of a job that continues unchanged although its manifest is invalid."""
    others = [each for each in seen.status.get("conditions", ()) if each["type"] != names.STALLED]
    (stalled,) = conditions.stamped(
        {names.STALLED: conditions.Claim(is_true=True, reason=reason, message=message)}, seen, generation, now
    )
    return {**seen.status, "conditions": [*others, stalled]}


def next_attempt(seen: Seen, decision: Decision) -> int:
    """The attempt in the status after this decision."""
    match decision:
        case Restart() | Resize():
            return seen.attempt + 1
        case Suspend():
            return suspend.attempt(seen)
        case Queue():
            return kueue_decide.attempt(seen)
        case _:
            return seen.attempt


def next_pod_attempt(seen: Seen, decision: Decision) -> int:
    """The attempt for which the pods are, or will be, made: a new one wherever the pods are to stop."""
    match decision:
        case Restart(in_place=True):
            return seen.pod_attempt
        case Restart() | Resize() | Suspend() | Queue():
            return next_attempt(seen, decision)
        case _:
            return seen.pod_attempt


def replica_statuses(job: Job, pods: Iterable[Pod]) -> Object:
    """Counts of pods by role and phase."""
    pods = tuple(pods)
    desired = {names.MASTER: 1, names.WORKER: job.num_nodes - 1}
    return {
        role: {"desired": count, **_counts([pod for pod in pods if pod.role == role])}
        for role, count in desired.items()
        if count
    }


def resolved(job: Job) -> Object:
    """Sizes derived from the manifest, including the value that "auto" resolved to."""
    return {
        "worldSize": job.world_size,
        "dataParallelSize": derive.data_parallel_size(job.args, job.world_size),
        "microBatches": derive.num_micro_batches(job.args, job.world_size),
        "nprocPerNode": job.nproc_per_node,
    }


def changed(new: Object, old: Object, now: float, settled_at: float = 0.0) -> tuple[Object | None, float | None]:
    """(status to write or None, seconds until a throttled change may be written or None)."""
    if _hard(new) != _hard(old):
        return new, None
    if _soft(new) == _soft(old):
        return None, None
    due = max(_soft_due(new, old), settled_at)
    return (new, None) if now >= due else (None, due - now)


def tells_of_success(new: Object, old: Object) -> bool:
    """Whether more pods have succeeded than in the previous status."""
    return _num_succeeded(new) > _num_succeeded(old)


def _num_succeeded(status: Object) -> int:
    return sum(counts.get("succeeded", 0) for counts in (status.get("replicaStatuses") or {}).values())


def settled_at(seen: Seen, now: float) -> float:
    """Until when counts are delayed because a pod has ended: the others, and the job, usually follow at once."""
    ends = [pod.finished_at for pod in seen.current if pod.finished_at is not None and pod.finished_at <= now]
    return max(ends, default=0.0) + SETTLING_S


def _hard(status: Object) -> Object:
    """The part written at once: all but counts, progress, messages and transition times; also that all pods exist."""
    facts = {key: value for key, value in status.items() if key not in SOFT_FIELDS}
    shown = [(condition["type"], condition["status"]) for condition in status.get("conditions", ())]
    is_made = all(condition["reason"] != names.PODS_CREATING for condition in status.get("conditions", ()))
    return {**facts, "conditions": shown, "isMade": is_made, "completionTime": "completionTime" in status}


def _soft(status: Object) -> Object:
    facts = {key: status.get(key) for key in SOFT_FIELDS if key != "lastUpdatedTime"}
    wording = [(condition["reason"], condition["message"]) for condition in status.get("conditions", ())]
    return {**facts, "conditions": wording, "progress": _without_time(status.get("progress"))}


def _soft_due(new: Object, old: Object) -> float:
    """When a throttled change may be written: counts of pods, and progress within the same percent, wait longer."""
    written = to_seconds(old.get("lastUpdatedTime")) or 0.0
    others_differ = {**_soft(new), **QUIET} != {**_soft(old), **QUIET}
    percent = [(status.get("progress") or {}).get("percentage") for status in (new, old)]
    is_visible = others_differ or percent[0] != percent[1]
    return written + (SOFT_INTERVAL_S if is_visible else QUIET_INTERVAL_S)


def _without_time(progress: Object | None) -> Object:
    return {key: value for key, value in (progress or {}).items() if key != "lastUpdatedTime"}


def _counts(pods: list[Pod]) -> Object:
    phases = [pod.phase for pod in pods]
    return {
        "pending": phases.count("Pending"),
        "running": phases.count("Running"),
        "succeeded": phases.count("Succeeded"),
        "failed": phases.count("Failed") + phases.count("Unknown"),
    }


def _start_time(seen: Seen, decision: Decision, now: float) -> str | None:
    """When work on the job began; none while suspended or queued, so that a resumed job has its whole deadline."""
    if isinstance(decision, Suspend | Queue):
        return None
    return str(seen.status.get("startTime") or to_text(now))


def _restarts(seen: Seen, decision: Decision, now: float) -> Object:
    counters = decision.counters if isinstance(decision, Restart) else restart.read_counters(seen)
    attempt, of_pods = next_attempt(seen, decision), next_pod_attempt(seen, decision)
    made_for = {"podAttempt": of_pods} if of_pods != attempt else {}
    return {**counted(counters, attempt), **made_for, **_next_retry(seen, decision, now)}


def counted(counters: Counters, attempt: int) -> Object:
    """Counters in the form of status.restarts."""
    values = {
        "total": counters.total,
        "counted": counters.counted,
        "attempt": attempt,
        "uncountedInARow": counters.in_a_row,
        "checkpointIteration": counters.checkpoint_iteration,
        "memoryIteration": counters.memory_iteration,
    }
    return {key: value for key, value in values.items() if value is not None}


def _next_retry(seen: Seen, decision: Decision, now: float) -> Object:
    """The persisted end of the backoff, kept until the gang exists."""
    if isinstance(decision, Restart):
        return {"nextRetryTime": to_text(math.ceil(now + decision.delay_s))} if decision.delay_s else {}
    if isinstance(decision, Withdraw) and decision.pause_s is not None:
        return {"nextRetryTime": to_text(math.ceil(now + decision.pause_s))}
    before = seen.status.get("restarts", {}).get("nextRetryTime")
    is_in_place = seen.attempt != seen.pod_attempt  # it stays until something else is written: no write of its own
    is_over = bool(seen.current) and not isinstance(decision, Withdraw) and not is_in_place
    if before is None or is_over or isinstance(decision, Suspend | Queue | Fail | Succeed):
        return {}
    return {"nextRetryTime": before}


def _last_failure(seen: Seen, decision: Decision) -> Object | None:
    failure = decision.failure if isinstance(decision, Restart | Fail) else None
    return seen.status.get("lastFailure") if failure is None else describe_failure(failure)


def _spares(job: Job, seen: Seen, decision: Decision) -> Object | None:
    """Those that hold a node; none where this decision deletes them."""
    if not job.scheduling.spares:
        return None
    are_kept = not isinstance(decision, Succeed | Fail | Suspend | Queue | Withdraw)
    running = [pod for pod in seen.spares if are_kept and pod.phase == "Running" and not pod.deleting]
    return {"desired": job.scheduling.spares, "running": len(running)}


def _failed_nodes(job: Job, seen: Seen, decision: Decision, now: float) -> list[Object] | None:
    nodes = decision.failed_nodes if isinstance(decision, Restart) else node_exclusion.read(job, seen.status, now)
    return node_exclusion.describe(job.failure_policy.node_exclusion, nodes)


def describe_failure(failure: Failure) -> Object:
    """A failure in the form of status.lastFailure."""
    values = {
        "pod": failure.pod or None,
        "node": failure.node or None,
        "container": failure.container or None,
        "containerKind": failure.container_kind if failure.container else None,
        "exitCode": failure.exit_code,
        "rank": failure.rank,
        "reason": failure.reason,
        "message": failure.message or None,
        "iteration": failure.iteration,
        "host": failure.host or None,
        "stack": failure.stack or None,
        "gpuError": failure.gpu_error or None,
        "attempt": failure.attempt,
        "time": to_text(failure.time),
    }
    return {key: value for key, value in values.items() if value is not None}


def _progress(seen: Seen) -> Object | None:
    progress = seen.progress
    return seen.status.get("progress") if progress is None else describe_progress(progress)


def describe_progress(progress: Progress) -> Object:
    """A progress record in the form of status.progress; metric values are text, as in Kubeflow Trainer."""
    values = {
        "iteration": progress.iteration,
        "totalIterations": progress.total_iterations,
        "percentage": progress.percentage,
        "estimatedRemainingSeconds": _whole(progress.remaining_s),
        "tokensPerSecondPerGPU": _rounded(progress.tokens_per_second_per_gpu),
        "metrics": [
            {"name": name, "value": f"{value:.6g}"} for name, value in list(progress.metrics.items())[:MAX_METRICS]
        ],
        "lastUpdatedTime": to_text(progress.updated_at),
        "attempt": progress.attempt,
    }
    return {key: value for key, value in values.items() if value is not None}


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 1)


def _checkpoint(seen: Seen) -> Object | None:
    before: Object | None = seen.status.get("checkpoint")
    progress = seen.progress
    if progress is None or progress.checkpoint_iteration is None:
        return before
    if before and before.get("latestIteration") == progress.checkpoint_iteration:
        return before
    return {
        "latestIteration": progress.checkpoint_iteration,
        "path": progress.checkpoint_path or "",
        "time": to_text(progress.updated_at),
    }


def _gang(job: Job, attempt: int, seen: Seen) -> Object | None:
    if job.scheduling.gang == "None":
        return None
    phase = seen.gang.phase if seen.gang else ""
    return {"kind": "PodGroup", "name": names.group_name(job.name, attempt), "phase": phase}
