"""Restart in place: the ranks start again in their living pods. What it takes, and how far it is.

A launcher whose ranks have failed lives on and reports it, or the kubelet starts its container again; its pod then
counts as failed in every policy, and stays where the answer is a restart that this way can carry out. Pods, addresses,
volumes and devices are kept.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_operator.core import kubelet_reasons
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.core.pod_end import ContainerEnd
from megatron_trainjob import launcher
from megatron_trainjob.environment import DEFAULT_LAUNCHER_PATIENCE_S

# Pods that wait longer than this for the end of a back-off only hold devices.
LONGEST_DELAY_S = 30.0
# A launcher ends this soon after the job: it hears so, or else loses its patience.
ENDS_WITHIN_S = 2 * DEFAULT_LAUNCHER_PATIENCE_S
# An older report is no sign of life; and a launcher that reports less often would learn of a restart too late.
FRESH_S = 15.0
# The kubelet starts a container again at once, then after 10 s, 20 s and so on.
MOST_CONTAINER_RESTARTS = 1
# One that has not started for so long, and whose launcher no one has heard, does not: an older kubelet knows no rule.
STARTS_WITHIN_S = 60.0
# An operator that has just begun hears of a failure before it has heard all launchers, which report every second.
LISTENS_S = 3.0


def with_failures(seen: Seen, now: float) -> Seen:
    """The observation, with pods whose launcher reports failed ranks of this attempt shown as failed, and kept."""
    pods = tuple(_with_failure(pod, seen, now) for pod in seen.pods)
    return replace(seen, pods=pods) if pods != seen.pods else seen


def after_the_end(seen: Seen, now: float) -> Seen:
    """The same when the job has ended: such a pod is about to end by itself, and its log stays as any failed pod's."""
    ending = {name: heard for name, heard in seen.launchers.items() if now - heard.at < ENDS_WITHIN_S}
    return with_failures(replace(seen, launchers=ending), now)


def given_up_at(job: Job, seen: Seen, now: float) -> float | None:
    """When a container that should have started again, and was not heard, counts as ended; None without one."""
    silent = [pod for pod in seen.current if _is_down(pod, seen) or _runs_unheard(pod, seen)]
    return min((_start_is_due(pod, seen) for pod in silent), default=None)


def wake_at(seen: Seen) -> float | None:
    """When a pod that should have ended by itself counts as running again; None without one."""
    return min((seen.launchers[pod.name].at + ENDS_WITHIN_S for pod in seen.current if pod.is_kept), default=None)


def is_possible(job: Job, seen: Seen, delay_s: float, now: float) -> bool:
    """Whether the restart that has been decided can be one in place.

    Not where a pod has ended or is going, or a launcher is silent, and not twice in a row without a step in between:
    a new gang may find a better node.
    """
    if not job.failure_policy.in_place_restart or delay_s > LONGEST_DELAY_S:
        return False
    if len(seen.current) != job.num_nodes or not all(_can_start_ranks(pod, seen, now) for pod in seen.current):
        return False
    return seen.attempt == seen.pod_attempt or _has_stepped(seen)


def still_listens(job: Job, seen: Seen, now: float) -> bool:
    """Whether a launcher reports failed ranks to an operator so new that others, which may live, are yet unheard."""
    if not job.failure_policy.in_place_restart or now >= seen.listens_since + LISTENS_S:
        return False
    unheard = [pod for pod in seen.current if pod.name not in seen.launchers]
    live = all(pod.phase == "Running" and not pod.deleting for pod in unheard)
    return bool(unheard) and live and any(pod.is_kept for pod in seen.current)


def listened_at(job: Job, seen: Seen, now: float) -> float | None:
    """When a new operator has listened for long enough."""
    return seen.listens_since + LISTENS_S if still_listens(job, seen, now) else None


def started_at(seen: Seen) -> float | None:
    """When the last launcher had started the ranks of this attempt, None while one has not."""
    if not seen.current or late(seen):
        return None
    return max(seen.launchers[pod.name].since for pod in seen.current)


def late(seen: Seen) -> list[Pod]:
    """Pods without a word of ranks of this attempt that were started."""
    heard = ((pod, of_attempt(seen, pod)) for pod in seen.current)
    return [pod for pod, report in heard if report is None or report.report.state == "starting"]


def of_attempt(seen: Seen, pod: Pod) -> HeardReport | None:
    """What the pod's launcher last said of ranks of this attempt."""
    heard = seen.launchers.get(pod.name)
    return heard if heard is not None and heard.report.attempt == seen.attempt else None


