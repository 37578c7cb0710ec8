"""Errors that end a rank with an exit code."""

from __future__ import annotations

from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation


class TrainingError(Exception):
    """A failure that the user can act on; it ends the rank with `exit_code` and without a traceback."""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InvalidInput(TrainingError):
    """All problems of the input, at once."""

    def __init__(self, violations: tuple[Violation, ...], exit_code: ExitCode = ExitCode.BAD_ARGUMENTS) -> None:
        super().__init__(exit_code, "\n".join(str(violation) for violation in violations))
        self.violations = violations
