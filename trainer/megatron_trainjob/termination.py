"""The termination record: how the first failing rank of a pod ended, and why.

The trainer's launcher writes it to the pod's termination log, from which Kubernetes copies it to the pod's status; the
operator reads it there, as untrusted input, for status.lastFailure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megatron_trainjob import shown
from megatron_trainjob.exit_codes import describe

LOG: Final = "/dev/termination-log"
"""The path that Kubernetes reads."""

MAX_BYTES: Final = 4096
"""Of a container's termination message, by Kubernetes."""
ESCAPED_CHARACTERS: Final = 12
"""Most characters that JSON writes for one, all of them ASCII."""

MAX_MESSAGE_CHARACTERS: Final = 1024

EXIT_CODE: Final = "exitCode"
REASON: Final = "reason"
RANK: Final = "rank"
ITERATION: Final = "iteration"
MESSAGE: Final = "message"
HOST: Final = "host"
STACK: Final = "stack"
GPU_ERROR: Final = "gpuError"

MAX_HOST_CHARACTERS: Final = 253
MAX_STACK_CHARACTERS: Final = 512
MAX_GPU_ERROR_CHARACTERS: Final = 512

_SIGNALS: Final = {
    "Aborted": 6,
    "Bus error": 7,
    "Floating point exception": 8,
    "Segmentation fault": 11,
    "Illegal instruction": 4,
}
_FATAL: Final = re.compile(r"^Fatal Python error: ([\w -]+)$", re.MULTILINE)
_FRAME: Final = re.compile(r'^  File "([^"]+)", line (\d+) in (\S+)$', re.MULTILINE)
_SHOWN_FRAMES: Final = 6


@dataclass(frozen=True, kw_only=True)
class TerminationRecord:
    """The first failing rank, its exit code, and the reason. reason: as from exit_codes.describe.

    iteration: None if unknown; the operator then uses that of the last progress record. host: as its system names it.
    stack: where the rank stood, the innermost functions first; "" if unknown. gpu_error: what the driver said of the
    node's GPUs during the attempt.
    """

    exit_code: int
    reason: str
    rank: int
    iteration: int | None
    message: str
    host: str = ""
    stack: str = ""
    gpu_error: str = ""

    def to_json(self) -> str:
        """The termination message. What the kubelet would cut off at the end is cut from the message inside."""
        fields = self.to_fields()
        while (excess := len(json.dumps(fields)) - MAX_BYTES) > 0 and fields.get(MESSAGE):
            fields[MESSAGE] = fields[MESSAGE][: -(excess // ESCAPED_CHARACTERS + 1)]
        return json.dumps(fields)

    def to_fields(self) -> dict[str, Any]:
        """The record as JSON fields in the operator's spelling."""
        fields = {
            EXIT_CODE: self.exit_code,
            REASON: self.reason,
            RANK: self.rank,
            ITERATION: self.iteration,
            MESSAGE: shown.message(self.message)[:MAX_MESSAGE_CHARACTERS],
            HOST: self.host[:MAX_HOST_CHARACTERS],
            STACK: shown.message(self.stack)[:MAX_STACK_CHARACTERS],
            GPU_ERROR: shown.message(self.gpu_error)[:MAX_GPU_ERROR_CHARACTERS],
        }
        return {name: value for name, value in fields.items() if value != ""}


def write(path: Path | None, record: TerminationRecord) -> None:
    """Writes the record where the launcher reads it; a rank without a launcher has no such path."""
    if path is not None:
        path.write_text(record.to_json())


def stack_file(path: Path) -> Path:
    """Where a rank that a signal ends leaves its stacks, beside its record."""
    return path.with_suffix(".stack")


def frame(file: str, line: int, function: str) -> str:
    """One function of a stack, with the end of its file's path."""
    return f"{function} ({'/'.join(file.split('/')[-2:])}:{line})"


def read(path: Path) -> TerminationRecord | None:
    """A rank's record, or what is known of one that a fatal signal ended; None if it died without a word."""
    try:
        fields = json.loads(path.read_text())
        return TerminationRecord(
            exit_code=fields[EXIT_CODE],
            reason=fields[REASON],
            rank=fields[RANK],
            iteration=fields[ITERATION],
            message=fields[MESSAGE],
            host=fields.get(HOST, ""),
            stack=fields.get(STACK, ""),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return _of_fatal_signal(stack_file(path))


def _of_fatal_signal(path: Path) -> TerminationRecord | None:
    """What faulthandler has left: a line of ours, the error, the stacks of all threads with that of the error first."""
    try:
        head, _, text = path.read_text(errors="replace").partition("\n")
        place = json.loads(head)
        name = _FATAL.search(text)
        if name is None:
            return None
        exit_code = 128 + _SIGNALS[name[1].replace("-", " ")]
        return TerminationRecord(
            exit_code=exit_code,
            reason=describe(exit_code),
            rank=place[RANK],
            iteration=None,
            message=f"{name[0]}; the log above has the words of the library that ended the process",
            host=place[HOST],
            stack=_main_stack(text),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _main_stack(text: str) -> str:
    """The innermost functions of the main thread, which faulthandler writes last."""
    last = text.rpartition("most recent call first")[2]
    return " < ".join(frame(file, int(line), name) for file, line, name in _FRAME.findall(last)[:_SHOWN_FRAMES])
