"""The termination record: how the first failing rank of a pod ended, and why.

The trainer's launcher writes it to the pod's termination log, from which Kubernetes copies it to the pod's status; the
operator reads it there, as untrusted input, for status.lastFailure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megatron_trainjob import shown

LOG: Final = "/dev/termination-log"
"""The path that Kubernetes reads."""

MAX_MESSAGE_CHARACTERS: Final = 1024

EXIT_CODE: Final = "exitCode"
REASON: Final = "reason"
RANK: Final = "rank"
ITERATION: Final = "iteration"
MESSAGE: Final = "message"


@dataclass(frozen=True, kw_only=True)
class TerminationRecord:
    """The first failing rank, its exit code, and the reason. reason: as from exit_codes.describe.

    iteration: None if unknown; the operator then uses that of the last progress record.
    """

    exit_code: int
    reason: str
    rank: int
    iteration: int | None
    message: str

    def to_json(self) -> str:
        """The termination message, at most 4 KB as Kubernetes requires."""
        return json.dumps(self.to_fields())

    def to_fields(self) -> dict[str, Any]:
        """The record as JSON fields in the operator's spelling."""
        return {
            EXIT_CODE: self.exit_code,
            REASON: self.reason,
            RANK: self.rank,
            ITERATION: self.iteration,
            MESSAGE: shown.message(self.message)[:MAX_MESSAGE_CHARACTERS],
        }


def write(path: Path | None, record: TerminationRecord) -> None:
    """Writes the record where the launcher reads it; a rank without a launcher has no such path."""
    if path is not None:
        path.write_text(record.to_json())


def read(path: Path) -> TerminationRecord | None:
    """A rank's record, or None if it died before writing one."""
    try:
        fields = json.loads(path.read_text())
        return TerminationRecord(
            exit_code=fields[EXIT_CODE],
            reason=fields[REASON],
            rank=fields[RANK],
            iteration=fields[ITERATION],
            message=fields[MESSAGE],
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
