"""The Kueue Workload of a job: the object, its status updates, and what an admission adds to pods."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.desired import labels
from megatron_operator.core.desired.pods import pod
from megatron_operator.core.desired.spares import spare
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.core.observe_kueue import PodSetPlace, Workload
from megatron_operator.core.plan import Patch
from megatron_operator.timestamp import to_text

Object = Mapping[str, Any]
API_VERSION = "kueue.x-k8s.io/v1beta2"
KIND = "Workload"
FIRST_ATTEMPT = 0
QUOTA_RESERVED, ADMITTED, EVICTED = "QuotaReserved", "Admitted", "Evicted"
PODS_READY, REQUEUED, FINISHED = "PodsReady", "Requeued", "Finished"
# Kueue itself requeues a workload that was evicted for another reason, after its own backoff.
REQUEUED_AT_ONCE = frozenset({"Preempted", "NodeFailures"})


def workload(job: Job, priority: int) -> dict[str, Any]:
    """The Workload. Its name is derived from its request, so a changed job is queued again."""
    spec: dict[str, Any] = {
        "queueName": job.kueue_queue,
        "active": True,
        "priority": priority,
        "podSets": _pod_sets(job),
    }
    if class_ref := priority_class(job):
        spec["priorityClassRef"] = class_ref
    metadata = labels.metadata(job, workload_name(job), {names.KUEUE_JOB_UID: job.uid})
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def workload_name(job: Job) -> str:
    """Name of the Workload for the current job."""
    asked: list[object] = [job.kueue_queue, priority_class(job), [_pod_set(job, rank, 1) for rank in (0, 1)]]
    asked += [job.num_nodes, *([job.scheduling.spares] if job.scheduling.spares else [])]
    digest = hashlib.sha256(json.dumps([job.uid, asked], sort_keys=True, default=list).encode()).hexdigest()
    return f"{job.name}-{digest[:8]}"


def priority_class(job: Job) -> dict[str, str] | None:
    """The class whose value is the queue priority: Kueue's own class by label, else that of the pods."""
    if name := job.labels.get(names.KUEUE_PRIORITY):
        return {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": name}
    if name := job.scheduling.priority_class_name:
        return {"group": "scheduling.k8s.io", "kind": "PriorityClass", "name": name}
    return None


def current(job: Job, seen: Seen) -> Workload | None:
    """The Workload that counts: the admitted one while pods exist, else the current request."""
    living = [each for each in seen.kueue.workloads if not each.deleting]
    if seen.current and (admitted := next((each for each in living if each.is_true(ADMITTED)), None)):
        return admitted
    return next((each for each in living if each.name == workload_name(job)), None)


def placed(body: dict[str, Any], role: str, seen: Seen, name: str) -> dict[str, Any]:
    """The pod with what the queue's admission adds to it."""
    place = seen.kueue.places.get(role, PodSetPlace())
    metadata, spec = dict(body["metadata"]), dict(body["spec"])
    metadata["labels"] = {**metadata["labels"], **place.labels}
    metadata["annotations"] = {**metadata["annotations"], **place.annotations}
    if place.node_selector:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **place.node_selector}
    if place.tolerations:
        spec["tolerations"] = [*spec.get("tolerations", ()), *place.tolerations]
    if place.by_topology:
        metadata["labels"][names.KUEUE_POD_SET] = role
        metadata["annotations"] |= {names.KUEUE_WORKLOAD: name, **_implied_topology(metadata["annotations"])}
        spec["schedulingGates"] = [*spec.get("schedulingGates", ()), {"name": names.KUEUE_TOPOLOGY_GATE}]
    return {**body, "metadata": metadata, "spec": spec}


def _implied_topology(annotations: Mapping[str, str]) -> dict[str, str]:
    """Marks a pod of a job without a topology request that was assigned a flavor with one: Kueue ungates only those."""
    is_asked = names.KUEUE_REQUIRED_TOPOLOGY in annotations or names.KUEUE_PREFERRED_TOPOLOGY in annotations
    return {} if is_asked else {names.KUEUE_UNCONSTRAINED_TOPOLOGY: "true"}


def ready_patch(found: Workload, *, is_ready: bool, now: float) -> Patch | None:
    """Sets whether all pods are ready, if the Workload does not have it."""
    reason = "Started" if is_ready else "WaitForStart"
    known = found.condition(PODS_READY)
    if found.is_true(PODS_READY) == is_ready and (known or not is_ready):
        return None
    return _patch(found, {PODS_READY: (is_ready, reason, "")}, now)


def finished_patch(found: Workload, *, succeeded: bool, message: str, now: float) -> Patch | None:
    """Sets that the job is finished, if the Workload does not have it."""
    if found.is_true(FINISHED):
        return None
    return _patch(found, {FINISHED: (True, "Succeeded" if succeeded else "Failed", message)}, now)


def release_patch(found: Workload, now: float) -> Patch | None:
    """Releases the quota of an evicted Workload; the job's pods must be gone."""
    evicted = found.condition(EVICTED)
    if evicted is None or not (found.is_true(EVICTED) and found.is_true(QUOTA_RESERVED)):
        return None
    reason, message = str(evicted["reason"]), str(evicted.get("message", ""))
    news = {
        QUOTA_RESERVED: (False, "Pending", message),
        ADMITTED: (False, "NoReservation", "The workload has no reservation"),
        REQUEUED: (reason in REQUEUED_AT_ONCE, reason, message),
    }
    return _patch(found, news, now, admission=None)


def _patch(found: Workload, news: Mapping[str, tuple[bool, str, str]], now: float, **more: None) -> Patch:
    """The whole list of conditions, updated; the write fails with a conflict if someone else wrote meanwhile."""
    kept = [each for each in found.conditions if each["type"] not in news]
    added = [
        {
            "type": type_,
            "status": "True" if value else "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": to_text(now),
        }
        for type_, (value, reason, message) in news.items()
    ]
    body = {"metadata": {"resourceVersion": found.version}, "status": {"conditions": [*kept, *added], **more}}
    return Patch(api_version=API_VERSION, kind=KIND, name=found.name, body=body, subresource="status")


def _pod_sets(job: Job) -> list[dict[str, Any]]:
    """Of each role that has pods; the quota of spares is reserved with that of the gang."""
    of_gang = [_pod_set(job, rank, count) for rank, count in ((0, 1), (1, job.num_nodes - 1)) if count]
    if not job.scheduling.spares:
        return of_gang
    body = spare(job, FIRST_ATTEMPT, 0)
    metadata = {"labels": body["metadata"]["labels"], "annotations": body["metadata"]["annotations"]}
    template = {"metadata": metadata, "spec": body["spec"]}
    return [*of_gang, {"name": names.SPARE, "count": job.scheduling.spares, "template": template}]


def _pod_set(job: Job, rank: int, count: int) -> dict[str, Any]:
    """The pods of one role as the queue counts them; those of the first attempt represent all."""
    body = pod(job, FIRST_ATTEMPT, rank)
    metadata = {"labels": body["metadata"]["labels"], "annotations": body["metadata"]["annotations"]}
    template = {"metadata": metadata, "spec": body["spec"]}
    return {"name": labels.role(rank), "count": count, "template": template, **_topology_request(job)}


def _topology_request(job: Job) -> dict[str, Any]:
    topology = job.scheduling.topology
    if topology is None or topology.key is None:
        return {}
    group = {"podSetGroupName": names.KUEUE_GANG} if job.num_nodes > 1 else {}
    return {"topologyRequest": {topology.mode.lower(): topology.key, **group}}
