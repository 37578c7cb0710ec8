"""What `mtj run` shows while a job runs: events as lines, progress as a bar, or as lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from megatron_operator.cli import dropped_rows
from megatron_operator.cli.output import escape
from megatron_operator.cluster.local.run import Look
from megatron_operator.core.job import Job
from megatron_operator.core.plan import Event
from megatron_trainjob.progress import Progress

Object = Mapping[str, Any]
LINE_INTERVAL_S = 15.0
LOSSES = ("loss", "lm_loss", "lm loss")


class Display:
    """Displays reconciles on a console. Keeps what it last displayed."""

    def __init__(self, console: Console, job: Job) -> None:
        self._console = console
        self._job = job
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("Pending", total=0, facts="")
        self._line = ""
        self._next_line_at = 0.0
        self._is_stopping = False
        self._is_data_shown = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, look: Look) -> None:
        """Displays what is new in this reconcile."""
        if look.is_stopping and not self._is_stopping:
            self._bar.console.print("[yellow]Saving and stopping[/] (interrupt again to kill it)")
            self._is_stopping = True
        for event in look.events:
            self._bar.console.print(event_line(event))
        progress = look.progress
        if progress is None:
            self._bar.update(self._task, description=look.status.get("phase", "Pending"))
            return
        if progress.phase != "starting" and not self._is_data_shown:
            self._is_data_shown = True
            for dropped in dropped_rows.lines(progress):
                self._bar.console.print(f"[yellow]Data[/] {escape(dropped)}")
        total = progress.total_iterations or None
        description = f"{look.status.get('phase', 'Pending')} ({progress.phase})"
        line = facts(progress)
        self._bar.update(self._task, description=description, total=total, completed=progress.iteration, facts=line)
        self._print_line(f"{description} iteration {progress.iteration}/{progress.total_iterations}  {line}")

    def _print_line(self, line: str) -> None:
        """An occasional line for logs and pipes."""
        if self._console.is_terminal or line == self._line or time.monotonic() < self._next_line_at:
            return
        self._console.print(line, markup=False)
        self._line, self._next_line_at = line, time.monotonic() + LINE_INTERVAL_S


def event_line(event: Event) -> str:
    """An event as a line with markup."""
    color = "yellow" if event.type == "Warning" else "cyan"
    return f"[{color}]{event.reason}[/] {escape(event.message)}"


def facts(progress: Progress) -> str:
    """Loss, speed and remaining time, as far as known."""
    loss = next((progress.metrics[name] for name in LOSSES if name in progress.metrics), None)
    known = (
        None if loss is None else f"loss {loss:.4f}",
        None if progress.tokens_per_second is None else f"{progress.tokens_per_second:.0f} tokens/s",
        None if progress.remaining_s is None else f"{timedelta(seconds=round(progress.remaining_s))} left",
    )
    return "  ".join(fact for fact in known if fact)
