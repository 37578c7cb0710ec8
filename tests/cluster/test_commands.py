"""mtj status, logs and wait against a cluster, with a kubeconfig; the fake node answers for its pods' logs."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from megatron_operator.cli.main import main
from tests.support.operator.fake_kubelet import NODE_NAME
from tests.support.operator.job_client import JobClient, manifest, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]


def run(jobs: JobClient, *words: str) -> int:
    """The exit code of mtj about this test's namespace."""
    return main([*words, "--kubeconfig", str(jobs.plane.kubeconfig), "-n", jobs.namespace])


def test_status_shows_a_job_of_the_cluster_and_lists_all(jobs: JobClient, capsys: pytest.CaptureFixture[str]):
    jobs.submit(manifest("tune"))
    jobs.await_phase("Running", "tune")
    wait_until(lambda: jobs.events("tune"), lambda events: "JobRunning" in events, "the event")
    assert run(jobs, "status", "tune") == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("tune Running", "world size", "JobRunning"))
    assert run(jobs, "status") == 0
    assert "tune" in capsys.readouterr().out
    assert run(jobs, "status", "other") == 1
    assert "no job other in namespace" in capsys.readouterr().err


def test_wait_returns_at_the_end_or_at_the_phase_that_was_asked_for(
    jobs: JobClient, capsys: pytest.CaptureFixture[str]
):
    jobs.submit(manifest("tune"))
    assert run(jobs, "wait", "tune", "--for", "Running", "--timeout", "120") == 0
    assert run(jobs, "wait", "tune", "--for", "Complete", "--timeout", "0") == 1
    assert "still Running" in capsys.readouterr().err
    for pod in jobs.pods("tune"):
        jobs.end_pod(pod, 0)
    assert run(jobs, "wait", "tune", "--timeout", "120") == 0
    assert run(jobs, "wait", "tune", "--for", "Complete") == 0
    assert run(jobs, "wait", "tune", "--for", "Failed") == 1


class KubeletLogs(BaseHTTPRequestHandler):
    """Answers as the kubelet does: the log of a container."""

    def do_GET(self) -> None:
        """The path tells which: /containerLogs/NAMESPACE/POD/CONTAINER."""
        _, kind, _, pod, container = self.path.partition("?")[0].split("/")
        text = f"{kind} of {pod} {container}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *words: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def answering_node(plane: ControlPlane, folder: Path) -> Iterator[None]:
    """Gives the fake node an address at which its logs are asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), KubeletLogs)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(plane.folder / "server.crt", plane.folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
    endpoint = {"kubeletEndpoint": {"Port": server.server_address[1]}}
    status = {"addresses": addresses, "daemonEndpoints": endpoint}
    plane.merge(f"/api/v1/nodes/{NODE_NAME}/status", {"status": status})
    try:
        yield
    finally:
        server.shutdown()


def test_logs_come_from_the_newest_master_and_end_with_the_job(
    plane: ControlPlane, jobs: JobClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    jobs.submit(manifest("tune", failurePolicy={"backoffSeconds": {"initial": 0, "max": 1}}))
    jobs.await_phase("Running", "tune")
    jobs.end_pod("tune-a0-worker-0", 137)
    jobs.await_pods("tune-a1-master-0", "tune-a1-worker-0", job="tune")
    jobs.await_phase("Running", "tune")
    with answering_node(plane, tmp_path):
        assert run(jobs, "logs", "tune") == 0
        assert capsys.readouterr().out == "containerLogs of tune-a1-master-0 trainer\n"
        assert run(jobs, "logs", "tune", "--pod", "worker") == 0
        assert capsys.readouterr().out == "containerLogs of tune-a1-worker-0 trainer\n"
        for pod in jobs.pods("tune"):
            jobs.end_pod(pod, 0)
        jobs.await_phase("Succeeded", "tune")
        assert run(jobs, "logs", "tune", "-f") == 0
        assert "tune-a1-master-0" in capsys.readouterr().out
    assert run(jobs, "logs", "other") == 1


def test_following_goes_on_in_a_container_that_starts_again(
    plane: ControlPlane, jobs: JobClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    jobs.submit(manifest("tune"))
    jobs.await_phase("Running", "tune")
    said: list[str] = []

    def lines() -> int:
        said.append(capsys.readouterr().out)
        return "".join(said).count("containerLogs of tune-a0-master-0")

    with answering_node(plane, tmp_path):
        follows = threading.Thread(target=run, args=(jobs, "logs", "tune", "-f"), daemon=True)
        follows.start()
        wait_until(lines, lambda count: count == 1, "the log of the first container")
        status = jobs.pods("tune")["tune-a0-master-0"]["status"]
        again = [{**each, "restartCount": 1} for each in status["containerStatuses"]]
        plane.merge(jobs.path("pods", "tune-a0-master-0") + "/status", {"status": {"containerStatuses": again}})
        wait_until(lines, lambda count: count == 2, "the log of the second container")
        for pod in jobs.pods("tune"):
            jobs.end_pod(pod, 0)
        follows.join(60)
        assert not follows.is_alive()
