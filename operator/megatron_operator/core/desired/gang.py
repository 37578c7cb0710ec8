"""The PodGroup of an attempt, in each gang scheduler's form, and the scheduling part of the pod spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_operator.api import names
from megatron_operator.api.values import Gang
from megatron_operator.core.desired import labels
from megatron_operator.core.desired.quantity import multiplied
from megatron_operator.core.job import Job

API_VERSIONS: dict[Gang, str] = {
    "Volcano": "scheduling.volcano.sh/v1beta1",
    "Coscheduling": "scheduling.x-k8s.io/v1alpha1",
    "Native": "scheduling.k8s.io/v1beta1",
}
KIND = "PodGroup"


def pod_group(job: Job, attempt: int) -> dict[str, Any] | None:
    """The PodGroup of this attempt, None without gang scheduling. One an attempt: groups are immutable."""
    gang = job.scheduling.gang
    if gang == "None":
        return None
    own = {names.LABEL_RESTART_ATTEMPT: str(attempt)}
    return {
        "apiVersion": API_VERSIONS[gang],
        "kind": KIND,
        "metadata": labels.metadata(job, names.group_name(job.name, attempt), own),
        "spec": SPECS[gang](job),
    }


def pod_fields(job: Job, attempt: int) -> dict[str, Any]:
    """What the pod spec says about scheduling."""
    scheduling = job.scheduling
    fields: dict[str, Any] = {}
    if scheduling.scheduler_name or scheduling.gang == "Volcano":
        fields["schedulerName"] = scheduling.scheduler_name or "volcano"
    if scheduling.priority_class_name:
        fields["priorityClassName"] = scheduling.priority_class_name
    if scheduling.topology and scheduling.topology.exclusive and scheduling.topology.key:
        fields["affinity"] = _exclusive(job, scheduling.topology.key)
    if scheduling.gang == "Native":
        fields["schedulingGroup"] = {"podGroupName": names.group_name(job.name, attempt)}
    return fields


def _exclusive(job: Job, key: str) -> dict[str, Any]:
    """Affinity: this job's pods together in one domain of the key, no pod of any other job there."""

    def term(operator: str, extra: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
        own = {"key": names.LABEL_JOB_NAME, "operator": operator, "values": [job.name]}
        return {"labelSelector": {"matchExpressions": [*extra, own]}, "topologyKey": key}

    topology = job.scheduling.topology
    is_required = topology is not None and topology.mode == "Required"
    together: dict[str, Any] = (
        {"requiredDuringSchedulingIgnoredDuringExecution": [term("In")]}
        if is_required
        else {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term("In")}]}
    )
    of_some_job = {"key": names.LABEL_JOB_NAME, "operator": "Exists"}
    apart = {**term("NotIn", (of_some_job,)), "namespaceSelector": {}}
    return {
        "podAffinity": together,
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]},
    }


def admits_pods(phase: str, gang: Gang) -> bool:
    """Whether pods may be created. With Volcano only once the queue admits the group: no pending pods pile up."""
    return gang != "Volcano" or phase not in ("", "Pending")


def _volcano(job: Job) -> dict[str, Any]:
    scheduling = job.scheduling
    spec: dict[str, Any] = {"minMember": scheduling.min_member, "queue": scheduling.queue or "default"}
    if scheduling.min_member == job.num_nodes:
        workers = {names.WORKER: job.num_nodes - 1} if job.num_nodes > 1 else {}
        spec["minTaskMember"] = {names.MASTER: 1, **workers}
    topology = scheduling.topology
    if topology:
        spec["networkTopology"] = {
            "mode": "hard" if topology.mode == "Required" else "soft",
            "highestTierAllowed": topology.highest_tier_allowed,
        }
    return {**spec, **_min_resources(job), **_priority(job)}


def _coscheduling(job: Job) -> dict[str, Any]:
    seconds = job.scheduling.schedule_timeout_s
    timeout = {} if seconds is None else {"scheduleTimeoutSeconds": seconds}
    return {"minMember": job.scheduling.min_member, **_min_resources(job), **timeout}


def _native(job: Job) -> dict[str, Any]:
    spec: dict[str, Any] = {"schedulingPolicy": {"gang": {"minCount": job.scheduling.min_member}}}
    topology = job.scheduling.topology
    if topology and topology.key:
        spec["schedulingConstraints"] = {"topology": [{"key": topology.key}]}
    return {**spec, **_priority(job)}


SPECS: dict[Gang, Callable[[Job], dict[str, Any]]] = {
    "Volcano": _volcano,
    "Coscheduling": _coscheduling,
    "Native": _native,
}


def _min_resources(job: Job) -> dict[str, Any]:
    """The sum of the pods' requests; limits count where a request is not given."""
    wanted = {**(job.resources.get("limits") or {}), **(job.resources.get("requests") or {})}
    if not wanted:
        return {}
    count = job.scheduling.min_member
    return {"minResources": {name: multiplied(str(amount), count) for name, amount in sorted(wanted.items())}}


def _priority(job: Job) -> dict[str, Any]:
    name = job.scheduling.priority_class_name
    return {"priorityClassName": name} if name else {}