def _with_failure(pod: Pod, seen: Seen, now: float) -> Pod:
    if pod.attempt != seen.pod_attempt or pod.phase != "Running" or pod.deleting:
        return pod
    heard = of_attempt(seen, pod)
    end = _end_of_down(pod, seen, now) if _is_down(pod, seen) else _reported_end(pod, heard)
    if end is None and _runs_unheard(pod, seen) and now >= _start_is_due(pod, seen):
        end = pod.last_end
    if end is None:
        return pod
    is_kept = heard is not None and not _starts_unasked(pod, heard)
    # One that no one hears would be started again for as long as its pod exists, and one that does not ask trains.
    return replace(pod, **vars(end), phase="Failed", is_kept=is_kept, is_outlived=not is_kept)


def _is_down(pod: Pod, seen: Seen) -> bool:
    """Whether the trainer's container has ended and is not known to run again: launchers are heard before kubelets."""
    heard = seen.launchers.get(pod.name)
    number = 0 if heard is None else heard.report.container or 0
    return pod.is_down and number <= pod.num_container_restarts


def _starts_unasked(pod: Pod, heard: HeardReport) -> bool:
    """Whether a launcher of an earlier release is, or will be, started again: it waits for no word, and trains."""
    return heard.report.container is None and (pod.is_down or pod.num_container_restarts > 0)


def _runs_unheard(pod: Pod, seen: Seen) -> bool:
    """Whether a container that was started again runs without a word, though no one decided that it may.

    A launcher of this release is heard, or ends when no one answers; one that does neither trains, as one from before
    reports of launchers does.
    """
    is_silent = pod.name not in seen.launchers and seen.attempt == seen.pod_attempt
    return pod.has_attempt_file and pod.num_container_restarts > 0 and not pod.is_down and is_silent


def _start_is_due(pod: Pod, seen: Seen) -> float:
    ended = pod.last_end.finished_at if pod.last_end else None
    return max(ended or 0.0, seen.listens_since) + STARTS_WITHIN_S


def _end_of_down(pod: Pod, seen: Seen, now: float) -> ContainerEnd | None:
    """How this attempt's ranks ended with their container; None where that was decided about already.

    After a decision the container has yet to start again: its launcher then speaks of the attempt before. One that was
    never heard, and ends again and again or never starts, does not do so in silence.
    """
    is_loop = pod.num_container_restarts > 0 or now >= _start_is_due(pod, seen)
    is_silent = is_loop and seen.attempt == seen.pod_attempt
    return pod.last_end if of_attempt(seen, pod) is not None or is_silent else None


def _reported_end(pod: Pod, heard: HeardReport | None) -> ContainerEnd | None:
    """How ranks of this attempt ended that the launcher outlived, or of which it found only the attempt."""
    if heard is None:
        return None
    if heard.report.failure is None:
        return pod.last_end if _starts_unasked(pod, heard) else None
    record = heard.report.failure
    if record.reason == launcher.CONTAINER_ENDED and pod.last_end is not None:
        return pod.last_end
    return ContainerEnd(
        exit_code=record.exit_code,
        is_recorded=True,
        rank=record.rank,
        reason="" if kubelet_reasons.is_kubelets(record.reason) else record.reason,
        message=record.message,
        iteration=record.iteration,
        host=record.host,
        stack=record.stack,
        gpu_error=record.gpu_error,
        finished_at=heard.since,
    )


def _has_stepped(seen: Seen) -> bool:
    """Whether rank 0 of this attempt has done a step. Its iteration does not tell: it starts from any checkpoint."""
    master, last = of_attempt(seen, seen.current[0]), seen.status.get("lastRestart") or {}
    is_noted = last.get("attempt") == seen.attempt and "firstStepTime" in last
    return is_noted or (master is not None and "firstStep" in master.report.stages_s)


def _can_start_ranks(pod: Pod, seen: Seen, now: float) -> bool:
    heard = of_attempt(seen, pod)
    is_alive = (pod.phase == "Running" or pod.is_kept) and not pod.deleting and pod.disruption is None
    if heard is None or not is_alive or pod.node in seen.lost_nodes:
        return False
    if _starts_unasked(pod, heard):
        return False
    return pod.num_container_restarts <= MOST_CONTAINER_RESTARTS if _is_down(pod, seen) else now - heard.at < FRESH_S
