"""What is wrong with a user's input: one value per problem, so that all problems are reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from megatron_trainjob import shown

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One problem: where it is, what was given, what is wrong and what to do about it.

    A warning is about input that is accepted although part of it changes nothing.
    """

    path: str
    value: object
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{shown.clean(self.path)}: {shown.message(self.message)} (got {self.shown_value})"

    @property
    def shown_value(self) -> str:
        """The value as people may see it."""
        return shown.value(self.path, self.value)


def errors(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """Those that keep the input from being accepted."""
    return tuple(each for each in found if each.severity == "error")


def warnings(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """Those with which the input is accepted."""
    return tuple(each for each in found if each.severity == "warning")


def as_errors(found: Iterable[Violation]) -> tuple[Violation, ...]:
    """The same problems as errors, for whoever wants no warning to pass."""
    return tuple(replace(each, severity="error") for each in found)
