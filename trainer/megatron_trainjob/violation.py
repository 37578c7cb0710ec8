"""Problems with a user's input: one value per problem, so that all are reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from megatron_trainjob import shown

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One problem: its path, the given value, and a message with the problem and the remedy.

    A warning is about input that is accepted although part of it has no effect.
    """

    path: str
    value: object
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{shown.clean(self.path)}: {shown.message(self.message)} (got {self.shown_value})"

    @property
    def shown_value(self) -> str:
        """The value for display, without secrets."""
        return shown.value(self.path, self.value)


def errors(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """The violations that prevent the input from being accepted."""
    return tuple(each for each in found if each.severity == "error")


def warnings(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """The violations with which the input is accepted."""
    return tuple(each for each in found if each.severity == "warning")


def as_errors(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """The same problems as errors, for callers that accept no warnings."""
    return tuple(replace(each, severity="error") for each in found)
