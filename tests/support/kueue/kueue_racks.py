"""Nodes in racks for the real Kueue, and a queue that knows which node is in which: for jobs that want one rack."""

from __future__ import annotations

import asyncio

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from tests.support.kueue.kueue_jobs import GPUS_PER_NODE
from tests.support.kueue.real_kueue import API, GPU, add_queue, named
from tests.support.operator import fake_kubelet
from tests.support.operator.job_client import JobClient

RACK, HOST = "rack", "kubernetes.io/hostname"
# Only one rack has room for a gang of two; what is placed node by node would begin in a smaller one.
NODES = {"a-0": "a", "b-0": "b", "b-1": "b", "c-0": "c"}
QUEUE = "racks"


def add_racks(jobs: JobClient) -> None:
    """Nodes of eight GPUs each in their racks, and the queue `racks` of this namespace for all of them."""
    plane = jobs.plane
    asyncio.run(_make_nodes(plane))
    for node, rack in NODES.items():
        plane.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {RACK: rack, HOST: node, "pool": QUEUE}}})
    levels = [{"nodeLabel": RACK}, {"nodeLabel": HOST}]
    plane.create(f"{API}/topologies", named("Topology", QUEUE, spec={"levels": levels}))
    spec = {"nodeLabels": {"pool": QUEUE}, "topologyName": QUEUE}
    plane.create(f"{API}/resourceflavors", named("ResourceFlavor", QUEUE, spec=spec))
    add_queue(plane, jobs.namespace, QUEUE, flavor=QUEUE, num_gpus=len(NODES) * GPUS_PER_NODE)


def hosts(jobs: JobClient, name: str) -> set[str]:
    """The nodes that the job's pods are bound to."""
    return {pod["spec"].get("nodeSelector", {}).get(HOST, "") for pod in jobs.pods(name).values()}


async def _make_nodes(plane: ControlPlane) -> None:
    async with Client(from_kubeconfig(plane.kubeconfig)) as client:
        for node in NODES:
            await fake_kubelet.make_node(client, node, capacity={GPU: str(GPUS_PER_NODE)})
