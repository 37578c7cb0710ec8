"""A job that cannot go on says why within seconds and ends at its deadline: events of pods, webhooks, no place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet, Life
from tests.support.operator.job_client import JobClient, manifest, wait_until
from tests.support.operator.operator_process import OperatorProcess

pytestmark = pytest.mark.cluster
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
NOW = "2026-11-28T00:00:0{}Z"


@pytest.fixture
def operator(quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator for this test's namespace."""
    variables = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables) as running:
        yield running


def post_event(
    jobs: JobClient, pod: str, reason: str, message: str, *, type_: str = "Warning", second: int = 1
) -> None:
    """Posts an event about the pod, as its kubelet would."""
    raw = jobs.plane.get(jobs.path("pods", pod))
    reference = {"kind": "Pod", "namespace": jobs.namespace, "name": pod, "uid": raw["metadata"]["uid"]}
    times = {"firstTimestamp": NOW.format(second), "lastTimestamp": NOW.format(second)}
    body = {"metadata": {"generateName": "kubelet-"}, "involvedObject": reference, "type": type_, "reason": reason}
    jobs.plane.create(jobs.path("events"), {**body, **times, "message": message, "source": {"component": "kubelet"}})


def await_stalled(jobs: JobClient, reason: str | None) -> str:
    """The message of Stalled, once it has this reason; None: once it is not stalled any more."""
    found = wait_until(lambda: jobs.condition("Stalled"), lambda c: c.get("reason") == reason, f"Stalled {reason}")
    return found.get("message", "")


def test_a_pod_that_does_not_start_says_why_by_its_events_and_ends_the_job_at_the_deadline(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, operator: OperatorProcess
):
    kubelet = FakeKubelet(
        kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace, life=lambda pod: Life(runs=False)
    )
    words = 'MountVolume.SetUp failed for volume "s" : secret "absent" not found'
    with fake_kubelet.playing(kubelet):
        quiet_jobs.submit(manifest())
        quiet_jobs.await_pods("job-a0-master-0", "job-a0-worker-0")
        post_event(quiet_jobs, "job-a0-worker-0", "FailedMount", words)
        assert words in await_stalled(quiet_jobs, "FailedMount")
        assert quiet_jobs.status()["waiting"]["cause"] == "Volume"
        post_event(quiet_jobs, "job-a0-worker-0", "Pulling", "Pulling image", type_="Normal", second=2)
        await_stalled(quiet_jobs, None)
        post_event(quiet_jobs, "job-a0-worker-0", "FailedCreatePodSandBox", "no runtime for nvidia", second=3)
        await_stalled(quiet_jobs, "FailedCreatePodSandBox")
        quiet_jobs.patch("job", runPolicy={"startupDeadlineSeconds": 1})
        status = quiet_jobs.await_phase("Failed", patience_s=60)
    assert quiet_jobs.condition("Failed")["reason"] == "StartupFailed"
    assert (status["lastFailure"]["pod"], status["lastFailure"]["reason"]) == (
        "job-a0-worker-0",
        "FailedCreatePodSandBox",
    )
    assert "JobStalled" in quiet_jobs.events()


def test_a_wait_that_only_events_tell_of_goes_on_through_a_restart_of_the_operator(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path
):
    """Its deadline counts on, and the job is Stalled throughout: no operator takes the wait for over."""
    variables = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    kubelet = FakeKubelet(
        kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace, life=lambda pod: Life(runs=False)
    )
    with fake_kubelet.playing(kubelet):
        with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables):
            quiet_jobs.submit(manifest())
            quiet_jobs.await_pods("job-a0-master-0", "job-a0-worker-0")
            post_event(quiet_jobs, "job-a0-worker-0", "FailedMount", "secret absent not found")
            await_stalled(quiet_jobs, "FailedMount")
        before, since = quiet_jobs.status(), quiet_jobs.condition("Stalled")["lastTransitionTime"]
        time.sleep(1.1)  # times have whole seconds
        with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables):
            quiet_jobs.patch("job", runPolicy={"startupDeadlineSeconds": 10_000})
            observed = before["observedGeneration"] + 1
            wait_until(quiet_jobs.status, lambda s: s["observedGeneration"] == observed, "the new operator to look")
            assert quiet_jobs.status()["waiting"] == before["waiting"]
            assert quiet_jobs.condition("Stalled")["lastTransitionTime"] == since


def test_a_job_without_a_place_ends_at_its_scheduling_timeout(quiet_jobs: JobClient, operator: OperatorProcess):
    """No kubelet here and no scheduler: no one places the pods, and no one says why."""
    quiet_jobs.submit(manifest(runPolicy={"schedulingTimeoutSeconds": 3}))
    quiet_jobs.await_phase("Failed", patience_s=60)
    failed = quiet_jobs.condition("Failed")
    assert failed["reason"] == "SchedulingTimeout"
    assert "no scheduler has placed it" in failed["message"]


