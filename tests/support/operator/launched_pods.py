"""Launchers of pods that a fake kubelet runs: real processes with the environment and the token of their pods.

Their ranks are counting_program.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster.control_plane import end_with_parent
from tests.support.operator.job_client import JobClient, wait_until
from tests.support.operator.progress_client import pod_token, variables

LAUNCHER = Path(__file__).with_name("counting_launcher.py")


@dataclass(frozen=True, kw_only=True)
class LaunchedPod:
    """The process that a pod's container would be, its log, and how it was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    command: Sequence[str]
    environment: Mapping[str, str]

    @property
    def rank(self) -> int:
        """Its only rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(wait_until(lambda: children.read_text().split(), bool, "a rank")[0])

    def await_line(self, text: str) -> None:
        """Until the log has this text."""
        wait_until(lambda: self.log.read_text(), lambda found: text in found, text)

    def started_again(self) -> LaunchedPod:
        """The next container of the same pod, with the same environment and the files that outlive containers."""
        return _started(self.name, self.log, self.command, self.environment)


@contextlib.contextmanager
def launched(
    jobs: JobClient, folder: Path, names: Sequence[str], *options: str, patience_s: int = 60
) -> Iterator[list[LaunchedPod]]:
    """The launchers of these pods, started as their containers say, once all have started their ranks.

    Whoever replaces one in the list leaves its end to this.
    """
    pods: list[LaunchedPod] = []
    try:
        for pod in names:
            token = folder / f"{pod}.token"
            token.write_text(pod_token(jobs, pod))
            given = variables(jobs, pod)
            environment = {
                **os.environ,
                **given,
                "MTJ_RANK_START": "spawn",
                "MTJ_PROGRESS_FILE": str(folder / f"{pod}.progress"),
                "MTJ_TERMINATION_LOG": str(folder / f"{pod}.termination"),
                "MTJ_LAUNCHER_PATIENCE_SECONDS": str(patience_s),
                "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
                "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(jobs.plane.folder / "ca.crt"),
                **({"MTJ_ATTEMPT_FILE": str(folder / f"{pod}.attempt")} if "MTJ_ATTEMPT_FILE" in given else {}),
            }
            command = [sys.executable, str(LAUNCHER), str(folder / "shared"), *options]
            pods.append(_started(pod, folder / f"{pod}.log", command, environment))
        for each in pods:
            each.await_line("node")
        yield pods
    finally:
        for each in pods:
            each.process.kill()
            each.process.wait()


def _started(name: str, log: Path, command: Sequence[str], environment: Mapping[str, str]) -> LaunchedPod:
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, preexec_fn=end_with_parent)
    return LaunchedPod(name=name, process=process, log=log, command=command, environment=environment)
