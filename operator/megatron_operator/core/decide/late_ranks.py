"""A restart in place that does not come back in time: a new gang is made instead."""

from __future__ import annotations

from dataclasses import replace

from megatron_operator.api import names
from megatron_operator.core.decide import hang, in_place, node_exclusion, restart
from megatron_operator.core.decide.decision import Failure, Restart
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.timestamp import to_seconds

# From the decision (or the end of its back-off) until every launcher must have started the ranks, or a container that
# is started again must have its launcher heard, which then has time for its imports.
START_S = 20.0
CONTAINER_START_S = 40.0
IMPORT_S = 300.0


def decide(job: Job, seen: Seen, now: float) -> Restart | None:
    """A new gang with an attempt of its own; the failure before was counted, and this adds none to it."""
    late = [pod for pod in _awaited(seen) if now >= _due(pod, seen, now)]
    if not late:
        return None
    failure = Failure(
        reason=names.NOT_STARTED_IN_PLACE,
        message=f"Its launcher has not started the ranks of attempt {seen.attempt} in time.",
        pod=late[0].name,
        node=late[0].node,
        attempt=seen.attempt,
        time=now,
    )
    counters = restart.read_counters(seen)
    return Restart(
        reason=names.NOT_STARTED_IN_PLACE,
        failure=failure,
        counters=replace(counters, total=counters.total + 1),
        delay_s=0.0,
        failed_nodes=node_exclusion.after(job, seen.status, failure, "failed", failure.reason, now),
    )


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the ranks of a restart in place must have been started everywhere; None when they are, or without one."""
    awaited = _awaited(seen)
    silent = [heard.at + in_place.FRESH_S for pod in awaited if (heard := in_place.of_attempt(seen, pod))]
    moments = [*(_due(pod, seen, now) for pod in awaited), *silent]
    return min((at for at in moments if at > now), default=None)


def _awaited(seen: Seen) -> list[Pod]:
    """Pods in which the ranks of a restart in place have not been started.

    Ranks that were once started stay so, however silent launchers become: their line to the operator may be cut while
    they train.
    """
    return [] if seen.attempt == seen.pod_attempt or _have_started(seen) else in_place.late(seen)


def _due(pod: Pod, seen: Seen, now: float) -> float:
    """When the ranks of this pod must have been started. An operator that has just begun first listens for a while."""
    decided = to_seconds(seen.status.get("lastRestartTime")) or 0.0
    may_start = to_seconds(seen.status.get("restarts", {}).get("nextRetryTime")) or decided
    heard = in_place.of_attempt(seen, pod)
    imports = heard is not None and now - heard.at < in_place.FRESH_S
    comes_back = CONTAINER_START_S if pod.is_down or pod.num_container_restarts else START_S
    return max(decided, may_start, seen.listens_since) + (IMPORT_S if imports else comes_back)


def _have_started(seen: Seen) -> bool:
    """Whether ranks of this attempt have been started on all nodes, by the status or because they train."""
    last = seen.status.get("lastRestart") or {}
    is_noted = last.get("attempt") == seen.attempt and "ranksStartedTime" in last
    return is_noted or (seen.beat is not None and seen.beat.phase in hang.BEATING_PHASES)
