"""How a rank ends when it cannot go on: errors with an exit code, and the record of the first failure.

The launcher copies the record into the pod's termination log; the operator takes it into status.lastFailure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

MAX_MESSAGE_CHARACTERS = 1024


class TrainingError(Exception):
    """A failure that the user can act on; it ends the rank with `exit_code` and without a traceback."""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InvalidInput(TrainingError):
    """Everything that is wrong with what was given, at once."""

    def __init__(self, violations: tuple[Violation, ...], exit_code: ExitCode = ExitCode.BAD_ARGUMENTS) -> None:
        super().__init__(exit_code, "\n".join(str(violation) for violation in violations))
        self.violations = violations


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """What the termination log says: the first failing rank, its code, and why.

    iteration: None where nobody could say; the operator then takes that of the last progress.
    """

    exit_code: int
    reason: str
    rank: int
    iteration: int | None
    message: str

    def to_json(self) -> str:
        """The termination message in the operator's spelling, at most 4 KB as Kubernetes wants it."""
        fields = asdict(self)
        fields["exitCode"] = fields.pop("exit_code")
        fields["message"] = self.message[:MAX_MESSAGE_CHARACTERS]
        return json.dumps(fields)


def write(path: Path | None, record: FailureRecord) -> None:
    """Leaves the record where the launcher looks; a rank that nobody launched has no such place."""
    if path is not None:
        path.write_text(record.to_json())


def read(path: Path) -> FailureRecord | None:
    """A rank's record, or None when it died too fast to leave one."""
    try:
        fields = json.loads(path.read_text())
        return FailureRecord(exit_code=fields.pop("exitCode"), **fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
