"""Simulates Kueue: its CRDs in the shape that v1beta2 has, and what its controllers write into a Workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from local_cluster.control_plane import ControlPlane
from tests.support.operator import foreign_crd
from tests.support.operator.foreign_crd import ANYTHING
from tests.support.operator.job_client import JobClient, wait_until

Object = Mapping[str, Any]
API = "/apis/kueue.x-k8s.io/v1beta2"
TEXT = {"type": "string"}
CONDITION = {
    "type": "object",
    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
    "properties": {
        **dict.fromkeys(("type", "reason"), TEXT),
        "message": {"type": "string", "maxLength": 32768},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "observedGeneration": {"type": "integer"},
    },
}
POD_SET = {
    "type": "object",
    "required": ["count", "name", "template"],
    "properties": {
        "name": {"type": "string", "maxLength": 63},
        "count": {"type": "integer", "minimum": 0},
        "template": ANYTHING,
        "topologyRequest": ANYTHING,
    },
}
WORKLOAD = {
    "spec": {
        "type": "object",
        "properties": {
            "queueName": TEXT,
            "active": {"type": "boolean"},
            "priority": {"type": "integer"},
            "priorityClassRef": {
                "type": "object",
                "required": ["kind", "name"],
                "properties": dict.fromkeys(("group", "kind", "name"), TEXT),
            },
            "podSets": {
                "type": "array",
                "minItems": 1,
                "maxItems": 18,
                "items": POD_SET,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        },
    },
    "status": {
        "type": "object",
        "properties": {
            "admission": ANYTHING,
            "admissionChecks": {"type": "array", "items": ANYTHING},
            "conditions": {
                "type": "array",
                "items": CONDITION,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        },
    },
}


def install(plane: ControlPlane) -> None:
    """Workloads, resource flavors and workload priority classes; returns when they are served."""
    foreign_crd.install(plane, API, "Workload", WORKLOAD)
    foreign_crd.install(plane, API, "ResourceFlavor", {"spec": ANYTHING}, scope="Cluster")
    foreign_crd.install(plane, API, "WorkloadPriorityClass", {"value": {"type": "integer"}}, scope="Cluster")


def add_places(plane: ControlPlane) -> None:
    """The flavor "spot", which wants a node pool of its own, and the priority class "urgent"."""
    spec = {"nodeLabels": {"pool": "spot"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}
    flavor = {**typed("ResourceFlavor"), "metadata": {"name": "spot"}, "spec": spec}
    plane.create(f"{API}/resourceflavors", flavor)
    urgent = {**typed("WorkloadPriorityClass"), "metadata": {"name": "urgent"}, "value": 1000}
    plane.create(f"{API}/workloadpriorityclasses", urgent)


def typed(kind: str) -> Object:
    """The beginning of an object of Kueue's API."""
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind}


def workloads(jobs: JobClient) -> list[Object]:
    """The Workloads of the namespace."""
    items: list[Object] = jobs.plane.get(f"{API}/namespaces/{jobs.namespace}/workloads")["items"]
    return items


def the_workload(jobs: JobClient) -> Object:
    """The only Workload, once it is there."""
    return wait_until(lambda: workloads(jobs), lambda found: len(found) == 1, "one Workload")[0]


def condition(workload: Object, type_: str) -> Object:
    """One condition, {} when it has none of this type."""
    found = (workload.get("status") or {}).get("conditions") or ()
    return next((each for each in found if each["type"] == type_), {})


def admit(jobs: JobClient, flavor: str) -> None:
    """Gives every pod set its quota in this flavor."""
    workload = the_workload(jobs)
    assignments = [
        {"name": each["name"], "flavors": {"cpu": flavor}, "count": each["count"]}
        for each in workload["spec"]["podSets"]
    ]
    news = [_condition("QuotaReserved", "True", "QuotaReserved"), _condition("Admitted", "True", "Admitted")]
    _write(jobs, workload, news, admission={"clusterQueue": "all", "podSetAssignments": assignments})


def evict(jobs: JobClient) -> None:
    """Asks for the quota back, as a preemption does; the operator has to release it."""
    _write(jobs, the_workload(jobs), [_condition("Evicted", "True", "Preempted", "Preempted to make room")])


def readmit(jobs: JobClient, flavor: str) -> None:
    """Takes the eviction back and admits again, as Kueue does in its next cycle."""
    _write(jobs, the_workload(jobs), [_condition("Evicted", "False", "QuotaReserved", "Previously: Preempted")])
    admit(jobs, flavor)


def _write(jobs: JobClient, workload: Object, news: list[Object], **more: object) -> None:
    types = {each["type"] for each in news}
    kept = [each for each in (workload.get("status") or {}).get("conditions") or () if each["type"] not in types]
    path = f"{API}/namespaces/{jobs.namespace}/workloads/{workload['metadata']['name']}/status"
    jobs.plane.merge(path, {"status": {"conditions": [*kept, *news], **more}})


def _condition(type_: str, status: str, reason: str, message: str = "") -> Object:
    at = "2026-11-24T12:00:00Z"
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}
