"""Right blame on the real API server: successes that stay, workers that are removed, jobs that are made again."""

from __future__ import annotations

import pytest

from tests.support.operator.job_client import JobClient, manifest, wait_until
from tests.support.operator.operator_process import OperatorProcess

pytestmark = pytest.mark.cluster


def test_a_job_made_again_at_once_waits_for_the_objects_of_the_one_before(operator: OperatorProcess, jobs: JobClient):
    jobs.submit(manifest())
    jobs.await_phase("Running")
    held = jobs.path("pods", "job-a0-worker-0")
    jobs.plane.merge(held, {"metadata": {"finalizers": ["test.example/held"]}})
    jobs.delete()
    wait_until(jobs.job, lambda job: job is None, "the job to be gone")
    again = jobs.submit(manifest())
    wait_until(jobs.pods, lambda pods: set(pods) == {"job-a0-worker-0"} or len(pods) == 2, "the others to go")
    assert jobs.condition("Stalled").get("status") != "True"
    assert jobs.plane.get(held)["metadata"]["ownerReferences"][0]["uid"] != again["metadata"]["uid"]
    jobs.plane.merge(held, {"metadata": {"finalizers": []}})
    jobs.await_phase("Running")
    assert jobs.plane.get(held)["metadata"]["ownerReferences"][0]["uid"] == again["metadata"]["uid"]
    assert jobs.status()["restarts"]["total"] == 0


def test_a_worker_that_succeeded_and_is_removed_restarts_nothing(operator: OperatorProcess, jobs: JobClient):
    jobs.submit(manifest())
    jobs.await_phase("Running")
    jobs.end_pod("job-a0-worker-0", 0)
    jobs.plane.delete(jobs.path("pods", "job-a0-worker-0"))
    jobs.await_pods("job-a0-master-0")
    jobs.end_pod("job-a0-master-0", 0)
    status = jobs.await_phase("Succeeded")
    assert status["restarts"] == {**status["restarts"], "total": 0, "attempt": 0}


def test_a_suspension_right_after_the_success_keeps_it(operator: OperatorProcess, jobs: JobClient):
    jobs.submit(manifest())
    jobs.await_phase("Running")
    jobs.end_pod("job-a0-worker-0", 0)
    jobs.end_pod("job-a0-master-0", 0)
    jobs.patch("job", suspend=True)
    jobs.await_phase("Succeeded")
