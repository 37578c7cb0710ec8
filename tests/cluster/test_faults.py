"""The operator when things break: killed at any moment, refused, cut off, deaf, raced. It always converges."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, fault_proxy, operator_process
from tests.support.operator.chaos import operator_token, phases
from tests.support.operator.fake_kubelet import FakeKubelet, Life
from tests.support.operator.fault_proxy import Call, FaultProxy
from tests.support.operator.job_client import JobClient, manifest, wait_until

pytestmark = pytest.mark.cluster
FAST = {"backoffSeconds": {"initial": 0, "max": 1}}
NO_WAIT = {"MTJ_WATCH_SILENCE_S": "4", "MTJ_REQUEST_TIMEOUT_S": "5"}


@pytest.fixture
def kubelet(quiet_plane: ControlPlane, quiet_jobs: JobClient) -> Iterator[FakeKubelet]:
    """Makes pods of this test's namespace run until the test ends them."""
    player = FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)
    with fake_kubelet.playing(player):
        yield player


def all_pods(jobs: JobClient) -> list[str]:
    """Names of the pods of the namespace that are not going away."""
    items = jobs.plane.get(jobs.path("pods"))["items"]
    return sorted(pod["metadata"]["name"] for pod in items if "deletionTimestamp" not in pod["metadata"])


def await_all(jobs: JobClient, phase: str, patience_s: float = 240) -> None:
    """Returns once every job is in this phase."""
    wait_until(lambda: phases(jobs), lambda found: set(found.values()) == {phase}, f"all {phase}", patience_s)


def gangs(num_jobs: int, num_nodes: int, attempt: int = 0) -> list[str]:
    """Names of all pods of so many jobs."""
    roles = ["master-0", *(f"worker-{index}" for index in range(num_nodes - 1))]
    return sorted(f"job-{index}-a{attempt}-{role}" for index in range(num_jobs) for role in roles)


def test_killed_while_it_creates_pods_it_goes_on_without_one_too_many(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    for index in range(12):
        quiet_jobs.submit(manifest(f"job-{index}", numNodes=4))
    slow = {"MTJ_MAX_PARALLEL_CREATES": "1", "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    for share in (8, 24):
        with operator_process.running(quiet_plane.kubeconfig, tmp_path, **slow) as operator:
            wait_until(lambda: all_pods(quiet_jobs), lambda pods, n=share: len(pods) >= n, f"{share} pods")
            operator.kill()
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **slow):
        await_all(quiet_jobs, "Running")
    assert all_pods(quiet_jobs) == gangs(12, 4)


def test_a_master_that_goes_beside_workers_that_succeeded_while_no_operator_looks_is_not_made_alone(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    """Its ranks would wait forever for those of the workers; no status says that the gang was ever complete."""
    variables = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables) as operator:
        quiet_jobs.submit(manifest(failurePolicy={**FAST, "maxRestarts": 0}))
        quiet_jobs.await_phase("Running")
        operator.kill()
    forget_that_it_was_complete(quiet_jobs)
    quiet_jobs.end_pod("job-a0-worker-0", 0)
    quiet_plane.delete(quiet_jobs.path("pods", "job-a0-master-0"), {"gracePeriodSeconds": 0})
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables):
        quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
        assert quiet_jobs.await_phase("Running")["restarts"]["counted"] == 0


def forget_that_it_was_complete(jobs: JobClient) -> None:
    """Leaves a status as of an operator that ended right after it had created the pods."""
    conditions = [each for each in jobs.status()["conditions"] if each["type"] != "PodsReady"]
    jobs.plane.merge(jobs.path("megatrontrainjobs", "job") + "/status", {"status": {"conditions": conditions}})


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_moment_of_a_restart_it_ends_with_one_whole_new_gang(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path, seed: int
):
    draw = random.Random(seed)
    variables = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables) as operator:
        for index in range(6):
            quiet_jobs.submit(manifest(f"job-{index}", numNodes=4, failurePolicy=FAST))
        await_all(quiet_jobs, "Running")
        for index in range(6):
            quiet_jobs.end_pod(f"job-{index}-a0-worker-1", 1)
            if index == 3:
                time.sleep(draw.uniform(0, 0.15))
                operator.kill()
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables):
        wait_until(lambda: all_pods(quiet_jobs), lambda pods: pods == gangs(6, 4, attempt=1), "the second gangs")
        await_all(quiet_jobs, "Running")
    assert {quiet_jobs.status(f"job-{index}")["restarts"]["total"] for index in range(6)} == {1}
    assert kubelet.overlaps == []


