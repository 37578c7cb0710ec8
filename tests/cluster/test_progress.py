"""Progress that pods push: checked by TokenReview, shown in status, and the heartbeat that hang detection lives on."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import CRDS, JobClient, manifest, wait_until
from tests.support.operator.progress_client import TRAINING, pod_token, push, push_settings, variables

pytestmark = pytest.mark.cluster
FAST = {"backoffSeconds": {"initial": 0, "max": 1}}


@pytest.fixture
def kubelet(quiet_plane: ControlPlane, quiet_jobs: JobClient) -> Iterator[FakeKubelet]:
    """Makes pods of this test's namespace run."""
    with fake_kubelet.playing(FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)) as player:
        yield player


def test_a_push_shows_in_status_and_metrics(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings) as operator:
        quiet_jobs.submit(manifest())
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        assert "KUBEFLOW_TRAINER_SERVER_URL" not in variables(quiet_jobs, "job-a0-worker-0")
        authority = quiet_plane.get(quiet_jobs.path("configmaps", "job-a0-args"))["data"]["progress-ca.crt"]
        assert authority == (quiet_plane.folder / "ca.crt").read_text()
        token = pod_token(quiet_jobs, "job-a0-master-0")
        checkpoint = {"checkpoint_iteration": 25, "checkpoint_path": "/checkpoints/iter_0000025"}
        assert push(quiet_jobs, url, token, {"trainerStatus": {}, "progress": {**TRAINING, **checkpoint}}) == 200
        progress = wait_until(lambda: quiet_jobs.status().get("progress"), bool, "status.progress")
        assert (progress["iteration"], progress["percentage"]) == (30, 25)
        assert progress["metrics"] == [{"name": "loss", "value": "2.5"}]
        assert quiet_jobs.status()["checkpoint"]["latestIteration"] == 25
        assert operator.metric("megatron_job_progress_ratio") == 0.25


