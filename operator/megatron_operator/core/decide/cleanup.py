"""Cleanup of a finished job: pods by cleanPodPolicy, the rest when its time to live has expired."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from megatron_operator.api import names
from megatron_operator.api.spec import readable
from megatron_operator.api.values import DEFAULT_CLEAN_POD_POLICY, CleanPodPolicy
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.core.plan import Ref
from megatron_operator.timestamp import to_seconds

Object = Mapping[str, Any]
TtlPolicy = Literal["DeletePods", "DeleteJob"]


def pods_to_delete(job: Job, seen: Seen) -> tuple[Pod, ...]:
    """Pods that cleanPodPolicy does not keep, spares, and pods of earlier attempts that still run."""
    return _deletable(job.run_policy.clean_pod_policy, seen)


def readable_to_delete(manifest: Object, seen: Seen) -> tuple[Pod, ...]:
    """The same for an invalid manifest, with the default policy where its own cannot be read."""
    policy = readable(manifest, "runPolicy") or {}
    return _deletable(policy.get("cleanPodPolicy", DEFAULT_CLEAN_POD_POLICY), seen)


def _deletable(policy: CleanPodPolicy, seen: Seen) -> tuple[Pod, ...]:
    deletable = {"None": (), "Running": _running(seen.current), "All": seen.current}[policy]
    return tuple(pod for pod in (*_running(seen.stale), *deletable, *seen.spares) if not pod.deleting)


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the time to live expires; None for a job that is kept."""
    return ends(seen, job.run_policy.ttl_s)


def ends(seen: Seen, ttl_s: int | None) -> float | None:
    """When a time to live of so many seconds expires; None for a job that is kept."""
    completed = to_seconds(seen.status.get("completionTime"))
    return None if completed is None or ttl_s is None else completed + ttl_s


def readable_ttl(manifest: Object) -> tuple[int | None, TtlPolicy]:
    """Time to live and its policy of a manifest that is invalid elsewhere; None where it cannot be read."""
    policy = readable(manifest, "runPolicy")
    return (None, "DeletePods") if policy is None else (policy.get("ttlSecondsAfterFinished"), policy["ttlPolicy"])


def is_over(job: Job, seen: Seen, now: float) -> bool:
    """Whether the time to live has expired."""
    ends = wake_at(job, seen, now)
    return ends is not None and now >= ends


def leftovers(job: Job, seen: Seen) -> tuple[Ref, ...]:
    """What to delete when the time to live has expired: the job itself, or all its objects except checkpoints."""
    return leftovers_of(job.name, job.uid, job.run_policy.ttl_policy, seen)


def leftovers_of(name: str, uid: str, policy: TtlPolicy, seen: Seen) -> tuple[Ref, ...]:
    """The same for a job whose manifest cannot be parsed."""
    if policy == "DeleteJob":
        return (Ref(api_version=names.API_VERSION, kind=names.KIND, name=name, uid=uid),)
    pods = tuple(pod_ref(pod) for pod in (*seen.pods, *seen.spares) if not pod.deleting)
    maps = tuple(Ref(api_version="v1", kind="ConfigMap", name=each) for each in sorted(seen.config_maps))
    service = Ref(api_version="v1", kind="Service", name=names.service_name(name))
    return (*pods, *maps, *((service,) if seen.service_selector is not None else ()))


def _running(pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
    """Pods that hold resources, including those whose sidecar outlives the trainer."""
    return tuple(pod for pod in pods if not pod.is_finished or pod.is_outlived)


def pod_ref(pod: Pod) -> Ref:
    """The pod as an object to delete; its uid protects a later pod of the same name."""
    return Ref(api_version="v1", kind="Pod", name=pod.name, uid=pod.uid or None)
