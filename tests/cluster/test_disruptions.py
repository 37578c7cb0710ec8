"""What happens to a job from outside: lost nodes, evictions, queues, finalizers, images that cannot be pulled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet, Life
from tests.support.operator.job_client import JobClient, manifest, wait_until

pytestmark = pytest.mark.cluster
FAST = {"backoffSeconds": {"initial": 0, "max": 1}}
SHORT_GRACE = {"spec": {"terminationGracePeriodSeconds": 1}}
LOST = "lost-node"


@pytest.fixture
def lives() -> dict[str, Life]:
    """Lives of pods by the end of their names; a test fills it in before it submits."""
    return {}


@pytest.fixture(autouse=True)
def _world(quiet_plane: ControlPlane, quiet_jobs: JobClient, lives: dict[str, Life], tmp_path: Path) -> Iterator[None]:
    """A kubelet that lets pods live as told, and an operator."""

    def life(pod: dict) -> Life:
        name = pod["metadata"]["name"]
        return next((found for suffix, found in lives.items() if name.endswith(suffix)), Life())

    kubelet = FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace, life=life)
    settings = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    with (
        fake_kubelet.playing(kubelet),
        operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings),
    ):
        yield


def set_condition(jobs: JobClient, pod: str, type_: str, reason: str) -> None:
    """Sets one more condition of the pod to True, as the control plane does before it takes a pod away."""
    raw = jobs.plane.get(jobs.path("pods", pod))
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"type": type_, "status": "True", "reason": reason, "lastTransitionTime": now}
    conditions = [*raw["status"]["conditions"], condition]
    jobs.plane.merge(jobs.path("pods", pod) + "/status", {"status": {"conditions": conditions}})


def test_a_gang_restarts_though_a_pod_of_a_lost_node_never_terminates(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, lives: dict[str, Life]
):
    async def make_lost_node() -> None:
        async with Client(from_kubeconfig(quiet_plane.kubeconfig)) as client:
            await fake_kubelet.make_node(client, LOST)

    asyncio.run(make_lost_node())
    lives["-a0-worker-0"] = Life(node=LOST, stop_s=600)
    quiet_jobs.submit(manifest(podTemplate=SHORT_GRACE, failurePolicy=FAST))
    quiet_jobs.await_phase("Running")
    not_ready = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
    quiet_plane.merge(f"/api/v1/nodes/{LOST}/status", {"status": {"conditions": not_ready}})
    set_condition(quiet_jobs, "job-a0-worker-0", "DisruptionTarget", "DeletionByTaintManager")
    quiet_plane.delete(quiet_jobs.path("pods", "job-a0-worker-0"))
    wait_until(quiet_jobs.pods, lambda pods: "job-a1-worker-0" in pods, "the second gang", patience_s=240)
    assert "job-a0-worker-0" in quiet_jobs.pods()
    selector = quiet_plane.get(quiet_jobs.path("services", "job"))["spec"]["selector"]
    assert selector["megatrontrain.dev/restart-attempt"] == "1"
    quiet_jobs.await_phase("Running")
    assert quiet_jobs.status()["restarts"]["counted"] == 0
    assert quiet_jobs.status()["lastRestart"]["reason"] == "NodeLost"


def test_a_taint_on_a_node_that_is_well_is_an_order_and_no_loss(quiet_jobs: JobClient):
    quiet_jobs.submit(manifest(failurePolicy={**FAST, "maxRestarts": 0}))
    quiet_jobs.await_phase("Running")
    set_condition(quiet_jobs, "job-a0-worker-0", "DisruptionTarget", "DeletionByTaintManager")
    quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    assert quiet_jobs.await_phase("Running")["lastRestart"]["reason"] == "Preempted"


def test_a_pod_that_is_only_slow_to_end_is_waited_for(quiet_jobs: JobClient, lives: dict[str, Life]):
    """Its node is well, so it may still write: no pod of the next attempt may begin beside it."""
    lives["-a0-worker-0"] = Life(stop_s=6)
    quiet_jobs.submit(manifest(podTemplate=SHORT_GRACE, failurePolicy=FAST))
    quiet_jobs.await_phase("Running")
    quiet_jobs.end_pod("job-a0-master-0", 1)

    def attempts(pods: dict) -> set[str]:
        return {pod["metadata"]["labels"]["megatrontrain.dev/restart-attempt"] for pod in pods.values()}

    seen = wait_until(quiet_jobs.pods, lambda pods: attempts(pods) != {"0"} or "job-a0-worker-0" not in pods, "an end")
    assert "job-a0-worker-0" not in seen
    quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")


@pytest.mark.parametrize("reason", ["PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"])
def test_a_disruption_restarts_the_gang_and_is_not_counted(quiet_jobs: JobClient, reason: str):
    quiet_jobs.submit(manifest(failurePolicy={**FAST, "maxRestarts": 0}))
    quiet_jobs.await_phase("Running")
    set_condition(quiet_jobs, "job-a0-worker-0", "DisruptionTarget", reason)
    quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    status = quiet_jobs.await_phase("Running")
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)


def test_a_drain_through_the_eviction_api_is_not_counted(quiet_plane: ControlPlane, quiet_jobs: JobClient):
    quiet_jobs.submit(manifest(failurePolicy={**FAST, "maxRestarts": 0}))
    quiet_jobs.await_phase("Running")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "job-a0-worker-0"}}
    quiet_plane.create(quiet_jobs.path("pods", "job-a0-worker-0/eviction"), eviction)
    quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    status = quiet_jobs.await_phase("Running")
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)


def test_a_queued_job_goes_to_kueue_as_one_pod_group_and_waits_behind_its_gates(
    quiet_plane: ControlPlane, quiet_jobs: JobClient
):
    """Kueue's webhook would add the gate, its label and the finalizer; the pod template stands in for it."""
    taken_up = {
        "metadata": {"labels": {"kueue.x-k8s.io/managed": "true"}},
        "spec": {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]},
    }
    body = manifest(podTemplate=taken_up, failurePolicy=FAST)
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    quiet_jobs.submit(body)
    pods = quiet_jobs.await_pods("job-a0-master-0", "job-a0-worker-0")
    quiet_jobs.await_phase("Queued")
    for pod in pods.values():
        assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
        assert pod["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "job-a0"
        assert pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    for name in pods:
        quiet_plane.merge(quiet_jobs.path("pods", name), {"spec": {"schedulingGates": None}})
    quiet_jobs.await_phase("Running")
    assert quiet_jobs.condition("Admitted")["reason"] == "QuotaReserved"


def test_pods_that_a_finalizer_keeps_do_not_hold_up_the_next_attempt(quiet_plane: ControlPlane, quiet_jobs: JobClient):
    template = {"metadata": {"finalizers": ["kueue.x-k8s.io/managed"]}}
    quiet_jobs.submit(manifest(failurePolicy=FAST))
    quiet_jobs.await_phase("Running")
    for name in quiet_jobs.pods():
        quiet_plane.merge(quiet_jobs.path("pods", name), template)
    quiet_jobs.end_pod("job-a0-master-0", 1)
    quiet_jobs.end_pod("job-a0-worker-0", 1)
    wait_until(quiet_jobs.pods, lambda pods: "job-a1-worker-0" in pods, "the second gang")
    quiet_jobs.await_phase("Running")
    for name in quiet_jobs.pods():
        if "-a0-" in name:
            quiet_plane.merge(quiet_jobs.path("pods", name), {"metadata": {"finalizers": None}})
    quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")


def test_an_image_that_cannot_be_pulled_fails_the_job_after_the_startup_deadline(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, lives: dict[str, Life]
):
    lives["-worker-0"] = Life(runs=False)
    quiet_jobs.submit(manifest())
    pod = quiet_jobs.path("pods", "job-a0-worker-0")
    wait_until(lambda: quiet_plane.get(pod), lambda raw: raw and raw["spec"].get("nodeName"), "the pod to have a node")
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    container = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
    quiet_plane.merge(pod + "/status", {"status": {"containerStatuses": [container]}})
    stalled = wait_until(lambda: quiet_jobs.condition("Stalled"), bool, "condition Stalled")
    assert "no such image" in stalled["message"]
    quiet_jobs.patch("job", runPolicy={"startupDeadlineSeconds": 1})
    quiet_jobs.await_phase("Failed")
    assert quiet_jobs.condition("Failed")["reason"] == "StartupFailed"
