"""Pods that say the oddest things, on the real API server: their own job answers for them, no other notices."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane, Refused
from tests.support.operator import fake_kubelet, operator_process, pod_fuzz
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, manifest, new_namespace, wait_until
from tests.support.operator.operator_process import OperatorProcess

pytestmark = pytest.mark.cluster
LABEL = "megatrontrain.dev"
NEVER = {"maxRestarts": 0}
MESSAGES = {
    "a log line in JSON": '{"level": "error", "message": {"text": "CUDA error", "code": 700}}',
    "a number": '{"reason": "ERROR", "message": 7, "iteration": 1e400}',
    "deep nesting": "[" * 2000,
    "a giant integer": '{"reason": "ERROR", "iteration": ' + "9" * 4000 + "}",
    "half a character": '{"reason": "ERROR\\ud800", "message": "\\ud800"}',
    "a list as reason": '{"reason": ["ERROR"], "message": null}',
}


@pytest.fixture
def neighbor(plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[JobClient]:
    """A namespace of somebody else."""
    namespace = new_namespace(plane, f"next-to-{request.node.name}"[:50])
    yield JobClient(plane=plane, namespace=namespace)
    plane.delete(f"/api/v1/namespaces/{namespace}")


def stranger(name: str, labels: dict[str, str], owners: tuple[dict, ...] = (), **annotations: str) -> dict:
    """A pod that anybody who may create pods can make."""
    container = {"name": "trainer", "image": "busybox"}
    metadata = {
        "name": name,
        "labels": {f"{LABEL}/{key}": value for key, value in labels.items()},
        "ownerReferences": list(owners),
        "annotations": annotations,
    }
    return {"metadata": metadata, "spec": {"containers": [container], "restartPolicy": "Never"}}


def strangers(job_uid: str) -> list[dict]:
    """Pods with our labels: without an owner, of a made-up job, and claiming to be the victim's."""
    owner = {"apiVersion": f"{LABEL}/v1alpha1", "kind": "MegatronTrainJob", "name": "victim", "controller": True}
    place = {"job-name": "victim", "restart-attempt": "0", "replica-type": "worker", "replica-index": "1"}
    return [
        stranger("innocent", {"job-name": "x", "restart-attempt": "oops"}),
        stranger("empty", {"job-name": "victim", "restart-attempt": "0", "replica-index": ""}),
        stranger("nameless", {"job-name": ""}),
        stranger("orphan", place, ({**owner, "uid": "no-such-uid"},)),
        stranger("claims-to-be-his", {**place, "restart-attempt": "oops"}, ({**owner, "uid": job_uid},)),
        stranger("victim-a0-worker-99999999999999999999", place, ({**owner, "uid": job_uid},)),
    ]


def test_malformed_pods_affect_no_other_job(operator: OperatorProcess, jobs: JobClient, neighbor: JobClient):
    uid = jobs.submit(manifest("victim"))["metadata"]["uid"]
    jobs.await_phase("Running", "victim")
    unreadable = operator.metric("megatron_operator_unreadable_objects_total")
    for pod in strangers(uid):
        jobs.plane.create(jobs.path("pods"), pod)
    wait_until(
        lambda: operator.metric("megatron_operator_unreadable_objects_total") - unreadable,
        lambda count: count >= 2,
        "the pods that claim to be the job's to be counted",
    )
    neighbor.submit(manifest("healthy"))
    for client, name in ((neighbor, "healthy"), (jobs, "victim")):
        client.await_phase("Running", name)
        client.end_pod(f"{name}-a0-worker-0", 0)
        client.end_pod(f"{name}-a0-master-0", 0)
        client.await_phase("Succeeded", name)
        assert client.status(name)["replicaStatuses"]["worker"]["desired"] == 1
    assert operator.process.poll() is None


def test_whatever_the_status_of_a_pod_becomes_other_jobs_go_on(
    operator: OperatorProcess, jobs: JobClient, neighbor: JobClient
):
    draw, num_taken = random.Random(90212), 0
    for number in range(6):
        name = f"victim-{number}"
        jobs.submit(manifest(name, failurePolicy={"maxRestarts": 5, "backoffSeconds": {"initial": 0, "max": 1}}))
        for _ in range(12):
            for pod in list(jobs.pods(name))[:2]:
                num_taken += takes(jobs, pod, pod_fuzz.typed_pod(draw)["status"])
    neighbor.submit(manifest("healthy"))
    neighbor.await_phase("Running", "healthy")
    neighbor.end_pod("healthy-a0-worker-0", 0)
    neighbor.end_pod("healthy-a0-master-0", 0)
    neighbor.await_phase("Succeeded", "healthy")
    assert num_taken > 20
    assert operator.process.poll() is None
    assert "reconcile failed" not in operator.log.read_text()


