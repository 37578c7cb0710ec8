"""mtj wait: waits until a job has ended or reached a phase, here or on a cluster."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_operator.api.schema.status import PHASES
from megatron_operator.cli import cluster
from megatron_operator.cli.load import STATE_DIRECTORY
from megatron_operator.cli.output import FAILED, OK, Unanswered, Unreachable, error, out
from megatron_operator.cluster.local.state import State

Object = Mapping[str, Any]
POLL_S = 1.0
# A wait of hours outlasts an upgrade of the control plane.
PATIENCE_S = 300.0
OVER = ("Succeeded", "Failed")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("wait", help="wait until a job has ended or reached a phase")
    command.add_argument("job", help="name of the job")
    wanted = ("end", "Complete", *PHASES)
    command.add_argument(
        "--for", dest="phase", choices=wanted, default="end", help="default: until it succeeds or fails"
    )
    command.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="give up after this many seconds (default: never)"
    )
    command.add_argument("--state-dir", type=Path, default=STATE_DIRECTORY)
    cluster.add_arguments(command)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 once the job is in the requested phase, 1 if it failed, can no longer reach it, or the time is up."""
    read = _patient(_reader(arguments))
    started = time.monotonic()
    while True:
        try:
            status = read()
        except Unreachable as problem:
            error.print(str(problem), markup=False)
            return FAILED
        phase = str(status.get("phase") or "Pending")
        if (verdict := judge(arguments.phase, phase)) is not None:
            out.print(f"{arguments.job} {phase} {status.get('reason', '')}".rstrip(), markup=False)
            return verdict
        if arguments.timeout is not None and time.monotonic() - started >= arguments.timeout:
            error.print(f"{arguments.job} is still {phase} after {arguments.timeout:g} s", markup=False)
            return FAILED
        time.sleep(POLL_S)


def judge(wanted: str, phase: str) -> int | None:
    """The exit code for a job in this phase, None to keep waiting."""
    if wanted == "end":
        return {"Succeeded": OK, "Failed": FAILED}.get(phase)
    if phase == {"Complete": "Succeeded"}.get(wanted, wanted):
        return OK
    return FAILED if phase in OVER else None


def _patient(read: Callable[[], Object]) -> Callable[[], Object]:
    """The same reader, which gives its last answer for `PATIENCE_S` while a cluster that answered before does not."""
    last: Object = {}
    heard_at = float("-inf")

    def patient() -> Object:
        nonlocal last, heard_at
        try:
            last, heard_at = read(), time.monotonic()
        except Unanswered:
            if time.monotonic() - heard_at > PATIENCE_S:
                raise
        return last

    return patient


def _reader(arguments: argparse.Namespace) -> Callable[[], Object]:
    """A function that reads the job's current status; raises Unreachable if there is no such job."""
    if cluster.is_meant(arguments):
        return lambda: cluster.status(arguments, arguments.job)
    state = State(directory=arguments.state_dir / arguments.job)

    def read() -> Object:
        if not state.directory.is_dir():
            raise Unreachable(f"no job {arguments.job} in {arguments.state_dir}; --state-dir names another")
        return state.read_status()

    return read
