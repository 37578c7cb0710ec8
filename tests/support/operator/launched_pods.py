"""Launchers of pods that a fake kubelet runs: real processes with the environment and the token of their pods.

Their ranks are counting_program.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster.control_plane import end_with_parent
from tests.support.operator.job_client import JobClient, wait_until
from tests.support.operator.progress_client import pod_token, variables

LAUNCHER = Path(__file__).with_name("counting_launcher.py")


@dataclass(frozen=True, kw_only=True)
class LaunchedPod:
    """The process that a pod's container would be, and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def rank(self) -> int:
        """Its only rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(wait_until(lambda: children.read_text().split(), bool, "a rank")[0])

    def await_line(self, text: str) -> None:
        """Until the log has this text."""
        wait_until(lambda: self.log.read_text(), lambda found: text in found, text)


@contextlib.contextmanager
def launched(
    jobs: JobClient, folder: Path, names: Sequence[str], *options: str, patience_s: int = 60
) -> Iterator[list[LaunchedPod]]:
    """The launchers of these pods, started as their containers say, once all have started their ranks."""
    pods = []
    try:
        for pod in names:
            token = folder / f"{pod}.token"
            token.write_text(pod_token(jobs, pod))
            environment = {
                **os.environ,
                **variables(jobs, pod),
                "MTJ_RANK_START": "spawn",
                "MTJ_PROGRESS_FILE": str(folder / f"{pod}.progress"),
                "MTJ_TERMINATION_LOG": str(folder / f"{pod}.termination"),
                "MTJ_LAUNCHER_PATIENCE_SECONDS": str(patience_s),
                "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
                "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(jobs.plane.folder / "ca.crt"),
            }
            command = [sys.executable, str(LAUNCHER), str(folder / "shared"), *options]
            log = folder / f"{pod}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output, preexec_fn=end_with_parent
                )
            pods.append(LaunchedPod(process=process, log=log))
        for pod in pods:
            pod.await_line("node")
        yield pods
    finally:
        for pod in pods:
            pod.process.kill()
            pod.process.wait()
