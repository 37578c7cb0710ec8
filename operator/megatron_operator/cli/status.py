"""mtj status: how a job on this machine stands, from the files that its run keeps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape

from megatron_operator.cli.load import STATE_DIRECTORY
from megatron_operator.cli.output import FAILED, OK, error, out, show_table, table
from megatron_operator.cluster.local_state import State

Object = Mapping[str, Any]
COLORS = {"Succeeded": "green", "Failed": "red", "Running": "cyan", "Suspended": "yellow", "Restarting": "yellow"}
MAX_EVENTS = 10


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("status", help="show how jobs on this machine stand")
    command.add_argument("job", nargs="?", help="name of a job (default: all, one line each)")
    command.add_argument("--output", choices=("text", "yaml"), default="text")
    command.add_argument("--state-dir", type=Path, default=STATE_DIRECTORY)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 with the status, 1 when there is no such job."""
    if arguments.job is None:
        return _show_all(arguments.state_dir)
    state = State(directory=arguments.state_dir / arguments.job)
    status = state.read_status()
    if not status:
        error.print(f"no job {arguments.job} in {arguments.state_dir}; --state-dir names another folder")
        return FAILED
    if arguments.output == "yaml":
        out.print(yaml.safe_dump(dict(status), sort_keys=False), end="", markup=False)
        return OK
    show(arguments.job, status)
    events = table("events", "time", "type", "reason", "message")
    for event in state.read_events()[-MAX_EVENTS:]:
        events.add_row(event["time"], event["type"], event["reason"], escape(event["message"]))
    show_table(events)
    return OK


def show(name: str, status: Object) -> None:
    """The facts of a status, one a line."""
    facts = table("", "", "")
    facts.show_header = False
    for label, value in rows(status):
        facts.add_row(f"[dim]{label}[/]", escape(value))
    out.print(f"[bold]{name}[/] {colored(status.get('phase', 'Pending'))}")
    show_table(facts)


def rows(status: Object) -> list[tuple[str, str]]:
    """(label, value) of what is known."""
    restarts, progress = status.get("restarts", {}), status.get("progress", {})
    checkpoint, failure = status.get("checkpoint", {}), status.get("lastFailure", {})
    resolved = status.get("resolved", {})
    found = [
        ("world size", resolved.get("worldSize")),
        ("data parallel", resolved.get("dataParallelSize")),
        ("iteration", _iteration(progress)),
        ("metrics", "  ".join(f"{each['name']}={each['value']}" for each in progress.get("metrics", ()))),
        ("tokens/s per GPU", progress.get("tokensPerSecondPerGPU")),
        ("restarts", f"{restarts.get('total', 0)} ({restarts.get('counted', 0)} counted)"),
        ("checkpoint", checkpoint and f"{checkpoint['path']} (iteration {checkpoint['latestIteration']})"),
        ("last failure", failure and _failure(failure)),
        ("started", status.get("startTime")),
        ("ended", status.get("completionTime")),
        ("reason", _reason(status)),
    ]
    return [(label, str(value)) for label, value in found if value not in (None, "", {})]


def colored(phase: str) -> str:
    """The phase in its colour."""
    return f"[{COLORS.get(phase, 'default')}]{phase}[/]"


def _iteration(progress: Object) -> str:
    if not progress:
        return ""
    return f"{progress['iteration']} of {progress['totalIterations']} ({progress['percentage']} %)"


def _failure(failure: Object) -> str:
    code = f", exit code {failure['exitCode']}" if "exitCode" in failure else ""
    where = f" at iteration {failure['iteration']}" if "iteration" in failure else ""
    message = f": {failure['message']}" if failure.get("message") else ""
    return f"{failure['reason']}{code}{where} in {failure.get('pod', '?')}{message}"


def _reason(status: Object) -> str:
    """Why the phase is what it is."""
    phase = status.get("phase")
    for condition in status.get("conditions", ()):
        if condition["type"] == phase and condition["status"] == "True":
            return f"{condition['reason']} {condition['message']}".strip()
    return ""


def _show_all(directory: Path) -> int:
    jobs = table("", "name", "phase", "progress", "restarts", "checkpoint")
    folders = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    for folder in folders:
        status = State(directory=folder).read_status()
        if status:
            progress = f"{status.get('progress', {}).get('percentage', 0)} %"
            restarts = str(status.get("restarts", {}).get("total", 0))
            iteration = str(status.get("checkpoint", {}).get("latestIteration", ""))
            jobs.add_row(folder.name, colored(status.get("phase", "")), progress, restarts, iteration)
    if jobs.row_count:
        show_table(jobs)
    else:
        out.print(f"no jobs in {directory}")
    return OK