def takes(jobs: JobClient, pod: str, status: dict) -> bool:
    """Whether the API server takes this as the pod's status."""
    try:
        jobs.plane.merge(jobs.path("pods", pod) + "/status", {"status": json.loads(json.dumps(status))})
    except Refused:
        return False
    return True


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_whatever_a_pod_says_last_its_job_fails_with_it_as_text(
    operator: OperatorProcess, jobs: JobClient, message: str
):
    jobs.submit(manifest(failurePolicy=NEVER))
    jobs.await_phase("Running")
    jobs.end_pod("job-a0-master-0", 1, message=message)
    failure = jobs.await_phase("Failed")["lastFailure"]
    assert failure["pod"] == "job-a0-master-0"
    assert failure["exitCode"] == 1
    assert failure["reason"] in ("ERROR", "ERROR?")
    assert failure.get("iteration") is None
    assert operator.process.poll() is None


@pytest.mark.parametrize("labels", [{"job-name": None}, {"job-name": "other"}, {"restart-attempt": "7"}], ids=str)
def test_a_pod_without_its_labels_gets_them_again_and_its_gang_trains_on(
    operator: OperatorProcess, jobs: JobClient, labels: dict[str, str | None]
):
    jobs.submit(manifest())
    jobs.await_phase("Running")
    before = {name: pod["metadata"]["uid"] for name, pod in jobs.pods().items()}
    path = jobs.path("pods", "job-a0-worker-0")
    jobs.plane.merge(path, {"metadata": {"labels": {f"{LABEL}/{key}": value for key, value in labels.items()}}})
    told = jobs.await_events("PodRelabeled")["PodRelabeled"]
    assert "job-a0-worker-0" in told["message"]
    restored = wait_until(
        lambda: jobs.plane.get(path)["metadata"]["labels"],
        lambda found: (found.get(f"{LABEL}/job-name"), found[f"{LABEL}/restart-attempt"]) == ("job", "0"),
        "its labels",
    )
    assert restored[f"{LABEL}/replica-type"] == "worker"
    assert {name: pod["metadata"]["uid"] for name, pod in jobs.pods().items()} == before
    jobs.end_pod("job-a0-worker-0", 137)  # whoever has the label is seen again
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    assert jobs.await_phase("Running")["restarts"]["total"] == 1


@pytest.mark.parametrize(("plural", "name"), [("services", "job"), ("configmaps", "job-a0-args")])
def test_another_object_without_its_label_gets_it_again(
    operator: OperatorProcess, jobs: JobClient, plural: str, name: str
):
    jobs.submit(manifest())
    jobs.await_phase("Running")
    jobs.plane.merge(jobs.path(plural, name), {"metadata": {"labels": {f"{LABEL}/job-name": None}}})
    wait_until(lambda: jobs.names_of(plural), lambda found: found == {name}, "its label")
    assert jobs.status()["phase"] == "Running"


@pytest.mark.slow
def test_labels_that_were_taken_off_while_no_operator_ran_are_set_again(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path
):
    """Neither is the gang made twice."""
    watching = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    kubelet = FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)
    with fake_kubelet.playing(kubelet):
        with operator_process.running(quiet_plane.kubeconfig, tmp_path, **watching):
            quiet_jobs.submit(manifest())
            quiet_jobs.await_phase("Running")
        path = quiet_jobs.path("pods", "job-a0-master-0")
        uid = quiet_plane.get(path)["metadata"]["uid"]
        quiet_plane.merge(path, {"metadata": {"labels": {f"{LABEL}/job-name": None}}})
        with operator_process.running(quiet_plane.kubeconfig, tmp_path, **watching):
            quiet_jobs.await_events("PodRelabeled")
            pods = quiet_jobs.await_pods("job-a0-master-0", "job-a0-worker-0")
    assert pods["job-a0-master-0"]["metadata"]["uid"] == uid
    assert quiet_jobs.status()["restarts"]["total"] == 0


@pytest.mark.parametrize("levels", [600, 5000])
def test_a_job_nested_thousands_of_levels_deep_affects_no_other_job(
    operator: OperatorProcess, jobs: JobClient, neighbor: JobClient, levels: int
):
    body = json.dumps(manifest("deep", podTemplate={"x": "HERE"}))
    text = body.replace('"HERE"', '{"a": ' * levels + "1" + "}" * levels)
    with contextlib.suppress(
        Refused, RecursionError
    ):  # the server's answer is as deep, unless it draws the line itself
        jobs.plane.request("POST", jobs.path("megatrontrainjobs"), text)
    neighbor.submit(manifest("healthy"))
    neighbor.await_phase("Running", "healthy")
    assert operator.process.poll() is None
