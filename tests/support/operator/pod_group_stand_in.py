"""Simulates Volcano and scheduler-plugins: their PodGroups, and the phase that Volcano's queue gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from local_cluster.control_plane import ControlPlane
from tests.support.operator import foreign_crd
from tests.support.operator.job_client import JobClient

Object = Mapping[str, Any]
APIS = {
    "Volcano": "/apis/scheduling.volcano.sh/v1beta1",
    "Coscheduling": "/apis/scheduling.x-k8s.io/v1alpha1",
    "Native": "/apis/scheduling.k8s.io/v1beta1",
}
FIELDS = {
    "Volcano": {
        "minMember": {"type": "integer"},
        "queue": {"type": "string"},
        "minTaskMember": {"type": "object", "additionalProperties": {"type": "integer"}},
        "minResources": foreign_crd.ANYTHING,
        "networkTopology": foreign_crd.ANYTHING,
        "priorityClassName": {"type": "string"},
    },
    "Coscheduling": {
        "minMember": {"type": "integer"},
        "minResources": foreign_crd.ANYTHING,
        "scheduleTimeoutSeconds": {"type": "integer"},
    },
}


def install(plane: ControlPlane) -> None:
    """The PodGroups that do not come with Kubernetes, and the controller that lets go of those that do."""
    plane.stop_process("controller-manager")
    plane.start_controller_manager("--controllers=*,-node-lifecycle-controller", "--feature-gates=GenericWorkload=true")
    for scheduler, fields in FIELDS.items():
        properties = {"spec": {"type": "object", "properties": fields}, "status": foreign_crd.ANYTHING}
        foreign_crd.install(plane, APIS[scheduler], "PodGroup", properties)


def path(jobs: JobClient, scheduler: str, name: str = "") -> str:
    """URL path of the scheduler's PodGroups, or of one of them."""
    return f"{APIS[scheduler]}/namespaces/{jobs.namespace}/podgroups" + (f"/{name}" if name else "")


def group(scheduler: str) -> str:
    """The API group of the scheduler's PodGroups."""
    return APIS[scheduler].split("/")[2]


def stranger(jobs: JobClient, scheduler: str, name: str) -> str:
    """Makes a PodGroup that belongs to no job; its path."""
    spec = {"schedulingPolicy": {"gang": {"minCount": 1}}} if scheduler == "Native" else {"minMember": 1}
    version = APIS[scheduler].removeprefix("/apis/")
    body = {"apiVersion": version, "kind": "PodGroup", "metadata": {"name": name}, "spec": spec}
    jobs.plane.create(path(jobs, scheduler), body)
    return path(jobs, scheduler, name)


def take_in(jobs: JobClient, name: str) -> bool:
    """Volcano's queue takes the job's group in, so that its pods may come; False while there is none."""
    found = jobs.plane.get(path(jobs, "Volcano", name))
    if not (found and found["metadata"].get("ownerReferences")):
        return False
    jobs.plane.merge(path(jobs, "Volcano", name) + "/status", {"status": {"phase": "Inqueue"}})
    return True
