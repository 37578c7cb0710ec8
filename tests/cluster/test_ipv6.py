"""The operator where there is only IPv6: it reaches the API server at ::1, and its health is asked for at ::1."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, fault_proxy, operator_process
from tests.support.operator.chaos import operator_token
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.fault_proxy import FaultProxy
from tests.support.operator.job_client import JobClient, manifest

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
