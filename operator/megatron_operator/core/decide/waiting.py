"""Waits before training: for the queue or for nodes, and of scheduled pods that cannot start.

`status.waiting` persists their start by our own clock, because nodes' clocks differ and a restarted operator
has to know it. A fetch by spec.initializers is work, not a wait, however long it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.decide import failure, whole
from megatron_operator.core.decide import kueue as kueue_decide
from megatron_operator.core.decide.decision import Continue, Decision, Queue, Wait, Withdraw
from megatron_operator.core.desired import gang
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.timestamp import to_seconds, to_text

Object = Mapping[str, Any]
# Why the kubelet cannot make or start a container whose image it has. Any other reason is its image's: what failed a
# pull alternates with ImagePullBackOff, and kubelets and runtimes learn new words for it.
CONTAINER_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "PostStartHookError",
        "RunContainerError",
        "CrashLoopBackOff",
    }
)
VOLUME_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume", "VolumeResizeFailed"})
# A sidecar's probes fail for a few seconds in every start: no trouble, unless they continue to.
PROBE_REASONS = frozenset({"Unhealthy", "ProbeWarning"})
LOOK_INTERVAL_S = (3.0, 30.0)
# A pod that is placed and has its image runs within seconds; a longer wait is reported, though no one says why.
SLOW_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Hindrance:
    """What prevents one scheduled pod from starting. `cause` stays the same while reason and message alternate.

    is_trouble: whether it is certainly a problem, rather than slow work such as a user's own init container.
    """

    pod: Pod
    cause: str
    reason: str
    message: str
    is_trouble: bool = True


def hindrance(job: Job, pod: Pod) -> Hindrance | None:
    """What prevents this pod from starting; None if it is unscheduled, makes progress, or fetches."""
    if pod.phase != "Pending" or pod.deleting:
        return None
    if pod.waiting:
        cause = pod.waiting if pod.waiting in CONTAINER_REASONS else "Image"
        return Hindrance(pod=pod, cause=cause, reason=pod.waiting, message=pod.waiting_message)
    if pod.warning and pod.warning not in PROBE_REASONS:
        cause = "Volume" if pod.warning in VOLUME_REASONS else pod.warning
        return Hindrance(pod=pod, cause=cause, reason=pod.warning, message=pod.warning_message)
    if pod.initializing and pod.initializing not in {each.name for each in job.initializers}:
        cause = f"InitContainer {pod.initializing}"
        message = ". ".join(filter(None, (f"init container {pod.initializing} has not ended", pod.warning_message)))
        return Hindrance(pod=pod, cause=cause, reason="InitContainerRunning", message=message, is_trouble=False)
    return None


def hindrances(job: Job, seen: Seen) -> Iterator[Hindrance]:
    """What prevents this attempt's pods from starting: first the wait that the status has, then in rank order."""
    found = [each for pod in seen.current if (each := hindrance(job, pod))]
    known = _stored(seen)
    yield from sorted(found, key=lambda each: not _is_same(each, known))


def starts_since(job: Job, seen: Seen, now: float) -> tuple[Hindrance, float] | None:
    """The longest known wait of a scheduled pod and when it began."""
    longest = next(hindrances(job, seen), None)
    if longest is None:
        return None
    known = _stored(seen)
    return longest, (to_seconds(known.get("startupSince")) or now) if _is_same(longest, known) else now


def for_a_place(job: Job, seen: Seen, now: float) -> str | None:
    """Why the job is not scheduled yet, in the words of queue or scheduler; None if it is."""
    if queued := kueue_decide.decide(job, seen, now):
        return queued.message
    if refusal := _why_refused(job, seen):
        return refusal
    for pod in seen.current:
        if pod.phase == "Pending" and pod.scheduled_at is None and not pod.node:
            return f"Pod {pod.name}: {why_unplaced(pod)}"
    return why_held(job, seen)


def why_held(job: Job, seen: Seen) -> str | None:
    """Why the gang's scheduler does not let its pods be created yet; None if it does, or there is no such scheduler."""
    group = seen.gang
    if group is None or not group.served or seen.current or gang.admits_pods(group.phase, job.scheduling.gang):
        return None
    queue = f"Volcano queue {job.scheduling.queue or 'default'}"
    if not group.phase:
        return f"No scheduler has looked at PodGroup {group.name} yet, which is for {queue}."
    return f"{queue} has not admitted PodGroup {group.name}. {group.message}".rstrip()


def _why_refused(job: Job, seen: Seen) -> str | None:
    """Why the gang has not been created: half of it, or all, is rejected, or was when another operator last tried."""
    if not failure.missing(job, seen) or failure.was_complete(job, seen):
        return None
    if seen.problem is not None:
        return seen.problem[1]
    was_refused = "schedulingSince" in _stored(seen) and seen.is_true(names.STALLED) and not seen.current
    if whole.refused_since(seen) is None and not was_refused:
        return None
    return str((seen.condition(names.STALLED) or {}).get("message", ""))


def why_unplaced(pod: Pod) -> str:
    """Why a pod has no node, as far as known."""
    if pod.gated:
        return f"scheduling gate {pod.gate} holds it back" if pod.gate else "a scheduling gate holds it back"
    return pod.unschedulable or "no scheduler has placed it or reported why"


def slow(seen: Seen, now: float) -> list[Pod]:
    """Pods that have not started for a minute since their creation, where that is known."""
    pending = [pod for pod in seen.current if pod.phase == "Pending" and pod.created_at]
    return [pod for pod in pending if now >= pod.created_at + SLOW_S]


def why_slow(pod: Pod) -> str:
    """What is known about a pod that has not started, and of which no one says why."""
    if not pod.node:
        return why_unplaced(pod)
    return f"has not started on node {pod.node} within {SLOW_S:.0f} s; its image may still be pulled"


def place_since(seen: Seen, now: float) -> float:
    """When the current wait for nodes began."""
    return to_seconds(_stored(seen).get("schedulingSince")) or now


def describe(job: Job, seen: Seen, decision: Decision, now: float) -> Object | None:
    """status.waiting after this decision, None without a wait; the wait for nodes only where it has a deadline."""
    if not isinstance(decision, Continue | Wait | Queue | Withdraw):
        return None
    waits: dict[str, Any] = {}
    refused_since = whole.refused_since(seen) or (now if isinstance(decision, Withdraw) else None)
    if refused_since is not None and not isinstance(decision, Queue) and failure.missing(job, seen):
        waits["refusedSince"] = to_text(refused_since)
    if job.run_policy.scheduling_timeout_s is not None and for_a_place(job, seen, now):
        waits["schedulingSince"] = to_text(place_since(seen, now))
    if start := starts_since(job, seen, now):
        longest, since = start
        waits |= {"startupSince": to_text(since), "pod": longest.pod.name, "cause": longest.cause}
    return waits or None


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When to check pods again that neither start nor say why: no watch delivers the events of scheduled ones."""
    first, last = LOOK_INTERVAL_S
    pending = [pod for pod in seen.current if pod.phase == "Pending"]
    silent = [pod for pod in pending if pod.node and not pod.waiting]
    looks = [now + min(max(now - (pod.scheduled_at or now), first), last) for pod in silent]
    slow_at = [pod.created_at + SLOW_S for pod in pending if not pod.node and pod.created_at + SLOW_S > now]
    return min([*looks, *slow_at], default=None)


def _stored(seen: Seen) -> Object:
    known: Object = seen.status.get("waiting") or {}
    return known


def _is_same(found: Hindrance, known: Object) -> bool:
    return (found.pod.name, found.cause) == (known.get("pod"), known.get("cause"))
