"""Restart or fail: the response to a failed attempt. Always the whole gang, never a single pod.

A surviving rank of a broken collective hangs, so replacing one pod (as PyTorchJob does) cannot work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from megatron_operator.api import names
from megatron_operator.api.values import Rule
from megatron_operator.core import kubelet_reasons
from megatron_operator.core.decide import failure as failures
from megatron_operator.core.decide import in_place, node_exclusion, program
from megatron_operator.core.decide.backoff import delay_s
from megatron_operator.core.decide.decision import Counters, Fail, Failure, Restart, Undecided
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.timestamp import to_seconds
from megatron_trainjob.exit_codes import ExitCode

MAX_IN_A_ROW = 10

Kind = Literal["disrupted", "admission", "failed", "never"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The response to one failure."""

    kind: Kind
    reason: str
    message: str = ""


def decide(job: Job, seen: Seen, now: float) -> Restart | Fail | Undecided | None:
    """Restart the gang, or fail the job, when this attempt has failed."""
    failure = failures.find(job, seen, now)
    if failure is not None and in_place.still_listens(job, seen, now):
        return Undecided()
    if failure is not None:
        return answer(job, seen, failure, judge(job, seen, failure), now)
    return None if failures.wake_at(job, seen, now) is None else Undecided()


def judge(job: Job, seen: Seen, failure: Failure) -> Verdict:
    """The user's first matching rule, else the default for this kind of failure."""
    for rule in job.failure_policy.rules:
        if matches(rule, failure):
            return _by_rule(rule, failure, seen)
    return by_default(job, seen, failure)


def matches(rule: Rule, failure: Failure) -> bool:
    """Whether every list in the rule contains the failure's value."""
    code_matches = not rule.exit_codes or failure.exit_code in rule.exit_codes
    return code_matches and (not rule.reasons or failure.reason in rule.reasons)


def by_default(job: Job, seen: Seen, failure: Failure) -> Verdict:
    """The default response to a failure that no rule of the user matches."""
    restart_reason = _restart_reason(seen, failure)
    if is_disruption(seen, failure):
        return Verdict(kind="disrupted", reason=restart_reason)
    if kubelet_reasons.is_own_limit(failure.reason, failure.message):
        return Verdict(kind="failed", reason=restart_reason)
    if kubelet_reasons.is_admission(failure.reason):
        return Verdict(kind="admission", reason=restart_reason)
    if refusal := program.refusal(failure.reason, failure.message):
        remedy = "spec.command or spec.image" if failure.container_kind == "Trainer" else "its command or image"
        message = f"{failure.place.capitalize()} cannot start {refusal}. Correct {remedy} in a new job."
        return Verdict(kind="never", reason=names.STARTUP_FAILED, message=message)
    if failures.is_final_code(job, failure):
        if failure.exit_code == ExitCode.OUT_OF_DEVICE_MEMORY:
            return Verdict(kind="never", reason=names.OUT_OF_DEVICE_MEMORY, message=_out_of_device_memory(failure))
        message = f"Pod {failure.pod} ended with {failure.reason} ({failure.exit_code}); a retry cannot help."
        return Verdict(kind="never", reason=names.NON_RETRYABLE_EXIT, message=message)
    if is_repeated_out_of_memory(seen, failure):
        message = f"Pod {failure.pod} was OOM-killed twice at iteration {failure.iteration}."
        return Verdict(kind="never", reason=names.OOM_KILLED, message=message)
    return Verdict(kind="failed", reason=restart_reason)


def _out_of_device_memory(failure: Failure) -> str:
    """With the trainer's own message, which says what would fit."""
    where = "" if failure.iteration is None else f" after iteration {failure.iteration}"
    return f"Pod {failure.pod} ran out of GPU memory{where}: {failure.message or 'it left no message; check its log.'}"


def is_disruption(seen: Seen, failure: Failure) -> bool:
    """Whether the cluster or a person removed the pod."""
    if failure.reason == failures.POD_DELETED:
        return True
    pod = next((pod for pod in seen.current if pod.name == failure.pod), None)
    return pod is not None and (pod.disruption is not None or pod.deleting)


def is_repeated_out_of_memory(seen: Seen, failure: Failure) -> bool:
    """Whether the previous attempt ran out of memory at the same iteration: a third would, too.

    Two failures at unknown iterations prove nothing.
    """
    before = seen.status.get("lastFailure") or {}
    return (
        failure.iteration is not None
        and failure.reason == names.OOM_KILLED
        and before.get("reason") == names.OOM_KILLED
        and before.get("attempt") != failure.attempt
        and before.get("iteration") == failure.iteration
    )


