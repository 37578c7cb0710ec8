"""Runs the operator as its own process against the test session's control plane, as a pod would run it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from local_cluster import wait
from local_cluster.control_plane import end_with_parent, free_port

REPOSITORY = Path(__file__).parents[3]
READY_S = 150


@dataclass(frozen=True, kw_only=True)
class OperatorProcess:
    """One running operator. Its log is at `log`; it answers health checks on `port` of `host`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    host: str = "127.0.0.1"

    def read(self, path: str) -> str:
        """The answer of its health server, also of a failing check."""
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=5) as response:
                body: bytes = response.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        return body.decode()

    def is_ready(self) -> bool:
        """Whether its readiness check passes."""
        return wait.is_ready(self.port, self.host)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 when nothing was counted."""
        lines = (line.rsplit(" ", 1) for line in self.read("/metrics").splitlines())
        return sum(float(value) for series, value in lines if series.split("{")[0] == name)

    def kill(self) -> None:
        """Ends it at once, as a lost node would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ends it as the kubelet does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def start(kubeconfig: Path, folder: Path, **variables: str) -> OperatorProcess:
    """A running operator, not necessarily ready. Settings are given by their environment names."""
    port = free_port()
    environment = {
        **_inherited(),
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("operator", "trainer")),
        "KUBECONFIG": str(kubeconfig),
        "MTJ_HTTP_ADDRESS": "127.0.0.1",
        "MTJ_HTTP_PORT": str(port),
        "MTJ_LEADER_ELECTION": "false",
        "TMPDIR": str(folder),  # one that is killed leaves its copies of certificates there
        **variables,
    }
    log = folder / f"operator-{port}.log"
    with log.open("ab") as output:
        command = [sys.executable, "-m", "megatron_operator"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, preexec_fn=end_with_parent)
    host = "[::1]" if environment["MTJ_HTTP_ADDRESS"] == "::1" else "127.0.0.1"
    return OperatorProcess(process=process, port=port, log=log, host=host)


def wait_ready(operator: OperatorProcess) -> OperatorProcess:
    """The operator once it is ready; raises with its log when it is not in time."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and operator.process.poll() is None:
        if operator.is_ready():
            return operator
        time.sleep(0.1)
    raise RuntimeError(f"the operator did not become ready:\n{operator.log.read_text()[-4000:]}")


@contextlib.contextmanager
def running(kubeconfig: Path, folder: Path, **variables: str) -> Iterator[OperatorProcess]:
    """A ready operator for as long as the block lasts."""
    operator = start(kubeconfig, folder, **variables)
    try:
        yield wait_ready(operator)
    finally:
        if operator.process.poll() is None:
            operator.kill()


def _inherited() -> Mapping[str, str]:
    """What a process needs of ours to run at all."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
