"""Consoles and the output formats of commands."""

from __future__ import annotations

from collections.abc import Iterable

from rich import markup
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from megatron_trainjob import shown
from megatron_trainjob.violation import Violation

OK, FAILED, INVALID = 0, 1, 2
UNBOUNDED = 10_000
"""Wider than any table."""

out = Console(highlight=False, soft_wrap=True)
error = Console(stderr=True, highlight=False, soft_wrap=True)


class Unreachable(Exception):
    """The cluster or the job cannot be reached; the message is for the user."""


class Unanswered(Unreachable):
    """The cluster was asked and gave no answer, or an error: it may answer in a minute."""


def escape(text: str) -> str:
    """Foreign text made safe for a terminal: without control characters, secrets and markup."""
    return markup.escape(shown.message(text))


def show_violations(source: str, violations: Iterable[Violation]) -> None:
    """Prints every problem: where, what is wrong and what to do, the given value."""
    violations = tuple(violations)
    plural = "problem" if len(violations) == 1 else "problems"
    error.print(f"[bold red]{escape(source)}: {len(violations)} {plural}[/]")
    for violation in violations:
        value = "" if violation.value is None else f" [dim](got {escape(_short(violation.shown_value))})[/]"
        error.print(f"  [bold]{escape(violation.path)}[/]: {escape(violation.message)}{value}")


def show_warnings(warnings: Iterable[object]) -> None:
    """Prints warnings about what is allowed but rarely intended, or has no effect."""
    for warning in warnings:
        error.print(f"[yellow]warning:[/] {escape(str(warning))}")


def table(title: str, *columns: str) -> Table:
    """An empty table in the common style."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        made.add_column(column, no_wrap=index == 0)
    return made


def show_table(shown: Table) -> None:
    """Prints a table as wide as the terminal, or as wide as needed into a pipe or a file."""
    if out.is_terminal:
        out.print(shown)
        return
    needed = Measurement.get(out, out.options.update(width=UNBOUNDED), shown).maximum
    Console(highlight=False, width=needed).print(shown)


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
