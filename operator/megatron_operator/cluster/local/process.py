"""One process group: starting, identifying later, and ending it. Knows nothing about pods."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MAX_LOG_BYTES = 256 * 2**20
"""Limit of a process's output: a program that prints forever must not fill a shared disk."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A process of this machine; `started` distinguishes it from a later one with the same number."""

    pid: int
    started: str


def start(
    command: Sequence[str], variables: Mapping[str, str], *, directory: Path | None, log: Path
) -> subprocess.Popen[bytes]:
    """Starts the command as leader of its own session, so that a Ctrl-C at the terminal does not reach it.

    Raises OSError if it cannot be started.
    """
    inherited = os.environ  # noqa: TID251 (a pod has its image's environment, a local one has this process's)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env={**inherited, **variables},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def bound_log(log: Path, *, most_bytes: int = MAX_LOG_BYTES) -> None:
    """Moves the end of a log that has grown beyond the limit to NAME.log.1 and truncates it.

    The writer appends, so its next line is at the beginning. The start of the log is lost.
    """
    try:
        size_bytes = log.stat().st_size
    except FileNotFoundError:
        return
    if size_bytes <= most_bytes:
        return
    aside = log.with_name(f"{log.name}.1")
    with log.open("rb") as file, aside.open("wb") as kept:
        file.seek(size_bytes - most_bytes // 2)
        shutil.copyfileobj(file, kept)
    os.truncate(log, 0)
    with log.open("ab") as file:
        file.write(f"mtj: the log had {size_bytes} bytes; its end is in {aside.name}, the rest was dropped\n".encode())


def identify(pid: int) -> Identity | None:
    """The process with this number, None if it has ended (a zombie has)."""
    try:
        # Field 2 is the command in parentheses, which may contain spaces; field 3 is the state, field 22 the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else Identity(pid=pid, started=fields[19])


def is_alive(identity: Identity) -> bool:
    """Whether this same process is still running."""
    return identify(identity.pid) == identity


def terminate(identity: Identity) -> None:
    """Sends the process SIGTERM, as a kubelet does to process 1 of a container."""
    if is_alive(identity):
        with suppress(ProcessLookupError):
            os.kill(identity.pid, signal.SIGTERM)


def exit_code_of_group(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code (128 + n after signal n) of a child that has ended, after killing its group; None before.

    The group is killed before the child is reaped: until then its number cannot be reused.
    """
    if process.returncode is None:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        kill_group(process.pid)
        process.wait()
    code: int = process.returncode
    return 128 - code if code < 0 else code


def kill_group(pid: int) -> None:
    """Kills what is left of the process's group: a container's processes end with its first."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