def test_a_job_for_which_a_quota_has_no_room_at_all_ends_at_its_scheduling_timeout(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, operator: OperatorProcess
):
    create_quota(quiet_plane, quiet_jobs, "none", pods=0)
    quiet_jobs.submit(manifest(numNodes=1, runPolicy={"schedulingTimeoutSeconds": 3}))
    quiet_jobs.await_phase("Failed", patience_s=60)
    failed = quiet_jobs.condition("Failed")
    assert (failed["reason"], "exceeded quota: none" in failed["message"]) == ("SchedulingTimeout", True)


@pytest.mark.slow
def test_a_broken_foreign_webhook_is_reported_in_the_servers_words_until_it_works(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, operator: OperatorProcess
):
    name = quiet_jobs.namespace
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    webhook = {
        "name": "broken.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [rule],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
    }
    quiet_plane.create(WEBHOOKS, {"metadata": {"name": name}, "webhooks": [webhook]})
    try:
        quiet_jobs.submit(manifest())
        assert "broken.example.com" in await_stalled(quiet_jobs, "InternalError")
        quiet_jobs.await_events("JobStalled")
    finally:
        quiet_plane.delete(f"{WEBHOOKS}/{name}")
    with fake_kubelet.playing(FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=name)):
        quiet_jobs.await_phase("Running")
    assert quiet_jobs.condition("Stalled") == {}
    assert quiet_jobs.status()["restarts"]["total"] == 0


def create_quota(plane: ControlPlane, jobs: JobClient, name: str, *, pods: int) -> str:
    """The path of a new quota of the jobs' namespace that counts already."""
    quota = jobs.path("resourcequotas", name)
    plane.create(jobs.path("resourcequotas"), {"metadata": {"name": name}, "spec": {"hard": {"pods": str(pods)}}})
    wait_until(lambda: plane.get(quota).get("status"), bool, "the quota to be counted")
    return quota


def test_a_gang_trains_on_where_a_quota_has_no_room_for_its_spares(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, operator: OperatorProcess
):
    """One of two is created; the other is once there is room."""
    quota = create_quota(quiet_plane, quiet_jobs, "three", pods=3)
    with fake_kubelet.playing(FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)):
        quiet_jobs.submit(manifest(numNodes=2, scheduling={"spares": 2}))
        quiet_jobs.await_events("SpareRefused")
        assert "exceeded quota: three" in quiet_jobs.events()["SpareRefused"]["message"]
        status = quiet_jobs.await_phase("Running")
        assert quiet_jobs.condition("Stalled") == {}
        assert status["restarts"]["attempt"] == 0
        quiet_plane.merge(quota, {"spec": {"hard": {"pods": "4"}}})
        wait_until(lambda: quiet_plane.get(quota)["status"]["hard"]["pods"], lambda hard: hard == "4", "more room")
        pod = quiet_jobs.path("pods", "job-a0-spare-0")
        quiet_plane.merge(pod, {"metadata": {"annotations": {"test.example/seen": "1"}}})  # any change has it look
        quiet_jobs.await_pods("job-a0-master-0", "job-a0-worker-0", "job-a0-spare-0", "job-a0-spare-1")


def test_two_gangs_that_share_a_quota_never_block_each_other_by_halves(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, operator: OperatorProcess
):
    """Four pods each, six allowed: one runs whole, the other takes its pods back and runs once there is room."""
    create_quota(quiet_plane, quiet_jobs, "six", pods=6)
    with fake_kubelet.playing(FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)):
        for name in ("one", "two"):
            quiet_jobs.submit(manifest(name, numNodes=4))

        def phases() -> dict[str, str]:
            return {name: quiet_jobs.status(name).get("phase", "") for name in ("one", "two")}

        found = wait_until(phases, lambda each: "Running" in each.values(), "one of them to run")
        runs = next(name for name, phase in found.items() if phase == "Running")
        waits = {"one": "two", "two": "one"}[runs]
        stalled = wait_until(
            lambda: quiet_jobs.condition("Stalled", waits), lambda c: c.get("reason") == "QuotaExceeded", "Stalled"
        )
        assert "exceeded quota: six, requested: pods=1, used: pods=6, limited: pods=6" in stalled["message"]
        wait_until(lambda: quiet_jobs.pods(waits), lambda pods: not pods, "its pods to be taken back")
        assert not {"GangCreated", "JobRunning"} & set(quiet_jobs.events(waits))
        for pod in quiet_jobs.pods(runs):
            quiet_jobs.end_pod(pod, 0)
        quiet_jobs.await_phase("Succeeded", runs)
        quiet_jobs.await_phase("Running", waits)
        events = wait_until(lambda: quiet_jobs.events(waits), lambda found: "JobRunning" in found, "JobRunning")
        assert events["JobRunning"]["message"] == "All 4 pods of attempt 0 are running."
    assert quiet_jobs.status(waits)["restarts"] == {"total": 0, "counted": 0, "attempt": 0, "uncountedInARow": 0}
