"""Jobs that queue as a whole by a Workload of the operator, under the real Kueue controller."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.kueue import kueue_racks, real_kueue
from tests.support.kueue.kueue_jobs import (
    GPUS_PER_JOB,
    GPUS_PER_NODE,
    await_condition,
    await_waiting,
    end,
    gates,
    is_placed,
    queued,
    set_active,
    the_workload,
    workloads,
)
from tests.support.operator.job_client import JobClient, new_namespace, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def kueue_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane whose Kueue knows the kind as an external framework, and an operator in external mode."""
    yield from real_kueue.serving(
        tmp_path_factory.mktemp("workloads-plane"), real_kueue.EXTERNAL_FRAMEWORK, MTJ_KUEUE_MODE="External"
    )


@pytest.fixture
def jobs(kueue_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[JobClient]:
    """Jobs of a namespace whose queue has room for one of them."""
    namespace = new_namespace(kueue_plane, request.node.name)
    real_kueue.add_queue(kueue_plane, namespace, num_gpus=GPUS_PER_JOB)
    yield JobClient(plane=kueue_plane, namespace=namespace)
    kueue_plane.delete(f"/api/v1/namespaces/{namespace}")


def test_the_second_job_has_no_pod_until_the_first_is_over(jobs: JobClient):
    jobs.submit(queued("first"))
    jobs.await_phase("Running", "first")
    assert gates(jobs, "first") == set()
    assert is_placed(jobs, "first", real_kueue.FLAVOR)
    first = the_workload(jobs, "first")["metadata"]["name"]
    await_condition(jobs, first, "PodsReady")
    jobs.submit(queued("second"))
    await_waiting(jobs, "second", saying="insufficient unused quota")
    assert jobs.status("second")["phase"] == "Queued"
    assert jobs.pods("second") == {}
    end(jobs, "first")
    assert await_condition(jobs, first, "Finished")["reason"] == "Succeeded"
    jobs.await_phase("Running", "second")
    end(jobs, "second")


def test_pods_are_not_queued_a_second_time_where_a_default_queue_takes_what_names_none(jobs: JobClient):
    real_kueue.add_queue(jobs.plane, jobs.namespace, "default", num_gpus=GPUS_PER_JOB)
    jobs.submit(queued("job"))
    jobs.await_phase("Running")
    assert all("kueue.x-k8s.io/managed" not in pod["metadata"]["labels"] for pod in jobs.pods().values())
    assert len(workloads(jobs, "job")) == 1


def test_a_job_that_fails_leaves_its_quota_to_the_next(jobs: JobClient):
    jobs.submit(queued("job", failurePolicy={"maxRestarts": 0}))
    jobs.await_phase("Running")
    jobs.submit(queued("next"))
    await_waiting(jobs, "next")
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_phase("Failed")
    jobs.await_phase("Running", "next")
    name = the_workload(jobs, "job")["metadata"]["name"]
    assert await_condition(jobs, name, "Finished")["reason"] == "Failed"


def test_a_gang_that_restarts_keeps_its_quota(jobs: JobClient):
    jobs.submit(queued("job"))
    jobs.await_phase("Running")
    before = the_workload(jobs, "job")["metadata"]["uid"]
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    jobs.await_phase("Running")
    after = the_workload(jobs, "job")
    assert after["metadata"]["uid"] == before
    await_condition(jobs, after["metadata"]["name"], "PodsReady")
    await_condition(jobs, after["metadata"]["name"], "Admitted")


def test_a_preempted_job_gives_its_quota_back_and_runs_again_uncounted(jobs: JobClient):
    jobs.submit(queued("low"))
    jobs.await_phase("Running", "low")
    jobs.submit(queued("high", priority=real_kueue.URGENT))
    jobs.await_phase("Running", "high")
    status = jobs.await_phase("Queued", "low")
    assert jobs.pods("low") == {}
    assert status["restarts"]["total"] == 0
    end(jobs, "high")
    status = jobs.await_phase("Running", "low")
    assert (status["restarts"]["total"], status["restarts"]["attempt"]) == (0, 1)
    end(jobs, "low", attempt=1)


def test_a_workload_that_is_deactivated_stops_its_job_until_it_is_active_again(jobs: JobClient):
    jobs.submit(queued("job"))
    jobs.await_phase("Running")
    name = the_workload(jobs, "job")["metadata"]["name"]
    set_active(jobs, name, is_active=False)
    jobs.await_pods()
    await_condition(jobs, name, "QuotaReserved", "False")
    status = jobs.await_phase("Queued")
    assert (status["reason"], status["restarts"]["total"]) == ("KueueEvicted", 0)
    jobs.submit(queued("next"))
    jobs.await_phase("Running", "next")
    end(jobs, "next")
    set_active(jobs, name, is_active=True)
    jobs.await_phase("Running")


def test_a_suspended_job_leaves_the_queue_and_joins_it_again(jobs: JobClient):
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


def test_a_job_that_is_deleted_leaves_its_quota_to_the_next(jobs: JobClient):
    jobs.submit(queued("job"))
    jobs.await_phase("Running")
    jobs.submit(queued("next"))
    await_waiting(jobs, "next")
    jobs.delete()
    jobs.await_pods()
    jobs.await_phase("Running", "next")


def test_the_whole_gang_gets_one_rack_and_keeps_it(jobs: JobClient):
    kueue_racks.add_racks(jobs)
    rack = {"topology": {"mode": "Required", "key": kueue_racks.RACK}}
    jobs.submit(queued("job", kueue_racks.QUEUE, scheduling=rack))
    jobs.await_phase("Running")
    assert gates(jobs, "job") == set()
    assert kueue_racks.hosts(jobs, "job") == {"b-0", "b-1"}
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    jobs.await_phase("Running")
    assert kueue_racks.hosts(jobs, "job") == {"b-0", "b-1"}
    jobs.submit(queued("anywhere", kueue_racks.QUEUE))
    jobs.await_phase("Running", "anywhere")
    assert kueue_racks.hosts(jobs, "anywhere") == {"a-0", "c-0"}


def test_the_quota_of_spares_is_reserved_with_that_of_the_gang(jobs: JobClient):
    real_kueue.add_queue(jobs.plane, jobs.namespace, "wide", num_gpus=GPUS_PER_JOB + GPUS_PER_NODE)
    jobs.submit(queued("job", "wide", scheduling={"spares": 1}))
    jobs.await_phase("Running")
    assert wait_until(lambda: jobs.status().get("spares"), lambda it: it["running"] == 1, "the spare")["desired"] == 1
    sets = {each["name"]: each["count"] for each in the_workload(jobs, "job")["spec"]["podSets"]}
    assert sets == {"master": 1, "worker": 1, "spare": 1}
    jobs.submit(queued("narrow", scheduling={"spares": 1}))
    await_waiting(jobs, "narrow", saying="insufficient")
    assert jobs.pods("narrow") == {}
    jobs.patch("job", suspend=True)
    wait_until(jobs.pods, lambda found: not found, "no pod of the suspended job")
