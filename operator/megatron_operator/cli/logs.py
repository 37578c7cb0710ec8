"""mtj logs: the output of a job's pods, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import codecs
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_operator.api.names import MASTER
from megatron_operator.cli import cluster
from megatron_operator.cli.load import STATE_DIRECTORY
from megatron_operator.cli.output import FAILED, OK, Unreachable, error
from megatron_operator.cluster.local.state import State

POLL_S = 0.5
CHUNK_BYTES = 2**20
ENDED = ("Succeeded", "Failed", "Suspended")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("logs", help="print the output of a job's pods, on this machine or on a cluster")
    command.add_argument("job", help="name of the job")
    command.add_argument("--pod", help="name of a pod, or a part of it (default: the newest master)")
    command.add_argument("-f", "--follow", action="store_true", help="keep printing until the job ends")
    command.add_argument("--state-dir", type=Path, default=STATE_DIRECTORY)
    cluster.add_arguments(command)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 with the log on standard output, 1 if there is none."""
    if cluster.is_meant(arguments):
        return _run_on_cluster(arguments)
    state = State(directory=arguments.state_dir / arguments.job)
    chosen = choose(state, arguments.pod or MASTER)
    if chosen is None:
        error.print(f"no log of job {arguments.job} in {arguments.state_dir}; --state-dir names another folder")
        return FAILED
    for text in _read(state, chosen, arguments.pod or MASTER, follow=arguments.follow):
        sys.stdout.write(text)
        sys.stdout.flush()
    return OK


def _run_on_cluster(arguments: argparse.Namespace) -> int:
    def write(chunk: bytes) -> None:
        sys.stdout.write(chunk.decode(errors="replace"))
        sys.stdout.flush()

    try:
        if cluster.write_log(arguments, arguments.pod or MASTER, write):
            return OK
    except Unreachable as problem:
        error.print(str(problem), markup=False)
        return FAILED
    error.print(f"no pod of job {arguments.job} has begun yet; mtj status says why", markup=False)
    return FAILED


def _read(state: State, log: Path, part: str, *, follow: bool) -> Iterator[str]:
    """The text of a log; with follow, also its growth until the job ends and the logs of later attempts."""
    file, decoder = log.open("rb"), _decoder()
    try:
        while True:
            has_ended = not follow or state.read_status().get("phase") in ENDED
            newest = choose(state, part) or log
            if log.stat().st_size < file.tell():  # it was truncated, as its first line says
                file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                yield decoder.decode(chunk)
            if newest != log:
                yield decoder.decode(b"", final=True)
                file.close()
                log, file, decoder = newest, newest.open("rb"), _decoder()
            elif has_ended:
                yield decoder.decode(b"", final=True)
                return
            else:
                time.sleep(POLL_S)
    finally:
        file.close()


def _decoder() -> codecs.IncrementalDecoder:
    """A character may be only half written."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def choose(state: State, part: str) -> Path | None:
    """The newest log of a pod whose name contains this."""
    found = [path for path in (state.directory / "logs").glob("*.log") if part in path.stem]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
