"""The wire form of pushed progress: addresses, audiences and bodies. Pure; the server is progress_server.py.

Compatible with Kubeflow Trainer's status server (KEP-2779), so that any client of it can report here. Our
trainer adds its whole progress record, which hang detection and the restart counters rely on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_operator.api import names
from megatron_operator.core import attempts, progress_record
from megatron_operator.timestamp import to_seconds
from megatron_trainjob import kubeflow_push as fields
from megatron_trainjob.progress import Progress

Object = Mapping[str, Any]
ROUTE = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs/{name}/status"
LAUNCHER_ROUTE = f"/apis/{names.API_VERSION}/namespaces/{{namespace}}/{names.PLURAL}/{{name}}/launcher"
MAX_ATTEMPT_DIGITS = 10
POD_NAME_CLAIM = "authentication.kubernetes.io/pod-name"
ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """The subject of a token: a pod of a namespace."""

    namespace: str
    pod: str


def path(namespace: str, name: str) -> str:
    """The URL that the pods of this job push to."""
    return ROUTE.format(namespace=namespace, name=name)


def launcher_path(namespace: str, name: str) -> str:
    """Where the launchers of this job report."""
    return LAUNCHER_ROUTE.format(namespace=namespace, name=name)


def audience(namespace: str, name: str, uid: str) -> str:
    """The audience of a job's tokens: a token for one job is invalid for another, and for the API server.

    The uid distinguishes the job from a later one with its name.
    """
    return f"{names.GROUP}/{namespace}/{name}/{uid}"


def review(token: str, audience: str) -> Object:
    """The TokenReview that asks whether this token is for this audience."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }


def reporter(answer: Object, namespace: str, audience: str) -> Reporter | None:
    """The pod that the token belongs to according to the server, None if it is invalid for this audience."""
    status = answer.get("status") or {}
    user = status.get("user") or {}
    is_ours = status.get("authenticated") and audience in (status.get("audiences") or ())
    if not is_ours or not user.get("username", "").startswith(f"{ACCOUNT_PREFIX}{namespace}:"):
        return None
    pods = (user.get("extra") or {}).get(POD_NAME_CLAIM) or ("",)
    return Reporter(namespace=namespace, pod=pods[0])


def attempt_of(pod: names.Place, given: str | None) -> int:
    """The attempt that a push is about: the one that it names, else the pod's. Raises ValueError for any other text."""
    if given is None:
        return pod.attempt
    if not (given.isdecimal() and len(given) < MAX_ATTEMPT_DIGITS):
        raise ValueError("attempt: must be a whole number")
    return int(given)


def is_past(attempt: int, pod_attempt: int, status: Object, before: Progress | None) -> bool:
    """Whether a report of this attempt by a pod of that one comes too late, or is none that the pod can make.

    The previous attempt still saves while it ends, so its reports count until the current attempt reports.
    """
    current, of_pods = attempts.of_ranks(status), attempts.of_pods(status)
    if attempt < pod_attempt or pod_attempt > of_pods or (pod_attempt < of_pods <= attempt):
        return True
    newest = before.attempt if before else 0
    return attempt < newest or not current - 1 <= attempt <= current


def expiry_for(token: str, audience: str) -> float | None:
    """When a token for this audience expires (seconds since the epoch), None for anything else.

    Read without verifying the signature: only to skip reviews that would certainly fail.
    """
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"]) if audience in claims["aud"] else None
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return None


def read(body: object, attempt: int, now: float) -> tuple[Progress, tuple[str, ...]]:
    """The progress that a body reports, and one line for each part that was truncated or dropped.

    Its time is ours: the clocks of nodes differ. Raises ValueError if it is rejected.
    """
    if not isinstance(body, Mapping):
        raise ValueError(f"the body must be an object with {fields.STATUS}")
    own = body.get(fields.PROGRESS)
    record = own if isinstance(own, Mapping) else _kubeflow_record(body.get(fields.STATUS) or {})
    progress, problems = progress_record.read(record)
    return replace(progress, attempt=attempt, updated_at=now), problems


def _kubeflow_record(status: object) -> Object:
    """Kubeflow's form as our own record: percent in place of iterations."""
    if not isinstance(status, Mapping):
        raise ValueError(f"{fields.STATUS}: must be an object")
    percentage, metrics = status.get(fields.PERCENTAGE), status.get(fields.METRICS) or ()
    if not isinstance(metrics, list | tuple) or not all(isinstance(each, Mapping) for each in metrics):
        raise ValueError(f"{fields.STATUS}.{fields.METRICS}: must be a list of objects with name and value")
    return {
        "phase": "training",
        "iteration": 0 if percentage is None else percentage,
        "total_iterations": 100,
        "remaining_s": status.get(fields.REMAINING_S),
        "metrics": {str(each.get(fields.METRIC_NAME)): each.get(fields.METRIC_VALUE) for each in metrics},
    }


def remembered(status: Object) -> Progress | None:
    """The progress in the status, for an operator that has just started; None if it is of other ranks than today's.

    Without it, a gang that hung while no operator was running would never be noticed. The status has no phase; only a
    gang that has done a step and not the last one is taken to train: loading and exporting may take hours in silence.

    Ranks still report while the attempt after theirs begins, so that the time tells them apart only in a status without
    the attempt, which an earlier release has written.
    """
    stored, attempt = status.get("progress") or {}, attempts.of_ranks(status)
    updated_at = to_seconds(stored.get("lastUpdatedTime"))
    began = to_seconds(status.get("lastRestartTime") or status.get("startTime"))
    if updated_at is None or began is None or updated_at < began or stored.get("attempt", attempt) != attempt:
        return None
    checkpoint = status.get("checkpoint") or {}
    iteration, total = int(stored.get("iteration", 0)), int(stored.get("totalIterations", 0))
    return Progress(
        phase="training" if stored.get("metrics") and iteration < total else "starting",
        attempt=attempt,
        iteration=iteration,
        total_iterations=total,
        remaining_s=stored.get("estimatedRemainingSeconds"),
        tokens_per_second_per_gpu=stored.get("tokensPerSecondPerGPU"),
        metrics={each["name"]: float(each["value"]) for each in stored.get("metrics") or ()},
        checkpoint_iteration=checkpoint.get("latestIteration"),
        checkpoint_path=checkpoint.get("path"),
        updated_at=updated_at,
    )
