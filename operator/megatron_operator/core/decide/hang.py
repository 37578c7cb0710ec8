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
    failure = Failure(
        reason=names.HUNG,
        pod=names.pod_name(job.name, seen.pod_attempt, 0),
        message=message(job.failure_policy.hang_timeout_s, seen.beat.phase),
        iteration=seen.beat.iteration,
        attempt=seen.attempt,
        time=now,
    )
    verdict = restart.judge(job, seen, failure)
    if verdict.kind == "failed":
        verdict = restart.Verdict(kind="failed", reason=names.HUNG)
    return restart.answer(job, seen, failure, verdict, now)


def message(seconds: int, phase: str) -> str:
    """What a silence of so many seconds is reported as."""
    return f"No heartbeat for {seconds} s (hangTimeoutSeconds) in phase {phase}."


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the current heartbeat becomes too old.

    None without one: a heartbeat that never arrived only proves that heartbeats cannot be delivered. Those that were
    sent while no operator listened were lost, so that silence counts from when this one began to.
    """
    return silent_until(seen, job.failure_policy.hang_timeout_s, job.num_nodes)


def silent_until(seen: Seen, seconds: int, num_pods: int) -> float | None:
    """The same for a gang of so many pods and a timeout of so many seconds; 0 seconds: never."""
    beat = seen.beat
    if beat is None or not seconds or beat.phase not in BEATING_PHASES or not _all_run(seen, num_pods):
        return None
    return max(beat.updated_at, seen.listens_since) + seconds


def _all_run(seen: Seen, num_pods: int) -> bool:
    running = [pod for pod in seen.current if pod.phase == "Running"]
    return len(running) == num_pods
