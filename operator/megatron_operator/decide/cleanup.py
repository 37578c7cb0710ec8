"""What is left of a finished job: pods by cleanPodPolicy, the rest when its time to live is over."""

from __future__ import annotations

from megatron_operator import names
from megatron_operator.job import Job
from megatron_operator.observe import Pod, Seen
from megatron_operator.plan import Ref
from megatron_operator.timestamp import to_seconds


def pods_to_delete(job: Job, seen: Seen) -> tuple[Pod, ...]:
    """Pods that cleanPodPolicy does not keep, and pods of earlier attempts that still run."""
    policy = job.run_policy.clean_pod_policy
    deletable = {"None": (), "Running": _running(seen.current), "All": seen.current}[policy]
    return tuple(pod for pod in (*_running(seen.stale), *deletable) if not pod.deleting)


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the time to live ends; None for a job that stays."""
    completed = to_seconds(seen.status.get("completionTime"))
    seconds = job.run_policy.ttl_s
    return None if completed is None or seconds is None else completed + seconds


def is_over(job: Job, seen: Seen, now: float) -> bool:
    """Whether the time to live has ended."""
    ends = wake_at(job, seen, now)
    return ends is not None and now >= ends


def leftovers(job: Job, seen: Seen) -> tuple[Ref, ...]:
    """What to delete when the time to live is over: the job itself, or all it made but its checkpoints."""
    if job.run_policy.ttl_policy == "DeleteJob":
        return (Ref(api_version=names.API_VERSION, kind=names.KIND, name=job.name, uid=job.uid),)
    pods = tuple(pod_ref(pod) for pod in seen.pods if not pod.deleting)
    maps = tuple(Ref(api_version="v1", kind="ConfigMap", name=name) for name in sorted(seen.config_maps))
    service = Ref(api_version="v1", kind="Service", name=names.service_name(job.name))
    return (*pods, *maps, *((service,) if seen.service_selector is not None else ()))


def _running(pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
    """Pods that hold resources; a sidecar that outlives the trainer does too."""
    return tuple(pod for pod in pods if not pod.is_finished or pod.is_outlived)


def pod_ref(pod: Pod) -> Ref:
    """The pod as an object to delete; its uid keeps a namesake that came later alive."""
    return Ref(api_version="v1", kind="Pod", name=pod.name, uid=pod.uid or None)
