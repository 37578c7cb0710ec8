"""Jobs that wait in a queue of the real Kueue, and what a test reads of their Workloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.kueue.real_kueue import API, GPU, QUEUE
from tests.support.operator.job_client import ARGS, JobClient, manifest, wait_until

Object = Mapping[str, Any]
GPUS_PER_NODE = 8
GPUS_PER_JOB = 2 * GPUS_PER_NODE
GANG = {
    "nprocPerNode": GPUS_PER_NODE,
    "resourcesPerNode": {"limits": {GPU: str(GPUS_PER_NODE)}},
    "args": {**ARGS, "global_batch_size": GPUS_PER_JOB},
    "failurePolicy": {"backoffSeconds": {"initial": 0, "max": 1}},
}


def queued(name: str, queue: str = QUEUE, *, priority: str = "", **spec: object) -> dict[str, Any]:
    """A job of two nodes with eight GPUs each that waits in this queue."""
    body = manifest(name, **{**GANG, **spec})
    labels = {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority}
    body["metadata"]["labels"] = {key: value for key, value in labels.items() if value}
    return body


def end(jobs: JobClient, name: str, attempt: int = 0) -> None:
    """Ends both pods of the job well and waits for its success."""
    for role in ("worker-0", "master-0"):
        jobs.end_pod(f"{name}-a{attempt}-{role}", 0)
    jobs.await_phase("Succeeded", name)


def await_waiting(jobs: JobClient, name: str, *, saying: str = "") -> Object:
    """The condition Admitted, once it says that the job waits for its queue, in words that hold these."""

    def is_waiting(found: Object) -> bool:
        return (found.get("status"), found.get("reason")) == ("False", "WaitingForQuota") and saying in found["message"]

    return wait_until(lambda: jobs.condition("Admitted", name), is_waiting, f"{name} to wait for its queue")


def workloads(jobs: JobClient, name: str) -> dict[str, Object]:
    """The Workloads of the job, or of its pod groups, by name."""
    items = jobs.plane.get(f"{API}/namespaces/{jobs.namespace}/workloads")["items"]
    return {each["metadata"]["name"]: each for each in items if each["metadata"]["name"].startswith(f"{name}-")}


def the_workload(jobs: JobClient, name: str) -> Object:
    """The only Workload of the job, once it is there."""
    found = wait_until(lambda: workloads(jobs, name), lambda found: len(found) == 1, f"one Workload of {name}")
    return next(iter(found.values()))


def condition(workload: Object, type_: str) -> Object:
    """One condition of a Workload, {} when it has none of this type."""
    found = (workload.get("status") or {}).get("conditions") or ()
    return next((each for each in found if each["type"] == type_), {})


def await_condition(jobs: JobClient, workload: str, type_: str, status: str = "True") -> Object:
    """The condition of the Workload of this name, once it is as wanted."""
    path = f"{API}/namespaces/{jobs.namespace}/workloads/{workload}"
    return wait_until(
        lambda: condition(jobs.plane.get(path) or {}, type_),
        lambda found: found.get("status") == status,
        f"Workload {workload} to be {type_}={status}",
    )


def set_active(jobs: JobClient, workload: str, *, is_active: bool) -> None:
    """Takes a Workload out of the queue, as an administrator does, or lets it in again."""
    path = f"{API}/namespaces/{jobs.namespace}/workloads/{workload}"
    jobs.plane.merge(path, {"spec": {"active": is_active}})


def gates(jobs: JobClient, name: str) -> set[str]:
    """Names of the scheduling gates that the job's pods still have."""
    return {each["name"] for pod in jobs.pods(name).values() for each in pod["spec"].get("schedulingGates") or ()}


def is_placed(jobs: JobClient, name: str, flavor: str) -> bool:
    """Whether every pod of the job is bound to the nodes of this flavor."""
    selectors = [pod["spec"].get("nodeSelector") for pod in jobs.pods(name).values()]
    return bool(selectors) and all(selector == {"pool": flavor} for selector in selectors)
