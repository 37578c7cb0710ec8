"""A pod on one machine: its containers as consecutive processes, its state as the API would show it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_operator.api import names
from megatron_operator.cluster.local import process as local_process
from megatron_operator.cluster.local.process import Identity
from megatron_operator.timestamp import to_text

Object = Mapping[str, Any]
MESSAGE_BYTES = 2048
PYTHONS = ("python", "python3")
ORPHANED = "MtjEnded"
# The exit code of a process that is not our child is unknown; it was terminated, so assume this one.
ORPHAN_EXIT_CODE = 143
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One container to run: command, environment and working folder, with rewritten paths."""

    container: str
    command: Sequence[str]
    variables: Mapping[str, str]
    directory: Path | None = None


@dataclass(kw_only=True)
class LocalPod:
    """A pod and its running process. Steps are the init containers and, last, the trainer."""

    raw: Object
    folder: Path
    log: Path
    steps: Sequence[Step]
    started_at: float
    step: int = 0
    process: subprocess.Popen[bytes] | None = None
    identity: Identity | None = None
    exit_code: int | None = None
    finished_at: float | None = None
    failure: str = ""
    grace_ends: float | None = None
    is_orphan: bool = False

    @property
    def name(self) -> str:
        """Name of the pod."""
        return str(self.raw["metadata"]["name"])

    @property
    def termination_log(self) -> Path:
        """File for the trainer's termination message."""
        return self.folder / "termination-log"

    @property
    def is_finished(self) -> bool:
        """Whether none of its processes is left."""
        return self.exit_code is not None

    def start(self, now: float) -> None:
        """Starts the next step; a command that cannot be started fails the pod."""
        step = self.steps[self.step]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.termination_log.unlink(missing_ok=True)
        command = [sys.executable if step.command[0] in PYTHONS else step.command[0], *step.command[1:]]
        try:
            process = local_process.start(command, step.variables, directory=step.directory, log=self.log)
        except OSError as error:
            self.failure = f"cannot start {command[0]}: {error}"
            self._end(128, now)
            return
        self.process, self.identity = process, local_process.identify(process.pid)
        self._record()

    def poll(self, now: float) -> None:
        """Updates the state: a step that ended, a grace period that is over."""
        if self.is_finished:
            return
        with suppress(OSError):  # a full disk must not keep processes from being seen to end
            local_process.bound_log(self.log)
        if self.grace_ends is not None and now >= self.grace_ends:
            self._kill()
        ended = self._exit_code()
        if ended is None:
            return
        if ended == 0 and self.step + 1 < len(self.steps) and self.grace_ends is None:
            self.step += 1
            self.start(now)
        else:
            self._end(ended, now)

    def delete(self, now: float, *, grace_s: float | None = None) -> None:
        """Terminates the pod; a second time, or without grace, kills it."""
        default = float(self.raw["spec"]["terminationGracePeriodSeconds"])
        ends = now + (default if grace_s is None else grace_s)
        self.grace_ends = ends if self.grace_ends is None else min(self.grace_ends, ends)
        if self.identity and not self.is_finished:
            local_process.terminate(self.identity)

    def seen(self) -> Object:
        """The pod as an API object, status and all."""
        metadata: dict[str, Any] = {**self.raw["metadata"], "uid": str(self.folder)}
        if self.grace_ends is not None:
            metadata["deletionTimestamp"] = to_text(self.grace_ends)
        return {**self.raw, "metadata": metadata, "status": self._status()}

    def _status(self) -> Object:
        is_trainer = self.step == len(self.steps) - 1
        phase = "Running" if is_trainer else "Pending"
        if self.exit_code is not None:
            phase = "Failed" if self.exit_code else "Succeeded"
        placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": to_text(self.started_at)}
        ready = {"type": "Ready", "status": "True" if phase == "Running" else "False"}
        lost = {"type": "DisruptionTarget", "status": "True", "reason": ORPHANED}
        container = self.steps[self.step].container
        return {
            "phase": phase,
            "conditions": [placed, ready, *([lost] if self.is_orphan else [])],
            "containerStatuses" if container == names.CONTAINER else "initContainerStatuses": [
                {"name": container, "state": self._container_state()}
            ],
        }

    def _container_state(self) -> Object:
        if self.exit_code is None or self.finished_at is None:
            return {"running": {}}
        ended = {
            "exitCode": self.exit_code,
            "reason": "Error" if self.exit_code else "Completed",
            "message": self._message(),
            "finishedAt": to_text(self.finished_at),
        }
        return {"terminated": ended}

    def _message(self) -> str:
        """The termination message, or the end of the log if a failed container left none."""
        if self.failure:
            return self.failure
        if self.termination_log.exists():
            return self.termination_log.read_text(errors="replace")[:MESSAGE_BYTES]
        if not self.exit_code or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - MESSAGE_BYTES))
            return file.read().decode(errors="replace")

    def _exit_code(self) -> int | None:
        if self.process is None:
            return None if self.identity and local_process.is_alive(self.identity) else ORPHAN_EXIT_CODE
        return local_process.exit_code_of_group(self.process)

    def _kill(self) -> None:
        if self.identity and local_process.is_alive(self.identity):
            local_process.kill_group(self.identity.pid)

    def _end(self, exit_code: int, now: float) -> None:
        self.exit_code, self.finished_at = exit_code, now
        (self.folder / "process.json").unlink(missing_ok=True)

    def _record(self) -> None:
        """Records the process, so that a later mtj finds it if this one is killed."""
        record = {"identity": self.identity and asdict(self.identity), "pod": self.raw}
        (self.folder / "process.json").write_text(json.dumps(record))


def find_orphan(folder: Path, log: Path, now: float) -> LocalPod | None:
    """The pod whose process outlived the mtj that started it; None if no process is left."""
    try:
        record = json.loads((folder / "process.json").read_text())
        identity = Identity(**record["identity"])
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not local_process.is_alive(identity):
        return None
    logger.warning("adopted a running pod of an mtj that has ended pod=%s pid=%d", folder.name, identity.pid)
    step = Step(container=names.CONTAINER, command=(), variables={})
    return LocalPod(
        raw=record["pod"],
        folder=folder,
        log=log,
        steps=(step,),
        started_at=now,
        identity=identity,
        is_orphan=True,
    )
