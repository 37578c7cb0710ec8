"""Native gang scheduling with the real scheduler: all pods of an attempt get nodes, or none does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, manifest, new_namespace, serving, wait_until

pytestmark = pytest.mark.cluster
GPUS = {"nvidia.com/gpu": "8"}
GANG = {
    "numNodes": 4,
    "nprocPerNode": 8,
    "resourcesPerNode": {"limits": GPUS},
    "scheduling": {"gang": "Native"},
    "args": {"model": "/models/tiny", "dataset": ["/data/a"], "train_iters": 10, "global_batch_size": 32},
}
SETTLING_S = 3.0


@pytest.fixture(scope="module")
def gang_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the scheduler, an operator that may make PodGroups, and no node yet."""
    for plane in serving(tmp_path_factory.mktemp("gang-plane")):
        plane.start_scheduler()
        kubelet = FakeKubelet(kubeconfig=plane.kubeconfig, placing="scheduler")
        folder = tmp_path_factory.mktemp("gang-operator")
        with (
            fake_kubelet.playing(kubelet, with_node=False),
            operator_process.running(plane.kubeconfig, folder, MTJ_GANG_SCHEDULERS="Native"),
        ):
            yield plane


@pytest.fixture
def jobs(gang_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[JobClient]:
    """Jobs of a namespace of this test's own, on a cluster without nodes."""
    namespace = new_namespace(gang_plane, request.node.name)
    yield JobClient(plane=gang_plane, namespace=namespace)
    gang_plane.delete(f"/api/v1/namespaces/{namespace}")
    for node in gang_plane.get("/api/v1/nodes")["items"]:
        gang_plane.delete(f"/api/v1/nodes/{node['metadata']['name']}")


def add_nodes(plane: ControlPlane, *names: str) -> None:
    """Adds ready nodes of eight GPUs each."""

    async def add() -> None:
        async with Client(from_kubeconfig(plane.kubeconfig)) as client:
            for name in names:
                await fake_kubelet.make_node(client, name, capacity=GPUS)

    asyncio.run(add())


def placed(jobs: JobClient, name: str = "job") -> int:
    """How many of the job's pods have a node."""
    return sum(1 for pod in jobs.pods(name).values() if pod["spec"].get("nodeName"))


def test_no_pod_is_placed_until_there_is_room_for_the_whole_gang(jobs: JobClient):
    add_nodes(jobs.plane, "one", "two", "three")
    jobs.submit(manifest(**GANG))
    wait_until(lambda: jobs.condition("Admitted").get("reason"), lambda r: r == "GangUnschedulable", "the queue")
    time.sleep(SETTLING_S)
    assert len(jobs.pods()) == 4
    assert placed(jobs) == 0
    add_nodes(jobs.plane, "four")
    jobs.await_phase("Running")
    assert placed(jobs) == 4
    assert jobs.condition("Admitted")["status"] == "True"


def test_two_jobs_that_fit_one_at_a_time_run_one_after_the_other(jobs: JobClient):
    add_nodes(jobs.plane, *(f"node-{index}" for index in range(5)))
    for name in ("first", "second"):
        jobs.submit(manifest(name, **GANG))
    statuses = wait_until(
        lambda: {name: jobs.status(name).get("phase") for name in ("first", "second")},
        lambda phases: "Running" in phases.values(),
        "one of the two to run",
    )
    running = next(name for name, phase in statuses.items() if phase == "Running")
    waiting = {"first": "second", "second": "first"}[running]
    time.sleep(SETTLING_S)
    assert (placed(jobs, running), placed(jobs, waiting)) == (4, 0)
    for pod in jobs.pods(running):
        jobs.end_pod(pod, 0)
    jobs.await_phase("Running", waiting)


def test_a_gang_of_a_scheduler_that_the_operator_may_not_use_is_said_to_be_missing(jobs: JobClient):
    jobs.submit(manifest(**{**GANG, "scheduling": {"gang": "Volcano"}}))
    stalled = wait_until(lambda: jobs.condition("Stalled"), bool, "condition Stalled")
    assert stalled["reason"] == "GangSchedulerMissing"
    assert jobs.pods() == {}


def test_a_node_on_which_a_job_failed_gets_none_of_its_pods_until_that_is_over(jobs: JobClient):
    """Each pod fills a node, so that the gang waits while one of the two is excluded."""
    add_nodes(jobs.plane, "good", "bad")
    policy = {"nodeExclusion": {"afterFailures": 1}, "backoffSeconds": {"initial": 0}}
    jobs.submit(manifest(**{**GANG, "numNodes": 2, "failurePolicy": policy}))
    jobs.await_phase("Running")
    nodes = {pod["spec"]["nodeName"]: name for name, pod in jobs.pods().items()}
    assert set(nodes) == {"good", "bad"}
    jobs.end_pod(nodes["bad"], 134)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    jobs.await_events("NodeExcluded")
    (failed,) = jobs.status()["failedNodes"]
    assert (failed["name"], failed["failures"], "excludedTime" in failed) == ("bad", 1, True)
    wait_until(lambda: jobs.condition("Admitted").get("reason"), lambda r: r == "GangUnschedulable", "the gang to wait")
    add_nodes(jobs.plane, "third")
    jobs.await_phase("Running")
    assert {pod["spec"]["nodeName"] for pod in jobs.pods().values()} == {"good", "third"}
    jobs.end_pod("job-a1-worker-0", 134)
    jobs.await_pods("job-a2-master-0", "job-a2-worker-0")
    wait_until(lambda: jobs.condition("Admitted").get("reason"), lambda r: r == "GangUnschedulable", "the gang to wait")
    jobs.patch("job", failurePolicy={**policy, "nodeExclusion": None})
    jobs.await_pods("job-a3-master-0", "job-a3-worker-0")
    jobs.await_events("NodesUsedAgain")
    jobs.await_phase("Running")
    assert "failedNodes" not in jobs.status()


def test_a_gang_that_lost_a_node_takes_the_one_that_a_spare_held(jobs: JobClient):
    """Another job waits for a node all the time, and gets none."""
    add_nodes(jobs.plane, "one", "two", "three")
    scheduling = {"gang": "Native", "spares": 1}
    at_once = {"backoffSeconds": {"initial": 0}}
    jobs.submit(manifest(**{**GANG, "numNodes": 2, "scheduling": scheduling, "failurePolicy": at_once}))
    jobs.await_phase("Running")
    wait_until(lambda: jobs.status().get("spares"), lambda found: found == {"desired": 1, "running": 1}, "the spare")
    jobs.submit(manifest("other", **{**GANG, "numNodes": 1}))
    pods = {name: pod["spec"]["nodeName"] for name, pod in jobs.pods().items()}
    assert len(set(pods.values())) == 3
    jobs.plane.merge(f"/api/v1/nodes/{pods['job-a0-worker-0']}", {"spec": {"unschedulable": True}})
    jobs.end_pod("job-a0-worker-0", 134)
    wait_until(lambda: jobs.status()["restarts"]["attempt"], lambda attempt: attempt == 1, "the next attempt")
    jobs.await_phase("Running")
    again = {name: pod["spec"].get("nodeName") for name, pod in jobs.pods().items() if "-a1-" in name}
    left = {pods["job-a0-master-0"], pods["job-a0-spare-0"]}
    assert {again[f"job-a1-{role}-0"] for role in ("master", "worker")} == left
    wait_until(lambda: set(jobs.pods()), lambda names: "job-a1-spare-0" in names, "the next spare")
    assert placed(jobs, "other") == 0
    assert jobs.status()["restarts"]["total"] == 1
    jobs.patch("job", suspend=True)
    wait_until(jobs.pods, lambda found: not found, "no pod of the suspended job")
