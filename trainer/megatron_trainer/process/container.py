"""A container that Kubernetes starts again in its living pod: what its launcher knows of the one before.

The environment names the attempt for which the pod was made, even if later ones have run in it. So each launcher notes
the attempt of its ranks in a file that outlives the container; one that finds such a file starts no ranks by itself.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from megatron_trainer.environment import Environment
from megatron_trainjob.launcher import CONTAINER_ENDED, LauncherReport
from megatron_trainjob.termination import TerminationRecord

KILLED = 128 + signal.SIGKILL


def note(env: Environment, attempt: int) -> None:
    """Notes that ranks of this attempt are about to start. Raises OSError: without the note they could run twice."""
    if env.attempt_file is not None:
        _write(env.attempt_file, attempt)


def count(env: Environment) -> int:
    """How many containers of this pod have run a launcher before; this one is counted from now on.

    Raises OSError: uncounted, the end of this container would be taken for that of the one before.
    """
    if env.attempt_file is None:
        return 0
    file = env.attempt_file.with_suffix(".containers")
    ended = int(file.read_text()) if file.exists() else 0
    _write(file, ended + 1)
    return ended


def _write(file: Path, number: int) -> None:
    """Writes a number whole or not at all: a container may be killed at any moment, and the next one reads it."""
    aside = file.with_name(f"{file.name}.tmp")
    aside.write_text(str(number))
    aside.replace(file)


def note_answer(env: Environment) -> None:
    """Notes that the operator has answered a launcher of this pod."""
    if env.attempt_file is not None:
        with contextlib.suppress(OSError):
            _answered(env.attempt_file).touch()


def was_answered(env: Environment) -> bool:
    """Whether the operator has ever answered a launcher of this pod: one that is away then comes back."""
    return env.attempt_file is not None and _answered(env.attempt_file).exists()


def _answered(attempt_file: Path) -> Path:
    return attempt_file.with_suffix(".answered")


def before(env: Environment, num_ranks: int) -> LauncherReport | None:
    """What to report of the ranks that ended with the former container, None in a pod's first.

    How that container ended is known to the kubelet alone.
    """
    if env.attempt_file is None or not env.attempt_file.exists():
        return None
    record = TerminationRecord(
        exit_code=KILLED,
        reason=CONTAINER_ENDED,
        rank=env.node_rank * num_ranks,
        iteration=None,
        message="the container ended, its launcher and ranks with it, and was started again",
    )
    return LauncherReport(attempt=int(env.attempt_file.read_text()), state="failed", failure=record)
