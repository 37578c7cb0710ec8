"""Restart in place on a real API server: launchers are real processes with the environment and the token of their pods.

Their ranks are a small program; a fake kubelet says that the pods run, which nothing that happens to ranks changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import helm_chart
from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes import discovery
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from tests.support.operator import dashboard, fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, manifest, wait_until
from tests.support.operator.launched_pods import launched
from tests.support.operator.progress_client import TRAINING, pod_token, push, push_settings, variables

pytestmark = pytest.mark.cluster
PODS = ("job-a0-master-0", "job-a0-worker-0")
AT_ONCE = {"backoffSeconds": {"initial": 0, "max": 1}}


@pytest.fixture
def kubelet(quiet_plane: ControlPlane, quiet_jobs: JobClient) -> Iterator[FakeKubelet]:
    """Makes pods of this test's namespace run."""
    with fake_kubelet.playing(FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)) as player:
        yield player


def test_a_killed_rank_starts_again_in_its_pod_with_one_status_write(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings) as operator:
        quiet_jobs.submit(manifest(failurePolicy=AT_ONCE))
        quiet_jobs.await_phase("Running")
        uids = {name: pod["metadata"]["uid"] for name, pod in quiet_jobs.pods().items()}
        url = variables(quiet_jobs, PODS[0])["KUBEFLOW_TRAINER_SERVER_URL"]
        token = pod_token(quiet_jobs, PODS[0])
        with launched(quiet_jobs, tmp_path, PODS, "--steps", "100000", "--step-s", "0.05") as pods:
            assert push(quiet_jobs, url, token, {"progress": {**TRAINING, "checkpoint_iteration": 25}}) == 200
            wait_until(lambda: quiet_jobs.status().get("checkpoint"), bool, "status.checkpoint")
            time.sleep(1.5)  # what the status had to say of the start is written
            before = int(quiet_jobs.job()["metadata"]["resourceVersion"])
            writes = operator.metric("megatron_operator_api_requests_total")
            os.kill(pods[1].rank, signal.SIGKILL)
            for pod in pods:
                pod.await_line("attempt 1 node")
            status = wait_until(quiet_jobs.status, lambda s: s["restarts"]["attempt"] == 1, "attempt 1")
            assert status["restarts"]["podAttempt"] == 0
            assert (status["phase"], status["lastFailure"]["pod"]) == ("Running", PODS[1])
            assert (status["lastFailure"]["exitCode"], status["lastFailure"]["rank"]) == (137, 1)
            assert int(quiet_jobs.job()["metadata"]["resourceVersion"]) > before
            assert "JobRestarting" in quiet_jobs.await_events("PodFailed", "JobRestarting")
            assert operator.metric("megatron_operator_api_requests_total") - writes <= 4, "a status and its events"
            assert {name: pod["metadata"]["uid"] for name, pod in quiet_jobs.pods().items()} == uids
            assert push(quiet_jobs, f"{url}?attempt=1", token, {"progress": {**TRAINING, "iteration": 40}}) == 200
            assert push(quiet_jobs, f"{url}?attempt=0", token, {"progress": TRAINING}) == 409
            assert push(quiet_jobs, f"{url}?attempt=2", token, {"progress": TRAINING}) == 409
            last = wait_until(
                lambda: quiet_jobs.status()["lastRestart"], lambda found: "ranksStartedTime" in found, "ranks", 30
            )
            assert (last["attempt"], last["inPlace"]) == (1, True)


