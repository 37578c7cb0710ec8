"""The kustomize base, applied by kubectl to a real API server: the operator runs jobs with the account it brings."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import control_plane, helm_chart
from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import ROOT, JobClient, manifest, new_namespace

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed"),
]


@pytest.fixture(scope="module")
def bare_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane into which nothing was installed, with a kubelet."""
    running = control_plane.start(tmp_path_factory.mktemp("bare-plane"))
    with fake_kubelet.playing(FakeKubelet(kubeconfig=running.kubeconfig)):
        yield running
    running.stop()


def apply(plane: ControlPlane) -> list[str]:
    """What kubectl says of each object of the base."""
    command = ["kubectl", "--kubeconfig", str(plane.kubeconfig), "apply", "--server-side", "-k", "charts/kustomize"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_base_is_applied_twice_and_its_operator_runs_a_job(bare_plane: ControlPlane, tmp_path: Path):
    objects = apply(bare_plane)
    assert apply(bare_plane) == objects
    jobs = JobClient(plane=bare_plane, namespace=new_namespace(bare_plane, "user"))
    variables = helm_chart.environment(bare_plane)
    own_port = {name: value for name, value in variables.items() if name != "MTJ_HTTP_PORT"}
    account = helm_chart.account_kubeconfig(bare_plane)
    with operator_process.running(account, tmp_path, **own_port):
        jobs.submit(manifest())
        jobs.await_phase("Running")
