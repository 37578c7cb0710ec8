"""mtj wait on a cluster whose API server is away for a moment: a real server of HTTP that answers in turn."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from megatron_operator.cli import wait
from megatron_operator.cli.main import main

API = "client.authentication.k8s.io/v1"


@contextmanager
def serving(*answers: int | str) -> Iterator[str]:
    """The URL of a server that answers so in turn, the last again and again: a job in a phase, or an error's status."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            job = {"metadata": {"name": "tune"}, "status": {"phase": answer}}
            body = json.dumps({"message": "away"} if isinstance(answer, int) else job).encode()
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(folder: Path, server: str) -> str:
    """A kubeconfig whose token a program gives, which writes a line each time."""
    credential = {"apiVersion": API, "kind": "ExecCredential", "status": {"token": "token"}}
    program = f"#!/bin/sh\necho asked >> {folder}/asked\necho '{json.dumps(credential)}'\n"
    (folder / "give-token").write_text(program)
    (folder / "give-token").chmod(0o755)
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "cloud"}}],
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "cloud", "user": {"exec": {"apiVersion": API, "command": "./give-token"}}}],
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    return str(folder / "config")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "POLL_S", 0.01)


def test_a_wait_outlasts_an_api_server_that_is_away(tmp_path: Path):
    with serving("Running", 503, 500, "Running", "Succeeded") as server:
        assert main(["wait", "tune", "--kubeconfig", kubeconfig(tmp_path, server)]) == 0
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_wait_ends_with_a_cluster_that_never_answered_or_stays_away(tmp_path: Path, monkeypatch, capsys):
    with serving(503) as server:
        assert main(["wait", "tune", "--kubeconfig", kubeconfig(tmp_path, server)]) == 1
    monkeypatch.setattr(wait, "PATIENCE_S", 0.05)
    with serving("Running", 503) as server:
        assert main(["wait", "tune", "--kubeconfig", kubeconfig(tmp_path, server)]) == 1
    assert "503" in capsys.readouterr().err


def test_a_wait_ends_when_its_job_is_deleted(tmp_path: Path, capsys):
    with serving("Running", 404) as server:
        assert main(["wait", "tune", "--kubeconfig", kubeconfig(tmp_path, server)]) == 1
    assert "no job tune" in capsys.readouterr().err
