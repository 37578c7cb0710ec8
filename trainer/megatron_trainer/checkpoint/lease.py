"""A heartbeat in a workshop: tells whether the process that claimed a save folder is still running.

A file whose mtime is updated every few seconds, using only the file system's clock: clocks of nodes differ.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

from megatron_trainjob import input_file

LEASE = "lease.json"
PERIOD_S = 10.0
LIFE_S = 60.0
"""After this long without a heartbeat the process has ended, or cannot write either."""


class Heartbeat:
    """Renews the lease of a workshop from a thread until it is stopped or the workshop has been removed."""

    def __init__(self, workshop: Path) -> None:
        self._path = workshop / LEASE
        self._path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._stopped = threading.Event()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def stop(self) -> None:
        """Releases the lease: the folder is free at once."""
        self._stopped.set()
        self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return
            except OSError:
                continue  # a volume that is briefly unavailable


def holder(workshop: Path, *, now_s: float) -> str | None:
    """The process that renews the lease of a workshop, for a message; None: expired. now_s: by the same file system."""
    path = workshop / LEASE
    try:
        age_s = now_s - path.stat().st_mtime
        held = input_file.read_json(path)
        host, pid = str(held["host"]), int(held["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if age_s > LIFE_S or (host == socket.gethostname() and _is_gone(pid)):
        return None
    return f"process {pid} on {host}, {max(age_s, 0):.0f} s ago"


def _is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended. A lease with our own process id is left over from an earlier run."""
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and only its exit code is still there: not every first process collects orphans."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # another system, or it was collected meanwhile
        return False
    return state == "Z"