def test_a_client_of_kubeflow_trainer_can_report_too(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        quiet_jobs.submit(manifest())
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        body = {
            "trainerStatus": {
                "progressPercentage": 40,
                "estimatedRemainingSeconds": 60,
                "metrics": [{"name": "loss", "value": "1.25"}],
                "lastUpdatedTime": "2026-11-24T10:00:00Z",
            }
        }
        assert push(quiet_jobs, url, pod_token(quiet_jobs, "job-a0-master-0"), body) == 200
        progress = wait_until(lambda: quiet_jobs.status().get("progress"), bool, "status.progress")
        assert (progress["percentage"], progress["estimatedRemainingSeconds"]) == (40, 60)


def test_only_the_jobs_own_master_may_report(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        for name in ("job", "other"):
            quiet_jobs.submit(manifest(name))
            quiet_jobs.await_phase("Running", name)
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        good = {"progress": TRAINING}
        master = pod_token(quiet_jobs, "job-a0-master-0")
        assert push(quiet_jobs, url, "", good) == 403
        assert push(quiet_jobs, url, master + "x", good) == 403
        assert push(quiet_jobs, url, pod_token(quiet_jobs, "job-a0-worker-0"), good) == 403
        assert push(quiet_jobs, url, pod_token(quiet_jobs, "other-a0-master-0"), good) == 403
        api_audience = "https://kubernetes.default.svc"
        assert push(quiet_jobs, url, pod_token(quiet_jobs, "job-a0-master-0", audience=api_audience), good) == 403
        assert push(quiet_jobs, url, master, {"progress": {**TRAINING, "iteration": "many"}}) == 422
        assert push(quiet_jobs, url, master, {"progress": {"iteration": 3}}) == 422
        assert push(quiet_jobs, url, master, [1]) == 422
        assert push(quiet_jobs, url, master, good) == 200


def test_an_earlier_job_of_the_same_name_and_an_earlier_attempt_are_not_heard(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        quiet_jobs.submit(manifest())
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        first = pod_token(quiet_jobs, "job-a0-master-0")
        assert push(quiet_jobs, url, first, {"progress": TRAINING}) == 200
        quiet_jobs.delete()
        wait_until(quiet_jobs.pods, lambda pods: not pods, "the pods to go")
        assert push(quiet_jobs, url, first, {"progress": TRAINING}) == 404
        quiet_jobs.submit(manifest(failurePolicy=FAST))
        quiet_jobs.await_phase("Running")
        assert push(quiet_jobs, url, first, {"progress": TRAINING}) == 403
        assert "progress" not in quiet_jobs.status()
        second = pod_token(quiet_jobs, "job-a0-master-0")
        assert push(quiet_jobs, url, second, {"progress": {**TRAINING, "iteration": 40}}) == 200
        quiet_jobs.end_pod("job-a0-worker-0", 1)
        quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
        third = pod_token(quiet_jobs, "job-a1-master-0")
        assert push(quiet_jobs, url, third, {"progress": {**TRAINING, "iteration": 50}}) == 200
        assert push(quiet_jobs, url, second, {"progress": TRAINING}) == 409


def test_no_report_makes_a_status_or_the_metrics_fail(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings) as operator:
        quiet_jobs.submit(manifest())
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        token = pod_token(quiet_jobs, "job-a0-master-0")
        odd = {
            **TRAINING,
            "metrics": {"loss_" + "c" * 300: 1.0, "norm": float("nan")},
            "remaining_s": float("inf"),
            "checkpoint_iteration": 7,
            "checkpoint_path": "/x" * 9000,
        }
        assert push(quiet_jobs, url, token, {"progress": odd}) == 200
        for wrong in (
            {"iteration": 10**400},
            {"phase": "x" * 5000},
            {"total_iterations": -1},
            {"metrics": {"a": 10**400}},
        ):
            assert push(quiet_jobs, url, token, {"progress": {**TRAINING, **wrong}}) == 422
        assert push(quiet_jobs, url, token, {"trainerStatus": {"progressPercentage": float("inf")}}) == 422
        wait_until(lambda: quiet_jobs.status().get("progress"), bool, "status.progress")
        assert operator.metric("megatron_job_progress_ratio") == 0.25
        quiet_jobs.end_pod("job-a0-master-0", 0)
        quiet_jobs.end_pod("job-a0-worker-0", 0)
        quiet_jobs.await_phase("Succeeded")
        assert len(quiet_jobs.status()["checkpoint"]["path"]) == 4096


@pytest.fixture
def narrow_crd(quiet_plane: ControlPlane) -> Iterator[None]:
    """The CRD of an earlier release, say, that takes no metric names of more than three characters."""
    path = f"{CRDS}/megatrontrainjobs.megatrontrain.dev"
    crd = quiet_plane.get(path)
    narrow = copy.deepcopy(crd["spec"])
    status = narrow["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    status["progress"]["properties"]["metrics"]["items"]["properties"]["name"]["maxLength"] = 3
    quiet_plane.merge(path, {"spec": narrow})
    yield
    quiet_plane.merge(path, {"spec": crd["spec"]})


def test_a_refused_part_of_the_status_holds_no_job_up(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, narrow_crd: None, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        quiet_jobs.submit(manifest(failurePolicy=FAST))
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        assert push(quiet_jobs, url, pod_token(quiet_jobs, "job-a0-master-0"), {"progress": TRAINING}) == 200
        told = quiet_jobs.await_events("StatusIncomplete")["StatusIncomplete"]
        assert "status.progress.metrics[0].name" in told["message"]
        quiet_jobs.end_pod("job-a0-worker-0", 1)
        quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
        quiet_jobs.await_phase("Running")
        assert "progress" not in quiet_jobs.status()
        quiet_jobs.end_pod("job-a1-master-0", 64)
        assert quiet_jobs.await_phase("Failed")["lastFailure"]["exitCode"] == 64


def test_a_gang_that_gives_no_more_sign_of_life_is_restarted_also_by_an_operator_that_came_later(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings) as operator:
        quiet_jobs.submit(manifest(failurePolicy={**FAST, "hangTimeoutSeconds": 5}))
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        assert push(quiet_jobs, url, pod_token(quiet_jobs, "job-a0-master-0"), {"progress": TRAINING}) == 200
        wait_until(lambda: quiet_jobs.status().get("progress"), bool, "status.progress")
        operator.kill()
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
        assert quiet_jobs.status()["lastFailure"]["reason"] == "Hung"
        assert quiet_jobs.status()["restarts"]["counted"] == 1
        quiet_jobs.await_events("JobHung")


def test_a_follower_hands_a_push_on_to_the_leader(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    common = {"MTJ_LEADER_ELECTION": "true", "MTJ_POD_NAMESPACE": quiet_jobs.namespace}
    with contextlib.ExitStack() as stack:

        def start(name: str) -> dict[str, str]:
            settings = push_settings(quiet_plane, quiet_jobs, tmp_path, MTJ_POD_NAME=name, **common)
            operator = stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
            if name == "leader":
                wait_until(lambda: operator.metric("megatron_operator_leader"), bool, "a leader")
            return settings

        leader, follower = start("leader"), start("follower")
        quiet_jobs.submit(manifest())
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        elsewhere = url.replace(leader["MTJ_PROGRESS_PORT"], follower["MTJ_PROGRESS_PORT"])
        assert push(quiet_jobs, elsewhere, pod_token(quiet_jobs, "job-a0-master-0"), {"progress": TRAINING}) == 200
        progress = wait_until(lambda: quiet_jobs.status().get("progress"), bool, "status.progress")
        assert progress["iteration"] == 30
