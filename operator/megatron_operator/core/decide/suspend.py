"""Suspension: spec.suspend stops the pods and keeps everything else."""

from __future__ import annotations

from megatron_operator.api import names
from megatron_operator.core.decide.decision import Suspend
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen


def decide(job: Job, seen: Seen, now: float) -> Suspend | None:
    """Suspend while the manifest says so."""
    return Suspend() if job.suspend else None


def attempt(seen: Seen) -> int:
    """The attempt to persist while suspended: the next one once any pod of the current one was created.

    A resumed job may have different arguments and nodes, and previous pods may still be terminating under
    their names, so it never reuses an attempt.
    """
    has_started = bool(seen.current) or seen.status.get("startTime") is not None
    return seen.attempt + 1 if has_started and not seen.is_true(names.SUSPENDED) else seen.attempt
