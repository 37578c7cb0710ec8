"""Backoff: how long to wait before the next attempt, and whether it may start yet."""

from __future__ import annotations

from megatron_operator.api.values import FailurePolicy
from megatron_operator.core.decide.decision import Counters
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.timestamp import to_seconds

# A kubelet reports the end of a pod a few moments after its grace period.
GRACE_MARGIN_S = 10.0
# Unmounting a slow volume takes a while; after this, someone has to investigate.
LATE_S = 60.0
# A gang that lived this long after its back-off was not disrupted by what disrupted the one before.
QUICK_S = 10.0


def delay_s(policy: FailurePolicy, counters: Counters, kind: str, lived_s: float = float("inf")) -> float:
    """Seconds before the next attempt: 0 after a disruption, else doubling with each restart in a row.

    A disruption of a gang that has just been restarted waits too: whatever removes pods may remove every one.
    """
    if kind == "disrupted":
        return float(policy.backoff_initial_s) if lived_s < policy.backoff_initial_s + QUICK_S else 0.0
    step = counters.in_a_row or counters.counted
    return float(min(policy.backoff_max_s, policy.backoff_initial_s * 2 ** min(max(step - 1, 0), 30)))


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the persisted backoff ends, or a terminating pod's grace period."""
    retry = to_seconds(seen.status.get("restarts", {}).get("nextRetryTime"))
    ends = [pod.grace_ends for pod in blocking(seen, now) if pod.grace_ends is not None]
    moments = [end + margin for end in ends for margin in (GRACE_MARGIN_S, LATE_S) if end + margin > now]
    return min([*moments, retry] if retry is not None else moments, default=None)


def may_start(seen: Seen, now: float) -> bool:
    """Whether pods of this attempt may be created: the backoff is over and no earlier pod may still run."""
    retry = to_seconds(seen.status.get("restarts", {}).get("nextRetryTime"))
    return (retry is None or now >= retry) and not blocking(seen, now)


def blocking(seen: Seen, now: float) -> tuple[Pod, ...]:
    """Pods of a deleted job of the same name, and of earlier attempts, that may still run.

    Two concurrent gangs would write the same checkpoint. A pod of the job before also has a name that is needed, so
    that the loss of its node does not help.
    """
    before = (pod for pod in seen.predecessors if not pod.is_finished)
    return (*before, *(pod for pod in seen.stale if not pod.is_finished and not _is_lost(pod, seen, now)))


def overdue(seen: Seen, now: float) -> tuple[Pod, ...]:
    """Those of them whose end is overdue."""
    late = now - LATE_S
    return tuple(pod for pod in blocking(seen, now) if pod.grace_ends is not None and pod.grace_ends < late)


def _is_lost(pod: Pod, seen: Seen, now: float) -> bool:
    """Whether the pod's end will never be reported: its node is gone and its grace period is over."""
    is_over = pod.grace_ends is not None and now > pod.grace_ends + GRACE_MARGIN_S
    return pod.deleting and is_over and pod.node in seen.lost_nodes
