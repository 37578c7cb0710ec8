"""The rate at which a bare client creates what the operator creates, on the same server in the same run.

Once with the kubelet stand-in at work on its pods, as it is on the operator's, and once with pods that no one runs, as
the operator is measured once more.
"""

from __future__ import annotations

import asyncio
import json
import time

from operator_bench import FEW_JOBS, PODS_PER_JOB, Bench, count, each, job_body, start_kubelet, submit, wait

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import CONFIG_MAP, JOB, POD, SERVICE, Resource
from tests.support.operator import operator_process
from tests.support.operator.job_client import new_namespace

SETTLING_S = 3.0


def rates(bench: Bench, example: list[tuple]) -> None:
    """What a bare client reaches and the operator's share of it: with pods that run, and that no one runs."""
    for suffix, run in (("", True), ("_of_pods_not_run", False)):
        ours = bench.found["pods_per_second"] if run else created_rate(bench)
        assert isinstance(ours, float)
        raw = raw_rate(bench, example, run=run)
        if not run:
            bench.note(f"pods_per_second{suffix}", ours)
        bench.note(f"raw_client_pods_per_second{suffix}", raw)
        bench.note(f"operator_per_raw_client{suffix}", ours / raw)


def created_rate(bench: Bench) -> float:
    """Pods a second from the first submission until all exist, where no kubelet costs the server anything."""
    namespace, num_jobs = new_namespace(bench.plane, "created"), min(FEW_JOBS, bench.num_jobs)
    with operator_process.running(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace):
        started = time.monotonic()
        submit(bench, namespace, num_jobs)
        wait(lambda: count(bench.plane, namespace, "pods") >= num_jobs * PODS_PER_JOB, every_s=0.1)
        rate = num_jobs * PODS_PER_JOB / (time.monotonic() - started)
    bench.plane.delete(f"/api/v1/namespaces/{namespace}")
    time.sleep(SETTLING_S)
    return rate


def raw_rate(bench: Bench, example: list[tuple], *, run: bool) -> float:
    """Pods a second that a bare client creates, with a service and a config map for every eight.

    run: the kubelet stand-in makes them run meanwhile, which costs the server as much as creating them.
    """
    namespace, num_jobs = new_namespace(bench.plane, "raw"), min(FEW_JOBS, bench.num_jobs)
    kubelet = start_kubelet(bench, namespace) if run else None
    time.sleep(SETTLING_S)
    bodies = bare_objects(bench.plane, namespace, example, num_jobs)

    async def create_all() -> float:
        async with Client(from_kubeconfig(bench.plane.kubeconfig)) as client:
            started = time.monotonic()
            await each(bodies, lambda pair: client.create(pair[0], namespace, pair[1]), parallel=32)
            return num_jobs * PODS_PER_JOB / (time.monotonic() - started)

    rate = asyncio.run(create_all())
    if kubelet:
        kubelet.terminate()
    bench.plane.delete(f"/api/v1/namespaces/{namespace}")
    time.sleep(SETTLING_S)
    return rate


def example_objects(bench: Bench, namespace: str) -> list[tuple]:
    """The objects of one job as the operator made them, to be made again by a bare client."""
    label = "?labelSelector=megatrontrain.dev/job-name=job-0"
    return [
        (resource, _as_made(resource, raw))
        for resource in (CONFIG_MAP, SERVICE, POD)
        for raw in bench.plane.get(resource.path(namespace) + label)["items"]
    ]


def _as_made(resource: Resource, raw: dict) -> dict:
    """The object without what the server added; labels, annotations and the owner cost the server time, too."""
    kept = {key: raw["metadata"][key] for key in ("labels", "annotations", "ownerReferences") if key in raw["metadata"]}
    body = {"metadata": {"name": raw["metadata"]["name"], **kept}}
    if resource is CONFIG_MAP:
        return {**body, "data": raw["data"]}
    of_server = ("nodeName", "clusterIP", "clusterIPs")
    spec = {key: value for key, value in raw["spec"].items() if key not in of_server}
    return {**body, "spec": {**spec, **({"clusterIP": "None"} if resource is SERVICE else {})}}


def bare_objects(plane: ControlPlane, namespace: str, example: list[tuple], num_jobs: int) -> list[tuple]:
    """The objects of so many jobs for a bare client, all owned by one job that no operator reconciles."""
    asyncio.run(_create(plane, namespace, job_body(0)))
    uid = plane.get(f"{JOB.path(namespace)}/job-0")["metadata"]["uid"]
    return [(resource, _named(body, index, uid)) for index in range(num_jobs) for resource, body in example]


async def _create(plane: ControlPlane, namespace: str, body: dict) -> None:
    async with Client(from_kubeconfig(plane.kubeconfig)) as client:
        await client.create(JOB, namespace, body)


def _named(body: dict, index: int, owner_uid: str) -> dict:
    """The object as one of the job with this index: a service that selects its eight pods, and no others."""
    own = json.loads(json.dumps(body).replace("job-0", f"job-{index}"))
    owners = [{**owner, "name": "job-0", "uid": owner_uid} for owner in body["metadata"]["ownerReferences"]]
    return {**own, "metadata": {**own["metadata"], "ownerReferences": owners}}
