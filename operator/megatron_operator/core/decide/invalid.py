"""A child object that the API server's own validation rejects: it would be rejected again, so the job fails.

Only for a job that has had no gang yet. An object that was accepted once is not invalid by itself: a webhook may
break pods for a while, and the job waits (Stalled) until it is fixed.
"""

from __future__ import annotations

from megatron_operator.api import names
from megatron_operator.core.decide import failure
from megatron_operator.core.decide.decision import Fail
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen


def decide(job: Job, seen: Seen, now: float) -> Fail | None:
    """Fail with the server's message."""
    if seen.problem is None or seen.problem[0] != names.INVALID_OBJECT or _was_taken(job, seen):
        return None
    message = f"The API server rejects this object as invalid: {seen.problem[1]} Correct it in a new job."
    return Fail(reason=names.INVALID_SPEC, message=message)


def _was_taken(job: Job, seen: Seen) -> bool:
    return seen.attempt > 0 or failure.was_complete(job, seen)