def test_every_kind_of_fault_at_once_leaves_every_job_in_its_right_end(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path
):
    """A fifth of all requests goes wrong: refused, cut, answered late or not at all, watches dropped or silent."""

    def life(pod: dict) -> Life:
        name = pod["metadata"]["name"]
        if name.startswith("bad-"):
            return Life(after_s=0.5, exit_code=65)
        if name.endswith("a0-worker-0"):
            return Life(after_s=0.5, exit_code=137)
        return Life(after_s=None if "-a0-" in name else 1)

    player = FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace, life=life)
    proxy = FaultProxy(server=quiet_plane.server, ca_file=quiet_plane.folder / "ca.crt", seed=7)
    token = operator_token(quiet_plane)
    with fake_kubelet.playing(player), fault_proxy.running(proxy):
        variables = {"MTJ_API_SERVER": proxy.url, "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace, **NO_WAIT}
        with operator_process.running(token, tmp_path, **variables):
            proxy.choose = fault_proxy.sometimes(0.2)
            for index in range(10):
                quiet_jobs.submit(manifest(f"good-{index}", numNodes=4, failurePolicy=FAST))
                quiet_jobs.submit(manifest(f"bad-{index}", failurePolicy=FAST))
            done = {f"good-{index}": "Succeeded" for index in range(10)} | {
                f"bad-{index}": "Failed" for index in range(10)
            }
            wait_until(lambda: phases(quiet_jobs), lambda found: found == done, "every job's end", patience_s=240)
    assert player.overlaps == []
    assert sum(proxy.injected.values()) >= 60
    for index in range(10):
        assert quiet_jobs.status(f"good-{index}")["restarts"]["total"] == 1
        assert quiet_jobs.condition("Failed", f"bad-{index}")["reason"] == "NonRetryableExit"


def test_a_watch_without_events_is_noticed_and_restarted(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    """Watches that stay open and say nothing look like a quiet cluster; only their silence tells."""

    def deafen_first(call: Call, draw: random.Random) -> fault_proxy.Kind:
        if not call.is_watch or call.path in deafened:
            return "none"
        deafened.add(call.path)
        return "watch-silent"

    deafened: set[str] = set()
    proxy = FaultProxy(server=quiet_plane.server, ca_file=quiet_plane.folder / "ca.crt", watch_life_s=0)
    proxy.choose = deafen_first
    with fault_proxy.running(proxy):
        variables = {"MTJ_API_SERVER": proxy.url, "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace, **NO_WAIT}
        with operator_process.running(operator_token(quiet_plane), tmp_path, **variables) as operator:
            quiet_jobs.submit(manifest())
            quiet_jobs.await_phase("Running")
            assert operator.metric("megatron_operator_watch_restarts_total") >= 1


def test_a_restart_emits_its_event_although_its_deletions_are_refused_at_first(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    def refuse_first_deletion(call: Call, draw: random.Random) -> fault_proxy.Kind:
        if call.method != "DELETE" or call.path in refused:
            return "none"
        refused.add(call.path)
        return "500"

    refused: set[str] = set()
    proxy = FaultProxy(server=quiet_plane.server, ca_file=quiet_plane.folder / "ca.crt", watch_life_s=0)
    proxy.choose = refuse_first_deletion
    with fault_proxy.running(proxy):
        variables = {"MTJ_API_SERVER": proxy.url, "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
        with operator_process.running(operator_token(quiet_plane), tmp_path, **variables):
            quiet_jobs.submit(manifest(failurePolicy=FAST))
            quiet_jobs.await_phase("Running")
            quiet_jobs.end_pod("job-a0-worker-0", 137)
            quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
            quiet_jobs.await_events("PodFailed", "JobRestarting")
    assert refused


def test_what_a_killed_operator_did_not_come_to_tell_the_next_one_tells_once(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    def refuse_events(call: Call, draw: random.Random) -> fault_proxy.Kind:
        return "500" if call.path.endswith("/events") and call.method == "POST" else "none"

    proxy = FaultProxy(server=quiet_plane.server, ca_file=quiet_plane.folder / "ca.crt", watch_life_s=0)
    proxy.choose = refuse_events
    scope = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    with fault_proxy.running(proxy):
        variables = {"MTJ_API_SERVER": proxy.url, **scope}
        with operator_process.running(operator_token(quiet_plane), tmp_path, **variables) as operator:
            quiet_jobs.submit(manifest(failurePolicy=FAST))
            quiet_jobs.await_phase("Running")
            quiet_jobs.end_pod("job-a0-worker-0", 137)
            quiet_jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
            operator.kill()
    assert not {"PodFailed", "JobRestarting"} & set(quiet_jobs.events())
    for _ in range(2):
        with operator_process.running(quiet_plane.kubeconfig, tmp_path, **scope):
            told = quiet_jobs.await_events("PodFailed", "JobRestarting", "JobRunning")
        assert {event["count"] for event in told.values()} == {1}
    assert "job-a0-worker-0 (node fake-node) ended with exit code 137" in told["PodFailed"]["message"]


def test_it_outlives_a_restart_of_the_api_server(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    variables = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace, **NO_WAIT}
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables) as operator:
        quiet_jobs.submit(manifest("before", failurePolicy=FAST))
        quiet_jobs.await_phase("Running", "before")
        quiet_plane.stop_process("apiserver")
        quiet_plane.start_apiserver()
        quiet_jobs.end_pod("before-a0-worker-0", 137)
        quiet_jobs.submit(manifest("after"))
        quiet_jobs.await_phase("Running", "after")
        quiet_jobs.await_pods("before-a1-master-0", "before-a1-worker-0", job="before")
        assert operator.process.poll() is None


def test_a_second_replica_takes_over_when_the_leader_is_lost(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    common = {
        "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace,
        "MTJ_POD_NAMESPACE": quiet_jobs.namespace,
        "MTJ_LEADER_ELECTION": "true",
        "MTJ_LEASE_DURATION_S": "9",
    }
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, MTJ_POD_NAME="first", **common) as first:
        wait_until(lambda: first.metric("megatron_operator_leader"), bool, "the first to lead")
        with operator_process.running(quiet_plane.kubeconfig, tmp_path, MTJ_POD_NAME="second", **common) as second:
            quiet_jobs.submit(manifest("one"))
            quiet_jobs.await_phase("Running", "one")
            assert second.metric("megatron_operator_leader") == 0
            first.kill()
            quiet_jobs.submit(manifest("two"))
            quiet_jobs.await_phase("Running", "two")
            assert second.metric("megatron_operator_leader") == 1


def test_a_leader_that_is_stopped_hands_over_at_once(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, kubelet: FakeKubelet, tmp_path: Path
):
    common = {
        "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace,
        "MTJ_POD_NAMESPACE": quiet_jobs.namespace,
        "MTJ_LEADER_ELECTION": "true",
        "MTJ_LEASE_DURATION_S": "60",
    }
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, MTJ_POD_NAME="first", **common) as first:
        wait_until(lambda: first.metric("megatron_operator_leader"), bool, "the first to lead")
        assert first.stop() == 0
    lease = quiet_plane.get(
        f"/apis/coordination.k8s.io/v1/namespaces/{quiet_jobs.namespace}/leases/megatron-train-operator"
    )
    assert lease["spec"]["holderIdentity"] == ""
