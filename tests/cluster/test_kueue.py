"""Kueue's protocol for jobs of other projects, on the real API server with a stand-in for Kueue's controllers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.kueue import kueue_stand_in as kueue
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, manifest, new_namespace, serving, wait_until
from tests.support.operator.operator_process import OperatorProcess

pytestmark = pytest.mark.cluster
QUEUE = {"kueue.x-k8s.io/queue-name": "team-a"}
EXTERNAL = {"MTJ_KUEUE_MODE": "External"}


@pytest.fixture(scope="module")
def kueue_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, on which Kueue is installed only by the test that asks for it."""
    for plane in serving(tmp_path_factory.mktemp("kueue-plane")):
        with fake_kubelet.playing(FakeKubelet(kubeconfig=plane.kubeconfig)):
            yield plane


@pytest.fixture(scope="module")
def served(kueue_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """An operator in external mode on a cluster that has Kueue."""
    kueue.install(kueue_plane)
    kueue.add_places(kueue_plane)
    folder = tmp_path_factory.mktemp("kueue-operator")
    with operator_process.running(kueue_plane.kubeconfig, folder, **EXTERNAL) as running:
        yield running


@pytest.fixture
def jobs(kueue_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[JobClient]:
    """Jobs of a namespace of this test's own."""
    namespace = new_namespace(kueue_plane, request.node.name)
    yield JobClient(plane=kueue_plane, namespace=namespace)
    kueue_plane.delete(f"/api/v1/namespaces/{namespace}")


def queued(**spec: object) -> dict:
    """A job with a queue."""
    body = manifest(**spec)
    body["metadata"]["labels"] = QUEUE
    return body


def test_without_kueue_the_job_says_so_and_makes_no_pod(kueue_plane: ControlPlane, jobs: JobClient, tmp_path: Path):
    """First in this module: the others install Kueue."""
    with operator_process.running(kueue_plane.kubeconfig, tmp_path, MTJ_WATCH_NAMESPACES=jobs.namespace, **EXTERNAL):
        jobs.submit(queued())
        stalled = wait_until(lambda: jobs.condition("Stalled"), bool, "condition Stalled")
    assert stalled["reason"] == "KueueMissing"
    assert jobs.pods() == {}
    assert jobs.status()["phase"] == "Queued"


def test_a_job_has_pods_only_once_admitted_and_where_its_flavor_is(served: OperatorProcess, jobs: JobClient):
    jobs.submit(queued())
    workload = kueue.the_workload(jobs)
    assert workload["spec"]["queueName"] == "team-a"
    assert [(each["name"], each["count"]) for each in workload["spec"]["podSets"]] == [("master", 1), ("worker", 1)]
    assert workload["metadata"]["labels"]["kueue.x-k8s.io/job-uid"] == jobs.job()["metadata"]["uid"]
    status = jobs.await_phase("Queued")
    assert status["reason"] == "WaitingForQuota"
    assert "startTime" not in status
    assert jobs.pods() == {}
    kueue.admit(jobs, "spot")
    jobs.await_phase("Running")
    for pod in jobs.pods().values():
        assert pod["spec"]["nodeSelector"] == {"pool": "spot"}
        assert {"key": "spot", "operator": "Exists"} in pod["spec"]["tolerations"]
        assert "kueue.x-k8s.io/pod-group-name" not in pod["metadata"]["labels"]
    wait_until(lambda: kueue.condition(kueue.the_workload(jobs), "PodsReady").get("status"), "True".__eq__, "PodsReady")
    for pod in jobs.pods():
        jobs.end_pod(pod, 0)
    jobs.await_phase("Succeeded")
    finished = wait_until(lambda: kueue.condition(kueue.the_workload(jobs), "Finished"), bool, "Finished")
    assert (finished["status"], finished["reason"]) == ("True", "Succeeded")


def test_an_evicted_job_stops_gives_its_quota_back_and_runs_again_uncounted(served: OperatorProcess, jobs: JobClient):
    jobs.submit(queued())
    kueue.admit(jobs, "spot")
    jobs.await_phase("Running")
    kueue.evict(jobs)
    jobs.await_pods()
    released = wait_until(
        lambda: kueue.the_workload(jobs),
        lambda found: kueue.condition(found, "QuotaReserved").get("status") == "False",
        "the quota to be given back",
    )
    assert "admission" not in released["status"]
    assert kueue.condition(released, "Requeued")["status"] == "True"
    assert jobs.await_phase("Queued")["restarts"]["total"] == 0
    kueue.readmit(jobs, "spot")
    status = jobs.await_phase("Running")
    assert (status["restarts"]["total"], status["restarts"]["attempt"]) == (0, 1)


def test_a_gang_that_restarts_keeps_its_quota(served: OperatorProcess, jobs: JobClient):
    jobs.submit(queued(failurePolicy={"backoffSeconds": {"initial": 0, "max": 1}}))
    kueue.admit(jobs, "spot")
    jobs.await_phase("Running")
    name = kueue.the_workload(jobs)["metadata"]["name"]
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    assert kueue.the_workload(jobs)["metadata"]["name"] == name
    assert kueue.condition(kueue.the_workload(jobs), "Admitted")["status"] == "True"


def test_a_suspended_job_leaves_the_queue_and_joins_it_again(served: OperatorProcess, jobs: JobClient):
    jobs.submit(queued())
    kueue.admit(jobs, "spot")
    jobs.await_phase("Running")
    jobs.patch("job", suspend=True)
    jobs.await_phase("Suspended")
    wait_until(lambda: kueue.workloads(jobs), lambda found: found == [], "no Workload")
    jobs.patch("job", numNodes=4, suspend=False)
    assert kueue.the_workload(jobs)["spec"]["podSets"][1]["count"] == 3
    kueue.admit(jobs, "spot")
    jobs.await_phase("Running")
    assert len(jobs.pods()) == 4


def test_the_priority_is_that_of_the_named_class_and_a_missing_class_is_reported(
    served: OperatorProcess, jobs: JobClient
):
    body = queued()
    body["metadata"]["labels"] = {**QUEUE, "kueue.x-k8s.io/priority-class": "urgent"}
    jobs.submit(body)
    spec = kueue.the_workload(jobs)["spec"]
    assert (spec["priority"], spec["priorityClassRef"]["kind"]) == (1000, "WorkloadPriorityClass")
    other = queued(scheduling={"priorityClassName": "nowhere"})
    other["metadata"]["name"] = "other"
    jobs.submit(other)
    stalled = wait_until(lambda: jobs.condition("Stalled", "other"), bool, "condition Stalled")
    assert stalled["reason"] == "PriorityClassMissing"


def test_a_running_job_is_left_alone_by_a_restarted_operator(
    served: OperatorProcess, kueue_plane: ControlPlane, jobs: JobClient, tmp_path: Path
):
    """Workloads that are not listed yet must not look like ones that no one has admitted."""
    jobs.submit(queued())
    kueue.admit(jobs, "spot")
    jobs.await_phase("Running")
    before = {name: pod["metadata"]["uid"] for name, pod in jobs.pods().items()}
    variables = {"MTJ_WATCH_NAMESPACES": jobs.namespace, **EXTERNAL}
    with operator_process.running(kueue_plane.kubeconfig, tmp_path, **variables) as second:
        wait_until(lambda: second.metric("megatron_operator_reconcile_seconds_count"), bool, "a look at the job")
    assert {name: pod["metadata"]["uid"] for name, pod in jobs.pods().items()} == before
