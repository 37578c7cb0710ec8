"""Progress pushed to a real HTTP server on this machine."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megatron_trainer.report import FinishRecord, PhaseRecord
from megatron_trainer.report.kubeflow import KubeflowPush, Server, server_from, status
from megatron_trainjob.progress import Progress
from tests.support.data.report_records import EPOCH, Clock, log_record, run_info


@contextmanager
def status_server(code=200):
    """The address of a server, and the (token, body) of every push that it got."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.headers["Authorization"], json.loads(body)["trainerStatus"]))
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/status", received
    finally:
        server.shutdown()
        server.server_close()


def push_run(url, tmp_path, clock):
    (tmp_path / "token").write_text("secret\n")
    sink = KubeflowPush(Server(url=url, ca_certificate=None, token=tmp_path / "token"), now=clock)
    sink.write(run_info(total_iterations=206))
    sink.write(PhaseRecord(phase="training"))
    for iteration in (5, 6, 7):
        sink.write(log_record(iteration=iteration))
        clock.time += 1.0
    sink.write(FinishRecord(phase="finished", iteration=206))
    sink.close()


def test_the_end_is_pushed_with_the_metrics_and_the_token(tmp_path):
    with status_server() as (url, received):
        push_run(url, tmp_path, Clock())
    assert received[-1] == (
        "Bearer secret",
        {
            "progressPercentage": 100,
            "estimatedRemainingSeconds": 0,
            "metrics": [
                {"name": "grad_norm", "value": "1.105"},
                {"name": "learning_rate", "value": "4.85437e-06"},
                {"name": "lm loss", "value": "1.1804"},
            ],
            "lastUpdatedTime": "2026-11-24T06:00:03Z",
        },
    )
    assert len(received) <= 2  # of three steps within three seconds at most one is pushed


@pytest.mark.parametrize("code", [401, 422, 500])
def test_a_server_that_refuses_costs_the_run_nothing(tmp_path, code, caplog):
    with status_server(code) as (url, received):
        push_run(url, tmp_path, Clock())
    assert received
    assert f"HTTP Error {code}" in caplog.text


def test_a_server_that_is_gone_costs_the_run_nothing(tmp_path, caplog):
    with status_server() as (url, _):
        pass
    push_run(url, tmp_path, Clock())
    assert "cannot push progress" in caplog.text


@pytest.mark.parametrize(
    ("state", "percentage"),
    [
        (Progress(phase="training", iteration=50, total_iterations=200), 25),
        (Progress(phase="exporting", iteration=200, total_iterations=200), 99),
        (Progress(phase="finished", iteration=200, total_iterations=200), 100),
        (Progress(phase="starting"), 0),
    ],
)
def test_a_hundred_percent_means_finished(state, percentage):
    assert status(state, EPOCH)["trainerStatus"]["progressPercentage"] == percentage


def test_the_server_comes_from_kubeflows_variables(tmp_path):
    assert server_from({}) is None
    environment = {
        "KUBEFLOW_TRAINER_SERVER_URL": "https://trainer:10443/status",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": "/run/ca.crt",
        "KUBEFLOW_TRAINER_SERVER_TOKEN": "/run/token",
    }
    server = server_from(environment)
    assert (server.url, str(server.ca_certificate), str(server.token)) == (
        "https://trainer:10443/status",
        "/run/ca.crt",
        "/run/token",
    )
