"""Exit codes of the trainer, and what each means for a retry. The operator decides restart or failure by them.

Codes 64 to 78 (the range of BSD sysexits) and 2 mean that a retry with the same manifest cannot help.
"""

from __future__ import annotations

import signal
from enum import IntEnum
from typing import Final, Literal

Retry = Literal["done", "never", "retry", "resume"]

_FATAL: Final = (
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGKILL,
    signal.SIGSEGV,
)
RESTARTED: Final = tuple(128 + each for each in _FATAL)
"""Exit codes of a container that a fatal signal has ended, out of memory among them: Kubernetes can start it again."""

_ON_PURPOSE: Final = 64
"""Added to those codes by a launcher that ends by itself because a rank did so: it is not started again."""


class ExitCode(IntEnum):
    """Codes that the trainer itself chooses; any other code comes from the interpreter, a signal or a library."""

    OK = 0
    ERROR = 1
    USAGE = 2
    BAD_ARGUMENTS = 64
    BAD_DATA = 65
    MISSING_INPUT = 66
    CHECKPOINT_INCOMPATIBLE = 67
    NO_CHECKPOINT = 68
    LOSS_NOT_FINITE = 69
    UNSUPPORTED = 70
    OUT_OF_DEVICE_MEMORY = 71
    OUTPUT_NOT_WRITABLE = 73
    COLLECTIVE_TIMEOUT = 79
    PREEMPTED = 143


def retry_class(exit_code: int) -> Retry:
    """The effect of a restart after this code: not needed, never helps, may help, or simply continues the run."""
    if exit_code == ExitCode.OK:
        return "done"
    if exit_code == ExitCode.USAGE or 64 <= exit_code <= 78:
        return "never"
    if exit_code == ExitCode.PREEMPTED:
        return "resume"
    return "retry"


def ends_for_good(exit_code: int) -> int:
    """The code with which a launcher ends that is not to be started again: 201 for a rank that SIGKILL (137) ended."""
    return exit_code + _ON_PURPOSE if exit_code in RESTARTED else exit_code


def of_rank(exit_code: int) -> int:
    """The code of the rank for which a launcher has ended with this code."""
    return exit_code - _ON_PURPOSE if exit_code - _ON_PURPOSE in RESTARTED else exit_code


def describe(exit_code: int) -> str:
    """A short reason for status and events, for example "BAD_ARGUMENTS" or "signal 9"."""
    return ExitCode(exit_code).name if exit_code in ExitCode._value2member_map_ else describe_foreign(exit_code)


def describe_foreign(exit_code: int) -> str:
    """The same for a program other than the trainer, whose codes have no names here."""
    if 128 < exit_code < 160:
        return f"signal {exit_code - 128}"
    return f"exit code {exit_code}"
