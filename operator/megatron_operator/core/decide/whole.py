"""All or nothing: if the API server rejects some pods of an attempt, those that it accepted are deleted.

A partial gang trains nothing and holds quota that another partial gang waits for. The whole gang is retried after
growing pauses; this is not a restart. `status.waiting.refusedSince` persists the state across operator restarts.
"""

from __future__ import annotations

import zlib

from megatron_operator.api import names
from megatron_operator.core.decide import failure
from megatron_operator.core.decide.decision import Withdraw
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.timestamp import to_seconds

PAUSE_S = (5.0, 60.0)


def decide(job: Job, seen: Seen, now: float) -> Withdraw | None:
    """Delete the pods after a rejection and create none during the pause; None if the gang may be created."""
    missing = failure.missing(job, seen)
    if not missing or failure.was_complete(job, seen):
        return None
    since = refused_since(seen)
    if seen.problem is not None and (seen.current or since is not None):
        pause_s = _pause_s(job, since, now)
        reason, words = named(seen.problem)
        made = job.num_nodes - len(missing)
        message = f"Only {made} of {job.num_nodes} pods were accepted; they are deleted, and all are retried. {words}"
        return Withdraw(reason=reason, message=message, pause_s=pause_s)
    if since is not None and seen.current:
        stalled = seen.condition(names.STALLED) or {}
        return Withdraw(reason=stalled.get("reason", names.REFUSED), message=stalled.get("message", ""))
    return None


def _pause_s(job: Job, since: float | None, now: float) -> float:
    """The pause after a rejection: another one for each job and try, or two gangs would take each other's room forever.

    Drawn from the job's uid and the time rather than from chance: a decision is the same for the same observation.
    """
    first, last = PAUSE_S
    if since is None:
        return first
    longest = min(max(2 * (now - since), 2 * first), last)
    share = zlib.crc32(f"{job.uid} {now:.0f}".encode()) / 2**32
    return first + (longest - first) * share


def refused_since(seen: Seen) -> float | None:
    """When pods of this attempt were first rejected, None if they were not."""
    return to_seconds((seen.status.get("waiting") or {}).get("refusedSince"))


def named(problem: tuple[str, str]) -> tuple[str, str]:
    """The server reports an exhausted quota as Forbidden, like every rejection by a policy."""
    reason, message = problem
    return (names.QUOTA_EXCEEDED if "exceeded quota" in message else reason), message