def test_the_dashboard_shows_a_restart_from_what_the_operator_measures(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = {**push_settings(quiet_plane, quiet_jobs, tmp_path), "MTJ_PER_JOB_METRICS": "true"}
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings) as operator:
        quiet_jobs.submit(manifest(failurePolicy=AT_ONCE))
        quiet_jobs.await_phase("Running")
        url, token = variables(quiet_jobs, PODS[0])["KUBEFLOW_TRAINER_SERVER_URL"], pod_token(quiet_jobs, PODS[0])
        with launched(quiet_jobs, tmp_path, PODS, "--steps", "100000", "--step-s", "0.05") as pods:
            assert push(quiet_jobs, url, token, {"progress": TRAINING}) == 200
            os.kill(pods[1].rank, signal.SIGKILL)
            wait_until(quiet_jobs.status, lambda s: "firstStepTime" in s.get("lastRestart", {}), "a step", 60)
        quiet_jobs.submit(manifest("other"))
        quiet_jobs.await_phase("Running", "other")
        quiet_jobs.end_pod("other-a0-master-0", 0)
        quiet_jobs.await_phase("Succeeded", "other")
        # Only a watch that breaks is counted as one.
        assert set(dashboard.unanswered(operator.read("/metrics"))) == {"megatron_operator_watch_restarts_total"}


