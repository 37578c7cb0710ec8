"""What other operators' manifests say of a job beside its pods: its end, its restarts, its queue.

What has a counterpart is carried over; the rest is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Object = Mapping[str, Any]
OF_KUEUE = "kueue.x-k8s.io/"
OF_KUBECTL = "kubectl.kubernetes.io/last-applied-configuration"
CLEANED = ("None", "Running", "All")
MAX_RESTARTS = 1000


def fields(manifest: Object) -> dict[str, Any]:
    """The fields of a MegatronTrainJob's spec that mean the same."""
    policy = _policy(manifest)
    run: dict[str, Any] = {name: policy[name] for name in ("activeDeadlineSeconds",) if policy.get(name)}
    if policy.get("cleanPodPolicy") in CLEANED:
        run["cleanPodPolicy"] = policy["cleanPodPolicy"]
    if policy.get("ttlSecondsAfterFinished") is not None:
        run |= {"ttlSecondsAfterFinished": policy["ttlSecondsAfterFinished"], "ttlPolicy": "DeleteJob"}
    restarts = _restarts(policy)
    found = {
        "suspend": policy.get("suspend") is True and not labels(manifest),
        "runPolicy": run,
        "failurePolicy": {"maxRestarts": min(restarts, MAX_RESTARTS)} if restarts is not None else None,
        "scheduling": _of_volcano(policy) if "tasks" in policy else None,
    }
    return {name: value for name, value in found.items() if value}


def labels(manifest: Object) -> dict[str, str]:
    """Labels by which Kueue finds the queue of a job, whatever its kind."""
    own = (manifest.get("metadata") or {}).get("labels") or {}
    return {name: value for name, value in own.items() if name.startswith(OF_KUEUE)}


def remarks(manifest: Object, known: frozenset[str]) -> Iterator[str]:
    """What is left of the policies and of the metadata. known: fields of the spec that are read as pods."""
    kind, spec = manifest["kind"], manifest.get("spec") or {}
    left = [*_left(spec, known), *(f"runPolicy.{name}" for name in _left(spec.get("runPolicy") or {}, frozenset()))]
    if left:
        yield f"{', '.join(left)} of the {kind}: docs/migrating.md names the counterparts"
    if _policy(manifest).get("suspend") is True and labels(manifest):
        yield f"suspend of the {kind}: its queue starts the job"
    metadata = manifest.get("metadata") or {}
    others = [name for name in metadata.get("labels") or {} if not name.startswith(OF_KUEUE)]
    others += [name for name in metadata.get("annotations") or {} if name != OF_KUBECTL]
    if others:
        yield f"labels and annotations {', '.join(others)} of the {kind}: add them to metadata if they matter"


def _policy(manifest: Object) -> Object:
    """The spec with its runPolicy, whose fields some kinds have directly."""
    spec = manifest.get("spec") or {}
    return {**spec, **(spec.get("runPolicy") or {})}


def _of_volcano(policy: Object) -> dict[str, Any]:
    """Volcano's own Job is a gang in one of its queues."""
    least = policy.get("minAvailable")
    num_pods = sum(int(task.get("replicas", 1)) for task in policy["tasks"])
    found = {
        "gang": "Volcano",
        "queue": policy.get("queue"),
        "priorityClassName": policy.get("priorityClassName"),
        "minMember": least if isinstance(least, int) and 0 < least < num_pods else None,
    }
    return {name: value for name, value in found.items() if value}


def _restarts(policy: Object) -> int | None:
    """The number of restarts of the whole job, None where it is not said."""
    others = policy.get("maxRetry", (policy.get("failurePolicy") or {}).get("maxRestarts"))
    found = policy.get("backoffLimit", others)
    return found if isinstance(found, int) and found >= 0 else None


def _left(policy: Object, known: frozenset[str]) -> list[str]:
    carried = {"activeDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimit", "suspend", "runPolicy"}
    carried |= {"maxRetry", "minAvailable", "queue"} if "tasks" in policy else set()
    carried |= {"cleanPodPolicy"} if policy.get("cleanPodPolicy") in CLEANED else set()
    is_counted = set(policy.get("failurePolicy") or {}) == {"maxRestarts"}
    return [name for name in policy if name not in carried | known and not (name == "failurePolicy" and is_counted)]
