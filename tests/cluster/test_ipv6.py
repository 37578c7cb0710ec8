"""The operator where there is only IPv6: it reaches the API server at ::1, and all that listens does so at ::1."""

from __future__ import annotations

import contextlib
import urllib.request
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane, Refused, free_port
from tests.support.operator import fake_kubelet, fault_proxy, operator_process
from tests.support.operator.chaos import operator_token
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.fault_proxy import FaultProxy
from tests.support.operator.job_client import JobClient, manifest, wait_until
from tests.support.operator.operator_process import OperatorProcess
from tests.support.operator.progress_client import TRAINING, pod_token, push, push_settings, variables
from tests.support.operator.webhook_client import CONFIGURATIONS, configuration, is_asked, wrong

pytestmark = pytest.mark.cluster


def test_a_job_runs_and_health_answers_over_ipv6_alone(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path
):
    proxy = FaultProxy(server=quiet_plane.server, ca_file=quiet_plane.folder / "ca.crt", host="::1")
    kubelet = FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)
    with fault_proxy.running(proxy), fake_kubelet.playing(kubelet):
        assert proxy.url.startswith("http://[::1]:")
        variables = {"MTJ_API_SERVER": proxy.url, "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace, "MTJ_HTTP_ADDRESS": ""}
        with operator_process.running(operator_token(quiet_plane), tmp_path, **variables) as operator:
            with urllib.request.urlopen(f"http://[::1]:{operator.port}/healthz", timeout=10) as answer:
                assert answer.status == 200
            quiet_jobs.submit(manifest())
            quiet_jobs.await_phase("Running")


def test_pushes_their_way_to_the_leader_and_the_webhook_work_over_ipv6_alone(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path
):
    """Two replicas that listen at ::1 alone; a pod's report to the follower is handed on to the leader."""
    proxy = FaultProxy(server=quiet_plane.server, ca_file=quiet_plane.folder / "ca.crt", host="::1")
    kubelet = FakeKubelet(kubeconfig=quiet_plane.kubeconfig, namespace=quiet_jobs.namespace)
    webhook_port = free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(fault_proxy.running(proxy))
        stack.enter_context(fake_kubelet.playing(kubelet))

        def start(name: str, **more: str) -> tuple[OperatorProcess, dict[str, str]]:
            settings = push_settings(quiet_plane, quiet_jobs, tmp_path, **more) | {
                "MTJ_API_SERVER": proxy.url,
                "MTJ_HTTP_ADDRESS": "::1",
                "MTJ_PROGRESS_HOST": "::1",
                "MTJ_POD_NAME": name,
                "MTJ_POD_IP": "::1",
                "MTJ_POD_NAMESPACE": quiet_jobs.namespace,
                "MTJ_LEADER_ELECTION": "true",
            }
            running = operator_process.running(operator_token(quiet_plane), tmp_path, **settings)
            return stack.enter_context(running), settings

        certificates = {"MTJ_WEBHOOK_CERTIFICATES": str(tmp_path / "certificates")}
        leader, of_leader = start("leader", MTJ_WEBHOOK_PORT=str(webhook_port), **certificates)
        wait_until(lambda: leader.metric("megatron_operator_leader"), bool, "a leader")
        _, of_follower = start("follower")
        webhook = configuration(quiet_plane, quiet_jobs.namespace, webhook_port, "[::1]")
        quiet_plane.create(CONFIGURATIONS, webhook)
        stack.callback(quiet_plane.delete, f"{CONFIGURATIONS}/jobs")
        wait_until(lambda: is_asked(quiet_jobs), bool, "the webhook to be asked")
        with pytest.raises(Refused, match="spec.args.tensor_model_parallel_size"):
            quiet_jobs.submit(wrong())
        quiet_jobs.submit(manifest())
        quiet_jobs.await_phase("Running")
        url = variables(quiet_jobs, "job-a0-master-0")["KUBEFLOW_TRAINER_SERVER_URL"]
        assert url.startswith(f"https://[::1]:{of_leader['MTJ_PROGRESS_PORT']}/")
        elsewhere = url.replace(of_leader["MTJ_PROGRESS_PORT"], of_follower["MTJ_PROGRESS_PORT"])
        assert push(quiet_jobs, elsewhere, pod_token(quiet_jobs, "job-a0-master-0"), {"progress": TRAINING}) == 200
        wait_until(lambda: quiet_jobs.status().get("progress"), bool, "status.progress")