def test_a_report_is_heard_from_the_jobs_own_pods_and_attempts_only(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        for name in ("job", "other"):
            quiet_jobs.submit(manifest(name))
            quiet_jobs.await_phase("Running", name)
        url = variables(quiet_jobs, PODS[1])["MTJ_LAUNCHER_URL"]
        good = {"attempt": 0, "state": "running"}
        worker = pod_token(quiet_jobs, PODS[1])
        assert push(quiet_jobs, url, worker, good) == 200
        assert push(quiet_jobs, url, worker, {**good, "attempt": 1}) == 409
        assert push(quiet_jobs, url, worker, {"attempt": 0}) == 422
        assert push(quiet_jobs, url, worker, [1]) == 422
        assert push(quiet_jobs, url, "", good) == 403
        assert push(quiet_jobs, url, pod_token(quiet_jobs, "other-a0-worker-0"), good) == 403


def test_an_operator_that_is_killed_during_a_restart_loses_nothing(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    slow = {"backoffSeconds": {"initial": 6, "max": 6}}
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
        quiet_jobs.submit(manifest(failurePolicy=slow))
        quiet_jobs.await_phase("Running")
        pods = stack.enter_context(launched(quiet_jobs, tmp_path, PODS, "--steps", "100000", "--step-s", "0.05"))
        time.sleep(2)
        os.kill(pods[0].rank, signal.SIGKILL)
        wait_until(quiet_jobs.status, lambda s: s["restarts"]["attempt"] == 1, "attempt 1")
        operator.kill()
        stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
        for pod in pods:
            pod.await_line("attempt 1 node")
        assert quiet_jobs.status()["restarts"] == {
            "total": 1,
            "counted": 1,
            "attempt": 1,
            "podAttempt": 0,
            "uncountedInARow": 0,
            "nextRetryTime": quiet_jobs.status()["restarts"]["nextRetryTime"],
        }
        assert set(quiet_jobs.pods()) == set(PODS)


def test_a_launcher_that_does_not_come_back_gets_a_new_gang(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        quiet_jobs.submit(manifest(failurePolicy=AT_ONCE))
        quiet_jobs.await_phase("Running")
        with launched(quiet_jobs, tmp_path, PODS, "--steps", "100000", "--step-s", "0.05") as pods:
            time.sleep(2)
            pods[0].process.send_signal(signal.SIGSTOP)  # as on a node that froze
            os.kill(pods[1].rank, signal.SIGKILL)
            wait_until(quiet_jobs.status, lambda s: s["restarts"]["attempt"] == 2, "attempt 2", 90)
            quiet_jobs.await_pods("job-a2-master-0", "job-a2-worker-0")
            status = quiet_jobs.status()
            assert (status["restarts"]["total"], status["restarts"]["counted"]) == (2, 1)
            assert status["lastFailure"]["reason"] == "NotStartedInPlace"
            assert status["lastFailure"]["pod"] == PODS[0]


def test_a_launcher_without_an_operator_ends_with_the_code_of_its_rank(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
        quiet_jobs.submit(manifest())
        quiet_jobs.await_phase("Running")
        options = ("--steps", "100000", "--step-s", "0.05")
        pods = stack.enter_context(launched(quiet_jobs, tmp_path, PODS, *options, patience_s=3))
        time.sleep(2)
        operator.kill()
        os.kill(pods[0].rank, signal.SIGKILL)
        assert pods[0].process.wait(60) == 137 + 64, "the code by which the kubelet does not start it again"
        assert json.loads((tmp_path / f"{PODS[0]}.termination").read_text())["exitCode"] == 137
        assert pods[1].process.poll() is None, "ranks that are well train on without an operator"


def test_a_suspension_during_a_restart_ends_the_launchers(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        quiet_jobs.submit(manifest(failurePolicy={"backoffSeconds": {"initial": 25}}))
        quiet_jobs.await_phase("Running")
        with launched(quiet_jobs, tmp_path, PODS, "--steps", "100000", "--step-s", "0.05") as pods:
            time.sleep(2)
            os.kill(pods[0].rank, signal.SIGKILL)
            wait_until(quiet_jobs.status, lambda s: s["restarts"]["attempt"] == 1, "attempt 1")
            quiet_jobs.patch("job", suspend=True)
            quiet_jobs.await_phase("Suspended")
            assert quiet_jobs.status()["restarts"]["attempt"] == 2
            assert "podAttempt" not in quiet_jobs.status()["restarts"]
            assert pods[0].process.wait(60) == 137 + 64, "it hears that its pod is to end before the kubelet says so"


def test_a_killed_container_joins_the_next_attempt_once(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    """The kubelet says that it ended and runs again; the test is that kubelet, the launchers are real."""
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings):
        quiet_jobs.submit(manifest(failurePolicy=AT_ONCE))
        quiet_jobs.await_phase("Running")
        uids = {name: pod["metadata"]["uid"] for name, pod in quiet_jobs.pods().items()}
        (trainer,) = quiet_jobs.pods()[PODS[1]]["spec"]["containers"]
        assert (trainer["restartPolicy"], trainer["restartPolicyRules"][0]["action"]) == ("Never", "Restart")
        with launched(quiet_jobs, tmp_path, PODS, "--steps", "100000", "--step-s", "0.05") as pods:
            time.sleep(2)
            pods[1].process.kill()
            pods[1].process.wait()
            quiet_jobs.end_container(PODS[1], 137, reason="OOMKilled")
            status = wait_until(quiet_jobs.status, lambda s: s["restarts"]["attempt"] == 1, "attempt 1")
            last = status["lastFailure"]
            assert (last["pod"], last["exitCode"], last["reason"]) == (PODS[1], 137, "OOMKilled")
            pods[0].await_line("attempt 1 node 0")
            pods[1] = pods[1].started_again()
            quiet_jobs.restart_container(PODS[1])
            pods[1].await_line("attempt 1 node 1")
            wait_until(lambda: quiet_jobs.status()["lastRestart"], lambda it: "ranksStartedTime" in it, "ranks", 30)
            time.sleep(3)
            status = quiet_jobs.status()
            assert status["restarts"] | {"nextRetryTime": ""} == {
                "total": 1,
                "counted": 1,
                "attempt": 1,
                "podAttempt": 0,
                "uncountedInARow": 0,
                "nextRetryTime": "",
            }
            assert status["lastRestart"]["inPlace"]
            assert {name: pod["metadata"]["uid"] for name, pod in quiet_jobs.pods().items()} == uids
            assert pods[1].log.read_text().count("attempt 0 node 1") == 1, "of the first container alone"


def test_a_container_whose_end_no_one_saw_is_told_by_its_next_launcher(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    """The operator is away meanwhile, and a second end before a step makes a new gang."""
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
        quiet_jobs.submit(manifest(failurePolicy=AT_ONCE))
        quiet_jobs.await_phase("Running")
        pods = stack.enter_context(launched(quiet_jobs, tmp_path, PODS, "--steps", "100000", "--step-s", "0.05"))
        time.sleep(2)
        operator.kill()
        pods[0].process.kill()
        pods[0].process.wait()
        quiet_jobs.end_container(PODS[0], 139)
        pods[0] = pods[0].started_again()
        quiet_jobs.restart_container(PODS[0])
        time.sleep(2)
        stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
        for pod in pods:
            pod.await_line("attempt 1 node")
        status = quiet_jobs.status()
        assert (status["restarts"]["total"], status["restarts"]["podAttempt"]) == (1, 0)
        assert (status["lastFailure"]["exitCode"], status["lastFailure"]["pod"]) == (139, PODS[0])


def test_a_container_that_starts_again_without_an_operator_ends_its_pod(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
        quiet_jobs.submit(manifest(failurePolicy=AT_ONCE))
        quiet_jobs.await_phase("Running")
        options = ("--steps", "100000", "--step-s", "0.05")
        pods = stack.enter_context(launched(quiet_jobs, tmp_path, PODS, *options, patience_s=3))
        time.sleep(2)
        operator.kill()
        pods[0].process.kill()
        pods[0].process.wait()
        pods[0] = pods[0].started_again()
        assert pods[0].process.wait(60) == 137 + 64
        assert pods[0].log.read_text().count("attempt 0 node 0") == 1, "nothing trains twice"
        quiet_jobs.end_pod(PODS[0], 137 + 64, message=(tmp_path / f"{PODS[0]}.termination").read_text())
        stack.enter_context(operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings))
        status = wait_until(quiet_jobs.status, lambda s: s["restarts"]["attempt"] == 1, "attempt 1")
        assert status["lastFailure"]["exitCode"] == 137
        assert "podAttempt" not in status["restarts"]


NO_RULES = "--feature-gates=ContainerRestartRules=false,RestartAllContainersOnContainerExits=false"


def test_a_server_that_drops_the_rule_leaves_pods_that_end_as_before(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path
):
    quiet_plane.stop_process("apiserver")
    quiet_plane.start_apiserver(NO_RULES)
    kubelet = FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)
    try:
        settings = push_settings(quiet_plane, quiet_jobs, tmp_path)
        running = operator_process.running(quiet_plane.kubeconfig, tmp_path, **settings)
        with fake_kubelet.playing(kubelet), running:
            quiet_jobs.submit(manifest(failurePolicy=AT_ONCE))
            quiet_jobs.await_phase("Running")
            (trainer,) = quiet_jobs.pods()[PODS[1]]["spec"]["containers"]
            assert not {"restartPolicy", "restartPolicyRules"} & trainer.keys()
            quiet_jobs.end_pod(PODS[1], 137)
            quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    finally:
        quiet_plane.stop_process("apiserver")
        quiet_plane.start_apiserver()


OF_EVERYONE = ("system:discovery", "system:public-info-viewer")
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


def test_an_operator_that_may_not_ask_for_the_version_works_without_the_rule(
    quiet_plane: ControlPlane, quiet_jobs: JobClient
):
    """As in clusters that take the roles of all accounts away from them."""
    account = helm_chart.account_kubeconfig(quiet_plane, "default", quiet_jobs.namespace)

    async def answer() -> bool:
        async with Client(from_kubeconfig(account)) as client:
            return await asyncio.wait_for(discovery.restarts_containers(client), 60)

    assert asyncio.run(answer())
    roles = [quiet_plane.get(f"{BINDINGS}/{name}") for name in OF_EVERYONE]
    for name in OF_EVERYONE:
        quiet_plane.delete(f"{BINDINGS}/{name}")
    try:
        wait_until(lambda: asyncio.run(answer()), lambda knows: not knows, "the server to refuse")
    finally:
        for role in roles:
            given = {"name": role["metadata"]["name"], "labels": role["metadata"].get("labels") or {}}
            quiet_plane.create(BINDINGS, {"metadata": given, **{part: role[part] for part in ("roleRef", "subjects")}})
