"""A restart in place that does not come back in time: a new gang is made instead."""

from __future__ import annotations

from dataclasses import replace

from megatron_operator.api import names
from megatron_operator.core.decide import hang, in_place, restart
from megatron_operator.core.decide.decision import Failure, Restart
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.timestamp import to_seconds

# From the decision (or the end of its back-off) until every launcher must have started the ranks.
START_S = 20.0


def decide(job: Job, seen: Seen, now: float) -> Restart | None:
    """A new gang with an attempt of its own; the failure before was counted, and this adds none to it."""
    ends = wake_at(job, seen, now)
    if ends is None or now < ends:
        return None
    late = in_place.late(seen)[0]
    failure = Failure(
        reason=names.NOT_STARTED_IN_PLACE,
        message=f"Its launcher has not started the ranks of attempt {seen.attempt} within {START_S:.0f} s.",
        pod=late.name,
        node=late.node,
        attempt=seen.attempt,
        time=now,
    )
    counters = restart.read_counters(seen)
    return Restart(
        reason=names.NOT_STARTED_IN_PLACE,
        failure=failure,
        counters=replace(counters, total=counters.total + 1),
        delay_s=0.0,
    )


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the ranks of a restart in place must have been started everywhere; None when they are, or without one.

    Ranks that were once started stay so, however silent launchers become: their line to the operator may be cut while
    they train. An operator that has just begun first gives the launchers time to be heard.
    """
    if seen.attempt == seen.pod_attempt or _have_started(seen) or not in_place.late(seen):
        return None
    decided = to_seconds(seen.status.get("lastRestartTime")) or 0.0
    may_start = to_seconds(seen.status.get("restarts", {}).get("nextRetryTime")) or decided
    return max(decided, may_start, seen.listens_since) + START_S


def _have_started(seen: Seen) -> bool:
    """Whether ranks of this attempt have been started on all nodes, by the status or because they train."""
    last = seen.status.get("lastRestart") or {}
    is_noted = last.get("attempt") == seen.attempt and "ranksStartedTime" in last
    return is_noted or (seen.beat is not None and seen.beat.phase in hang.BEATING_PHASES)
