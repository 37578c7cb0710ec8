"""The Python stacks of a rank: into the log on SIGUSR2 and when a step hangs, into a file when a signal ends it.

faulthandler writes them, also while a rank waits in a collective and runs no Python.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

from megatron_trainjob import termination

SHOWN_FRAMES = 6
LOG = 2
"""The descriptor of standard error, whatever sys.stderr is by now."""


def listen(failure_file: Path | None, rank: int) -> None:
    """From now on this process answers the signal, and leaves its stacks if a signal ends it."""
    faulthandler.register(signal.SIGUSR2, file=LOG, all_threads=True, chain=False)
    if failure_file is None:
        faulthandler.enable(file=LOG, all_threads=True)
        return
    head = json.dumps({termination.RANK: rank, termination.HOST: socket.gethostname()})
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        descriptor = os.open(termination.stack_file(failure_file), flags)
        os.write(descriptor, f"{head}\n".encode())
    except OSError:  # its disk is full
        descriptor = LOG
    faulthandler.enable(file=descriptor, all_threads=True)


@contextlib.contextmanager
def written_after(seconds: float) -> Iterator[None]:
    """Context after so many seconds of which the stacks of all threads are written to the log, once."""
    faulthandler.dump_traceback_later(seconds, file=LOG)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def write_now() -> None:
    """Writes the stacks of all threads to the log."""
    faulthandler.dump_traceback(file=LOG, all_threads=True)


def of_error(error: BaseException) -> str:
    """Where it was raised: the innermost functions first."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-SHOWN_FRAMES:])
    return " < ".join(termination.frame(each.filename, each.lineno or 0, each.name) for each in frames)
