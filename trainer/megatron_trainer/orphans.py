"""No process of a rank outlives it: an orphan would hold its GPU, its memory and the sockets that it inherited.

Ranks start again in the living pod, where the end of the container does not clear such processes away.
"""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Makes Linux kill this process when the thread that started it ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
