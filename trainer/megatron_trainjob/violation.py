"""What is wrong with a user's input: one value per problem, so that all problems are reported at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One problem: where it is, what was given, what is wrong and what to do about it."""

    path: str
    value: object
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message} (got {self.value!r})"