def answer(job: Job, seen: Seen, failure: Failure, verdict: Verdict, now: float) -> Restart | Fail:
    """The decision for a verdict, with the counters of the restart."""
    if verdict.kind == "never":
        return Fail(reason=verdict.reason, message=verdict.message, failure=failure)
    counters = count(job, seen, verdict.kind)
    if counters.counted > job.failure_policy.max_restarts:
        message = (
            f"Pod {failure.pod} failed ({failure.reason}) and failurePolicy.maxRestarts "
            f"({job.failure_policy.max_restarts}) is used up."
        )
        return Fail(reason=names.MAX_RESTARTS_EXCEEDED, message=message, failure=failure)
    nodes = node_exclusion.after(job, seen.status, failure, verdict.kind, verdict.reason, now)
    away = node_exclusion.excluded(job.failure_policy.node_exclusion, nodes)
    stays = not any(pod.node in away for pod in seen.current)
    lived_s = now - (to_seconds(seen.status.get("lastRestartTime")) or 0.0)
    pause_s = 0.0 if has_progressed(job, seen) else delay_s(job.failure_policy, counters, verdict.kind, lived_s)
    return Restart(
        reason=verdict.reason,
        failure=failure,
        counters=counters,
        delay_s=pause_s,
        in_place=stays and in_place.is_possible(job, seen, pause_s, now),
        failed_nodes=nodes,
    )


def count(job: Job, seen: Seen, kind: Kind) -> Counters:
    """Counters after one more restart; a checkpoint written since the last one resets the count."""
    before = read_counters(seen)
    if has_progressed(job, seen) and job.failure_policy.reset_after_progress:
        before = replace(before, counted=0, in_a_row=0)
    is_race = kind == "admission" and before.in_a_row < MAX_IN_A_ROW
    is_counted = kind == "failed" or (kind == "admission" and not is_race)
    return Counters(
        total=before.total + 1,
        counted=before.counted + is_counted,
        in_a_row=before.in_a_row + 1 if is_race else 0,
        checkpoint_iteration=latest_checkpoint(seen),
        memory_iteration=latest_in_memory(seen),
    )


def has_progressed(job: Job, seen: Seen) -> bool:
    """Whether a checkpoint was written since the last restart: resuming from it at once is not a crash loop."""
    before = read_counters(seen)
    is_saved = (latest_checkpoint(seen) or 0) > (before.checkpoint_iteration or 0)
    is_in_memory = (latest_in_memory(seen) or 0) > (before.memory_iteration or 0)
    return is_saved or is_in_memory or _has_passed_memory(job, seen)


def _has_passed_memory(job: Job, seen: Seen) -> bool:
    """Whether this attempt has trained past the last failure by as many steps as lie between checkpoints in memory.

    For launchers that do not say what lies in memory.
    """
    last = seen.status.get("lastFailure")
    before, now = last.get("iteration") if last else 0, _reached(seen)
    if job.checkpoint.memory is None or now is None or before is None:
        return False
    return now >= before + job.checkpoint.memory.interval


def _reached(seen: Seen) -> int | None:
    """The last known iteration of this attempt; a rank that has failed may know a later one than the progress."""
    known = [pod.iteration for pod in seen.current] + [seen.beat.iteration if seen.beat else None]
    return max((each for each in known if each is not None), default=None)


def latest_in_memory(seen: Seen) -> int | None:
    """The iteration of the newest checkpoint in memory that a launcher of these pods reports, else the persisted one.

    It may be an earlier one where a node has lost its memory: progress then starts over from there.
    """
    heard = [seen.launchers[pod.name].report.memory_iteration for pod in seen.current if pod.name in seen.launchers]
    reported = max((each for each in heard if each is not None), default=None)
    return read_counters(seen).memory_iteration if reported is None else reported


def latest_checkpoint(seen: Seen) -> int | None:
    """The iteration of the newest checkpoint, as reported, else as persisted at the last restart."""
    reported = seen.progress.checkpoint_iteration if seen.progress else None
    return reported or read_counters(seen).checkpoint_iteration


def read_counters(seen: Seen) -> Counters:
    """The counters in the stored status."""
    restarts = seen.status.get("restarts", {})
    return Counters(
        total=restarts.get("total", 0),
        counted=restarts.get("counted", 0),
        in_a_row=restarts.get("uncountedInARow", 0),
        checkpoint_iteration=restarts.get("checkpointIteration"),
        memory_iteration=restarts.get("memoryIteration"),
    )


def _by_rule(rule: Rule, failure: Failure, seen: Seen) -> Verdict:
    if rule.action == "FailJob":
        message = f"Pod {failure.pod} ended with {failure.reason}, for which a rule fails the job."
        return Verdict(kind="never", reason=names.FAILURE_POLICY, message=message)
    kind: Kind = "failed" if rule.action == "Restart" else "disrupted"
    return Verdict(kind=kind, reason=_restart_reason(seen, failure))


def _restart_reason(seen: Seen, failure: Failure) -> str:
    is_lost = failure.node is not None and failure.node in seen.lost_nodes
    if is_lost or failure.reason in kubelet_reasons.NODE_IS_GONE:
        return names.NODE_LOST
    return names.PREEMPTED if is_disruption(seen, failure) else names.POD_FAILED
