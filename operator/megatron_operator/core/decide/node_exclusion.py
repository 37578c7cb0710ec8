"""Node exclusion: nodes on which the job failed again and again get no pods of later attempts.

`status.failedNodes` is the record, written with each restart and thus before the pods that it keeps away. What counts
is a failure that may be the node's: not a removal of its pods, a refusal at its admission, or a container that needed
more memory or local storage than its limit, which it would on any node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_operator.api import names
from megatron_operator.api.values import NodeExclusion
from megatron_operator.core import kubelet_reasons
from megatron_operator.core.decide.decision import FailedNode, Failure, Resize
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.timestamp import to_seconds, to_text

Object = Mapping[str, Any]
MAX_REMEMBERED = 32


def decide(job: Job, seen: Seen, now: float) -> Resize | None:
    """New pods where one waits for a node because of an exclusion that is over: its affinity cannot change."""
    kept_from = {node for pod in seen.current if waits_for_a_node(pod) for node in pod.kept_from}
    usable = sorted(kept_from - {*excluded(job.failure_policy.node_exclusion, read(job, seen.status, now))})
    if not usable:
        return None
    return Resize(reason=names.NODES_USED_AGAIN, message=f"Pods wait for nodes, and may use {', '.join(usable)} again.")


def waits_for_a_node(pod: Pod) -> bool:
    """Whether the pod still has to be placed, by an affinity that cannot change."""
    return pod.phase == "Pending" and not pod.node and not pod.deleting


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the first of the failures is forgotten."""
    policy = job.failure_policy.node_exclusion
    moments = [each.failed_at + policy.forget_after_s for each in read(job, seen.status, now)] if policy else []
    return min(moments, default=None)


def read(job: Job, status: Object, now: float) -> tuple[FailedNode, ...]:
    """The nodes of the stored status, the latest failure first; those whose failures are forgotten are left out."""
    policy = job.failure_policy.node_exclusion
    if policy is None:
        return ()
    stored = (
        FailedNode(
            name=each["name"],
            failures=each["failures"],
            failed_at=to_seconds(each.get("lastFailureTime")) or 0.0,
            excluded_at=to_seconds(each.get("excludedTime")),
        )
        for each in status.get("failedNodes") or ()
    )
    return tuple(each for each in stored if now < each.failed_at + policy.forget_after_s)


def after(job: Job, status: Object, failure: Failure, kind: str, reason: str, now: float) -> tuple[FailedNode, ...]:
    """The nodes once this failure has been counted, to which the verdict is of this kind and for this reason."""
    known = read(job, status, now)
    if job.failure_policy.node_exclusion is None or not _may_be_the_nodes(failure, kind, reason):
        return known
    before = next((each for each in known if each.name == failure.node), FailedNode(name=failure.node))
    failed = replace(before, failures=before.failures + 1, failed_at=now)
    return (failed, *(each for each in known if each.name != failure.node))[:MAX_REMEMBERED]


def excluded(policy: NodeExclusion | None, failed: tuple[FailedNode, ...]) -> tuple[str, ...]:
    """Names of the nodes to keep away from: where more failed often enough, those that failed last."""
    if policy is None:
        return ()
    bad = [each.name for each in failed if each.failures >= policy.after_failures]
    return tuple(bad[: policy.max_nodes])


def describe(policy: NodeExclusion | None, failed: tuple[FailedNode, ...]) -> list[Object] | None:
    """The nodes in the form of status.failedNodes, None without any."""
    away = excluded(policy, failed)
    return [_described(each, is_excluded=each.name in away) for each in failed] or None


def _described(node: FailedNode, *, is_excluded: bool) -> Object:
    at = node.excluded_at or node.failed_at
    since = {"excludedTime": to_text(at)} if is_excluded else {}
    return {"name": node.name, "failures": node.failures, "lastFailureTime": to_text(node.failed_at), **since}


def _may_be_the_nodes(failure: Failure, kind: str, reason: str) -> bool:
    is_lost = kind == "disrupted" and reason == names.NODE_LOST
    is_own = failure.reason == names.OOM_KILLED or kubelet_reasons.is_own_limit(failure.reason, failure.message)
    return bool(failure.node) and not is_own and (kind == "failed" or is_lost)
