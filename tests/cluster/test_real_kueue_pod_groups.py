"""Jobs whose pods queue as a plain group, under the real Kueue controller."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.kueue import kueue_racks, real_kueue
from tests.support.kueue.kueue_jobs import (
    GANG,
    GPUS_PER_JOB,
    GPUS_PER_NODE,
    await_condition,
    await_waiting,
    end,
    gates,
    is_placed,
    queued,
    workloads,
)
from tests.support.operator.job_client import JobClient, new_namespace, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
GATE = "kueue.x-k8s.io/admission"


@pytest.fixture(scope="module")
def kueue_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with Kueue as it is installed by default, and an operator with its default settings."""
    yield from real_kueue.serving(tmp_path_factory.mktemp("pod-groups-plane"))


@pytest.fixture
def jobs(kueue_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[JobClient]:
    """Jobs of a namespace whose queue has room for one of them."""
    namespace = new_namespace(kueue_plane, request.node.name)
    real_kueue.add_queue(kueue_plane, namespace, num_gpus=GPUS_PER_JOB)
    yield JobClient(plane=kueue_plane, namespace=namespace)
    kueue_plane.delete(f"/api/v1/namespaces/{namespace}")


def test_the_second_job_is_held_as_a_whole_until_the_first_is_over(jobs: JobClient):
    jobs.submit(queued("first"))
    jobs.await_phase("Running", "first")
    assert gates(jobs, "first") == set()
    assert is_placed(jobs, "first", real_kueue.FLAVOR)
    jobs.submit(queued("second"))
    waiting = await_waiting(jobs, "second")
    assert waiting["message"] == "Kueue queue team-a has not admitted the pods."
    assert jobs.await_phase("Queued", "second")["reason"] == "WaitingForQuota"
    await_condition(jobs, "second-a0", "QuotaReserved", "False")
    assert all(pod["spec"]["schedulingGates"][0]["name"] == GATE for pod in jobs.pods("second").values())
    assert len(jobs.pods("second")) == 2
    end(jobs, "first")
    await_condition(jobs, "first-a0", "Finished")
    jobs.await_phase("Running", "second")
    assert gates(jobs, "second") == set()
    end(jobs, "second")
    assert jobs.status("second")["restarts"]["total"] == 0


def test_a_gang_that_restarts_is_a_new_group_and_leaves_no_quota_behind(jobs: JobClient):
    jobs.submit(queued("job"))
    jobs.await_phase("Running")
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    status = jobs.await_phase("Running")
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 1)
    await_condition(jobs, "job-a1", "Admitted")
    end(jobs, "job", attempt=1)
    jobs.submit(queued("next"))
    jobs.await_phase("Running", "next")


def test_a_preempted_job_queues_again_uncounted_and_runs_when_there_is_room(jobs: JobClient):
    jobs.submit(queued("low"))
    jobs.await_phase("Running", "low")
    jobs.submit(queued("high", priority=real_kueue.URGENT))
    jobs.await_phase("Running", "high")
    await_waiting(jobs, "low")
    status = jobs.await_phase("Queued", "low")
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)
    assert set(jobs.pods("low")) == {"low-a1-master-0", "low-a1-worker-0"}
    end(jobs, "high")
    jobs.await_phase("Running", "low")
    end(jobs, "low", attempt=1)


def test_a_job_that_fails_leaves_its_quota_to_the_next(jobs: JobClient):
    jobs.submit(queued("job", failurePolicy={"maxRestarts": 0}))
    jobs.await_phase("Running")
    jobs.submit(queued("next"))
    await_waiting(jobs, "next")
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_phase("Failed")
    jobs.await_phase("Running", "next")
    await_condition(jobs, "job-a0", "Finished")


def test_a_job_that_is_deleted_leaves_its_quota_to_the_next(jobs: JobClient):
    jobs.submit(queued("job"))
    jobs.await_phase("Running")
    jobs.submit(queued("next"))
    await_waiting(jobs, "next")
    jobs.delete()
    jobs.await_pods()
    jobs.await_phase("Running", "next")


def test_a_suspended_job_gives_its_quota_to_the_next(jobs: JobClient):
    jobs.submit(queued("job"))
    jobs.await_phase("Running")
    jobs.submit(queued("next"))
    await_waiting(jobs, "next")
    jobs.patch("job", suspend=True)
    jobs.await_phase("Suspended")
    jobs.await_phase("Running", "next")
    jobs.patch("job", suspend=False)
    await_waiting(jobs, "job")
    end(jobs, "next")
    jobs.await_phase("Running")


def test_the_whole_gang_gets_one_rack(jobs: JobClient):
    kueue_racks.add_racks(jobs)
    rack = {"topology": {"mode": "Required", "key": kueue_racks.RACK}}
    jobs.submit(queued("job", kueue_racks.QUEUE, scheduling=rack))
    jobs.await_phase("Running")
    assert gates(jobs, "job") == set()
    assert kueue_racks.hosts(jobs, "job") == {"b-0", "b-1"}
    jobs.submit(queued("anywhere", kueue_racks.QUEUE))
    jobs.await_phase("Running", "anywhere")
    assert kueue_racks.hosts(jobs, "anywhere") == {"a-0", "c-0"}


def test_a_gang_of_many_nodes_is_one_group(jobs: JobClient):
    """Kueue takes at most 18 kinds of pods a group: all workers have to look alike to it."""
    real_kueue.add_queue(jobs.plane, jobs.namespace, "large", num_gpus=24 * GPUS_PER_NODE)
    args = {**GANG["args"], "global_batch_size": 24 * GPUS_PER_NODE}
    jobs.submit(queued("job", "large", numNodes=24, args=args))
    jobs.await_phase("Running")
    pod_sets = workloads(jobs, "job")["job-a0"]["spec"]["podSets"]
    assert sorted(each["count"] for each in pod_sets) == [1, 23]


def test_a_spare_waits_for_quota_by_itself_and_keeps_no_gang_waiting(jobs: JobClient):
    """The queue has room for the gang alone."""
    jobs.submit(queued("job", scheduling={"spares": 1}))
    jobs.await_phase("Running")
    spare = wait_until(lambda: jobs.pods().get("job-a0-spare-0"), bool, "the spare")
    assert GATE in {gate["name"] for gate in spare["spec"]["schedulingGates"]}
    jobs.end_pod("job-a0-worker-0", 137)
    wait_until(lambda: "job-a1-worker-0" in jobs.pods(), bool, "the next gang")
    jobs.await_phase("Running")
    wait_until(lambda: "job-a1-spare-0" in jobs.pods(), bool, "the next spare")
    end(jobs, "job", attempt=1)
    wait_until(lambda: "job-a1-spare-0" in jobs.pods(), lambda found: not found, "no spare of a finished job")
