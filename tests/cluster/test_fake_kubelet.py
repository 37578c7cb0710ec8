"""The fake kubelet carries a pod through its life also when the API server's answers are lost or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, fault_proxy
from tests.support.operator.chaos import operator_token
from tests.support.operator.fake_kubelet import FakeKubelet, Life
from tests.support.operator.fault_proxy import Call, FaultProxy, Kind
from tests.support.operator.job_client import JobClient, wait_until

pytestmark = pytest.mark.cluster
CONTAINER = {"name": "a", "image": "a"}


@pytest.fixture
def proxy(quiet_plane: ControlPlane) -> Iterator[FaultProxy]:
    """What stands between the fake kubelet and the API server."""
    proxy = FaultProxy(server=quiet_plane.server, ca_file=quiet_plane.folder / "ca.crt")
    with fault_proxy.running(proxy):
        yield proxy


def through(proxy: FaultProxy, plane: ControlPlane, folder: Path) -> Path:
    """A kubeconfig that leads to the API server through the proxy."""
    config = yaml.safe_load(operator_token(plane).read_text())
    config["clusters"][0]["cluster"] = {"server": proxy.url}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def once_on(method: str, ending: str, kind: Kind) -> Callable[[Call, object], Kind]:
    """Spoils the first request of this method whose path ends so."""
    left = [kind]

    def choose(call: Call, draw: object) -> Kind:
        is_met = call.method == method and call.path.endswith(ending)
        return left.pop() if is_met and left else "none"

    return choose


@pytest.mark.parametrize(
    ("method", "ending", "kind"),
    [
        ("POST", "/binding", "lost-answer"),
        ("POST", "/binding", "500"),
        ("PATCH", "/status", "lost-answer"),
        ("PATCH", "/status", "409"),
        ("PATCH", "/status", "503"),
    ],
)
def test_a_failed_request_delays_a_pod_and_stops_no_pod(
    quiet_plane: ControlPlane,
    quiet_jobs: JobClient,
    proxy: FaultProxy,
    tmp_path: Path,
    method: str,
    ending: str,
    kind: Kind,
):
    kubelet = FakeKubelet(
        kubeconfig=through(proxy, quiet_plane, tmp_path),
        namespace=quiet_jobs.namespace,
        life=lambda pod: Life(after_s=0.1, node="node-a"),
    )
    proxy.choose = once_on(method, ending, kind)
    with fake_kubelet.playing(kubelet, with_node=False):
        quiet_plane.create(quiet_jobs.path("pods"), {"metadata": {"name": "a"}, "spec": {"containers": [CONTAINER]}})
        pod = wait_until(
            lambda: quiet_plane.get(quiet_jobs.path("pods", "a")),
            lambda pod: pod["status"]["phase"] == "Succeeded",
            "end",
        )
    assert pod["spec"]["nodeName"] == "node-a"
    assert proxy.injected == {kind: 1}


def test_the_deletion_of_a_pod_is_carried_out_though_its_answer_is_lost(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, proxy: FaultProxy, tmp_path: Path
):
    kubelet = FakeKubelet(kubeconfig=through(proxy, quiet_plane, tmp_path), namespace=quiet_jobs.namespace)
    path = quiet_jobs.path("pods", "a")
    with fake_kubelet.playing(kubelet, with_node=False):
        quiet_plane.create(quiet_jobs.path("pods"), {"metadata": {"name": "a"}, "spec": {"containers": [CONTAINER]}})
        wait_until(lambda: quiet_plane.get(path), lambda pod: pod["status"]["phase"] == "Running", "Running")
        proxy.choose = once_on("DELETE", "/a", "500")
        quiet_plane.delete(path)
        wait_until(lambda: quiet_plane.get(path), lambda pod: pod is None, "the pod to be gone")
    assert proxy.injected == {"500": 1}
