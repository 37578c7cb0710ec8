"""Hang detection: a training gang without a heartbeat for too long is restarted."""

from __future__ import annotations

from megatron_operator.api import names
from megatron_operator.core.decide import restart
from megatron_operator.core.decide.decision import Fail, Failure, Restart
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen

# In these phases the trainer refreshes its record; loading a model or tokenizing may legitimately take hours.
BEATING_PHASES = frozenset({"training", "evaluating", "saving"})


def decide(job: Job, seen: Seen, now: float) -> Restart | Fail | None:
    """Restart when the heartbeat is too old; this counts as a failure."""
    ends = wake_at(job, seen, now)
    if ends is None or now < ends or seen.beat is None:
        return None
    seconds = job.failure_policy.hang_timeout_s
    failure = Failure(
        reason=names.HUNG,
        pod=names.pod_name(job.name, seen.pod_attempt, 0),
        message=f"No heartbeat for {seconds} s (hangTimeoutSeconds) in phase {seen.beat.phase}.",
        iteration=seen.beat.iteration,
        attempt=seen.attempt,
        time=now,
    )
    verdict = restart.judge(job, seen, failure)
    if verdict.kind == "failed":
        verdict = restart.Verdict(kind="failed", reason=names.HUNG)
    return restart.answer(job, seen, failure, verdict, now)


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the current heartbeat becomes too old.

    None without one: a heartbeat that never arrived only proves that heartbeats cannot be delivered. Those that were
    sent while no operator listened were lost, so that silence counts from when this one began to.
    """
    beat, seconds = seen.beat, job.failure_policy.hang_timeout_s
    if beat is None or not seconds or beat.phase not in BEATING_PHASES or not _all_run(job, seen):
        return None
    return max(beat.updated_at, seen.listens_since) + seconds


def _all_run(job: Job, seen: Seen) -> bool:
    running = [pod for pod in seen.current if pod.phase == "Running"]
    return len(running) == job.num_nodes
