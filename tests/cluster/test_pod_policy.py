"""The chart's example policy on the real API server: what pods of jobs may not have, and what a job then says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_cluster.control_plane import ControlPlane, Refused
from local_cluster.helm_chart import FULL_NAME, of_kind, render
from tests.support.operator.job_client import POLICIES, JobClient, manifest, wait_until
from tests.support.operator.operator_process import OperatorProcess

pytestmark = pytest.mark.cluster
LABELS = {"megatrontrain.dev/job-name": "job"}


def pod(labels: dict[str, str] = LABELS, **spec: object) -> dict:
    return {
        "metadata": {"name": "probe", "labels": labels},
        "spec": {"containers": [{"name": "trainer", "image": "x"}], **spec},
    }


@pytest.fixture
def policy(plane: ControlPlane, jobs: JobClient) -> Iterator[None]:
    """The policy, in force in this test's namespace."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": jobs.namespace}}
    objects = render(podPolicy__enabled=True, podPolicy__namespaceSelector=selector)
    mine = [
        (kind, each)
        for kind in POLICIES
        for each in of_kind(objects, kind)
        if each["metadata"]["name"] == f"{FULL_NAME}-pods"
    ]
    for kind, each in mine:
        plane.create(POLICIES[kind], each)
    wait_until(lambda: refusal(jobs, pod(hostNetwork=True)), bool, "the policy to be in force")
    yield
    for kind, each in mine:
        plane.delete(f"{POLICIES[kind]}/{each['metadata']['name']}")


def refusal(jobs: JobClient, body: dict) -> str:
    """Why the server refuses this pod, "" when it takes it. Nothing is stored."""
    try:
        jobs.plane.create(jobs.path("pods"), body, dryRun="All")
    except Refused as refused:
        return refused.message
    return ""


def test_pods_of_jobs_get_nothing_of_the_node_and_no_other_account(jobs: JobClient, policy: None):
    jobs.plane.create(jobs.path("serviceaccounts"), {"metadata": {"name": "powerful"}})
    volume = {"name": "node", "hostPath": {"path": "/"}}
    assert "hostPath" in refusal(jobs, pod(volumes=[volume]))
    assert "hostNetwork" in refusal(jobs, pod(hostNetwork=True))
    assert "hostNetwork" in refusal(jobs, pod(hostPID=True))
    assert "serviceAccountName" in refusal(jobs, pod(serviceAccountName="powerful"))
    assert refusal(jobs, pod(volumes=[{"name": "scratch", "emptyDir": {}}])) == ""
    assert refusal(jobs, pod({}, volumes=[volume])) == ""


def test_a_job_against_the_policy_says_so(operator: OperatorProcess, jobs: JobClient, policy: None):
    jobs.submit(manifest(network={"hostNetwork": True}))
    stalled = wait_until(lambda: jobs.condition("Stalled"), lambda each: each.get("status") == "True", "Stalled")
    assert "hostNetwork" in stalled["message"]
    assert jobs.pods() == {}
