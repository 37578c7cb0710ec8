"""mtj status: prints the status of jobs, on this machine from the files of their runs, or on a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import markup
from rich.cells import cell_len, set_cell_size

from megatron_operator.cli import cluster
from megatron_operator.cli.load import STATE_DIRECTORY
from megatron_operator.cli.output import FAILED, OK, Unreachable, error, escape, out, show_table, table
from megatron_operator.cluster.local.state import State
from megatron_trainjob import shown

Object = Mapping[str, Any]
COLORS = {"Succeeded": "green", "Failed": "red", "Running": "cyan", "Suspended": "yellow", "Restarting": "yellow"}
MAX_EVENTS = 10
COLUMNS = ("name", "phase", "progress", "restarts", "checkpoint")
MOST_IN_COLOR = 200
"""Longest list shown as a table, which takes half a millisecond per job."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("status", help="show the status of jobs, on this machine or on a cluster")
    command.add_argument("job", nargs="?", help="name of a job (default: all, one line each)")
    command.add_argument("--output", choices=("text", "yaml"), default="text")
    command.add_argument("--state-dir", type=Path, default=STATE_DIRECTORY)
    cluster.add_arguments(command)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 with the status, 1 if there is no such job."""
    if cluster.is_meant(arguments):
        return _run_on_cluster(arguments)
    if arguments.job is None:
        return _show_all(local_jobs(arguments.state_dir), str(arguments.state_dir))
    state = State(directory=arguments.state_dir / arguments.job)
    status = state.read_status()
    if not status:
        error.print(f"no job {arguments.job} in {arguments.state_dir}; --state-dir names another folder")
        return FAILED
    _show_one(arguments, status, [(event["time"], event) for event in state.read_events()])
    return OK


def _run_on_cluster(arguments: argparse.Namespace) -> int:
    try:
        if arguments.job is None:
            return _show_all(cluster.all_jobs(arguments), arguments.namespace or "the namespace")
        status = cluster.status(arguments, arguments.job)
        events = [] if arguments.output == "yaml" else cluster.events(arguments, arguments.job)
    except Unreachable as problem:
        error.print(str(problem), markup=False)
        return FAILED
    _show_one(arguments, status, [(str(event.get("lastTimestamp") or ""), event) for event in events])
    return OK


def _show_one(arguments: argparse.Namespace, status: Object, emitted: Sequence[tuple[str, Object]]) -> None:
    """The status of one job and the (time, event) pairs about it."""
    if arguments.output == "yaml":
        out.print(yaml.safe_dump(dict(status), sort_keys=False), end="", markup=False)
        return
    show(arguments.job, status)
    events = table("events", "time", "type", "reason", "message")
    for time, event in emitted[-MAX_EVENTS:]:
        events.add_row(time, event["type"], event["reason"], escape(event["message"]))
    show_table(events)


def show(name: str, status: Object) -> None:
    """The facts of a status, one per line."""
    facts = table("", "", "")
    facts.show_header = False
    for label, value in rows(status):
        facts.add_row(f"[dim]{label}[/]", escape(value))
    out.print(f"[bold]{name}[/] {colored(status.get('phase', 'Pending'))}")
    show_table(facts)


def rows(status: Object) -> list[tuple[str, str]]:
    """(label, value) of the known facts."""
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
    """The phase in its color."""
    return f"[{COLORS.get(phase, 'default')}]{escape(phase)}[/]"


def _iteration(progress: Object) -> str:
    if not progress:
        return ""
    return f"{progress['iteration']} of {progress['totalIterations']} ({progress['percentage']} %)"


def _failure(failure: Object) -> str:
    code = f", exit code {failure['exitCode']}" if "exitCode" in failure else ""
    where = f" at iteration {failure['iteration']}" if "iteration" in failure else ""
    message = f": {failure['message']}" if failure.get("message") else ""
    rank = f"rank {failure['rank']} of " if "rank" in failure else ""
    node = f" on node {failure['node']}" if failure.get("node") else ""
    return f"{failure['reason']}{code}{where} in {rank}{failure.get('pod', '?')}{node}{message}"


def _reason(status: Object) -> str:
    """Reason for the phase."""
    phase = status.get("phase")
    for condition in status.get("conditions", ()):
        if condition["type"] == phase and condition["status"] == "True":
            return f"{condition['reason']} {condition['message']}".strip()
    return ""


def local_jobs(directory: Path) -> Iterable[tuple[str, Object]]:
    """(name, status) of every job in this folder."""
    folders = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    return ((folder.name, status) for folder in folders if (status := _status_of(folder)))


def _status_of(folder: Path) -> Object:
    """The stored status, or a placeholder if it cannot be read, so that it does not hide the others."""
    try:
        return State(directory=folder).read_status()
    except (OSError, ValueError, yaml.YAMLError):
        return {"phase": "Unreadable"}


def _columns(status: Object) -> tuple[str, str, str, str]:
    """Phase, progress, restarts and checkpoint made safe for a terminal; a placeholder for an unreadable status."""
    try:
        progress = f"{status.get('progress', {}).get('percentage', 0)} %"
        restarts = str(status.get("restarts", {}).get("total", 0))
        iteration = str(status.get("checkpoint", {}).get("latestIteration", ""))
        found = (status.get("phase", "Pending"), progress, restarts, iteration)
        phase, progress, restarts, iteration = (shown.message(text) for text in found)
    except (AttributeError, TypeError):
        return "Unreadable", "", "", ""
    return phase, progress, restarts, iteration


def _show_all(found: Iterable[tuple[str, Object]], place: str) -> int:
    jobs = [(shown.clean(name), *_columns(status)) for name, status in found]
    if not jobs:
        out.print(f"no jobs in {place}")
    elif len(jobs) > MOST_IN_COLOR:
        _show_plain([COLUMNS, *jobs])
    else:
        styled = table("", *COLUMNS)
        for name, phase, *others in jobs:
            styled.add_row(markup.escape(name), colored(phase), *map(markup.escape, others))
        show_table(styled)
    return OK


def _show_plain(lines: Sequence[Sequence[str]]) -> None:
    """The same columns as plain text, fifty times as fast."""
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (set_cell_size(text, width) for text, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
