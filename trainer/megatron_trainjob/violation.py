"""Problems with a user's input: one value per problem, so that all are reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from megatron_trainjob import shown

Severity = Literal["error", "warning"]
IDLE = "has no effect"
RENAMED = "is another name of"


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


def told_once(
    found: Iterable[Violation], name: Callable[[Violation], str] = lambda each: each.path
) -> tuple[Violation, ...]:
    """The same without warnings about a value of which another one says that it has no effect.

    The first such reason is the widest; a second one would read as its remedy. name: what a violation is about.
    """
    found = tuple(found)
    first: dict[str, Violation] = {}
    for each in warnings(found):
        if each.message.startswith(IDLE):
            first.setdefault(name(each), each)
    return tuple(
        each
        for each in found
        if each.severity == "error" or each.message.startswith(RENAMED) or first.get(name(each), each) is each
    )
