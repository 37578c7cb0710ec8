"""The launcher of one pod: starts the node's ranks and exits with the code of the first rank that failed.

Replaces torchrun, which exits with 1 whatever its child's exit code was and thus hides whether bad data or a lost node
was the cause. Imports no torch: bad arguments are refused before any rank starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from megatron_trainer import environment
from megatron_trainer.environment import Environment
from megatron_trainjob import termination
from megatron_trainjob.environment import FAILURE_FILE
from megatron_trainjob.exit_codes import ExitCode, describe
from megatron_trainjob.termination import TerminationRecord

logger = logging.getLogger(__name__)

LINGER_S = 10.0  # how long the other ranks may take to fail by themselves before they are killed
LINGER_AFTER_CAUSE_S = 1.0  # the same once the first failed rank gave a reason or was killed: others only wait
POLL_S = 0.05
RANK_COMMAND = [sys.executable, "-m", "megatron_trainer.process.rank"]
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One started process of this node."""

    local_rank: int
    process: subprocess.Popen[bytes]
    failure_file: Path


def main(argv: Sequence[str]) -> int:
    """Runs the node's ranks with the given command line; returns the exit code for the pod."""
    env = environment.read()
    count = num_processes(env)
    logger.info("starting ranks node=%d of=%d ranks=%d", env.node_rank, env.num_nodes, count)
    with tempfile.TemporaryDirectory(prefix="mtj-") as folder:
        ranks = [_start(argv, env, index, count, Path(folder)) for index in range(count)]
        with _forwarding_termination(ranks):
            failed = _wait(ranks)
        if failed is None:
            return ExitCode.OK
        record = _record(failed, env, count)
    if record.exit_code != ExitCode.PREEMPTED:
        logger.error("rank %d failed: %s: %s", record.rank, record.reason, record.message)
    with contextlib.suppress(OSError):  # outside a pod there is no termination log to write to
        env.termination_log.write_text(record.to_json())
    return record.exit_code


def num_processes(env: Environment) -> int:
    """Number of ranks to start on this node: NPROC_PER_NODE; auto means one per GPU, or one on the CPU."""
    if env.processes_per_node == "auto":
        return max(1, 0 if env.device == "cpu" else environment.num_gpus())
    return int(env.processes_per_node)


def _start(argv: Sequence[str], env: Environment, local_rank: int, count: int, folder: Path) -> Rank:
    failure_file = folder / f"rank-{local_rank}.json"
    variables = {**environment.for_rank(env, local_rank, count), FAILURE_FILE: str(failure_file)}
    process = subprocess.Popen([*RANK_COMMAND, *argv], env=variables, preexec_fn=_die_with_parent)
    return Rank(local_rank=local_rank, process=process, failure_file=failure_file)


def _die_with_parent() -> None:
    """Makes Linux kill the rank when its launcher dies: an orphan would hold its GPU and its port."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _forwarding_termination(ranks: Sequence[Rank]) -> Iterator[None]:
    def forward(_signal: int, _frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[Rank]) -> Rank | None:
    """Waits until all ranks have exited; returns the rank that failed first, or None."""
    failed: Rank | None = None
    deadline = float("inf")
    while any(rank.process.poll() is None for rank in ranks):
        if failed is None:
            failed = _first_failed(ranks)
            if failed is not None:
                deadline = time.monotonic() + _linger_s(failed)
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.process.kill()
        time.sleep(POLL_S)
    return _cause(failed, ranks)


def _linger_s(failed: Rank) -> float:
    """Grace period: losing a peer may end a rank with any code, and a save on request may take longer."""
    code = failed.process.returncode
    is_cause = code < 0 or (failed.failure_file.exists() and code not in (ExitCode.ERROR, ExitCode.PREEMPTED))
    return LINGER_AFTER_CAUSE_S if is_cause else LINGER_S


def _cause(first: Rank | None, ranks: Sequence[Rank]) -> Rank | None:
    """The rank that failed first, unless it gave no reason and another rank did."""
    best = _first_failed(ranks)
    if first is None or best is None:
        return best
    is_silent = first.process.returncode == ExitCode.ERROR and not first.failure_file.exists()
    return best if is_silent and best.failure_file.exists() else first


def _first_failed(ranks: Sequence[Rank]) -> Rank | None:
    """A rank that gave a reason takes precedence over one that merely lost its peers."""
    failed = [rank for rank in ranks if rank.process.poll() not in (None, 0)]
    return min(failed, key=lambda rank: (not rank.failure_file.exists(), rank.local_rank), default=None)


def _record(rank: Rank, env: Environment, count: int) -> TerminationRecord:
    code = rank.process.returncode
    exit_code = 128 - code if code < 0 else code
    written = termination.read(rank.failure_file)
    if written is not None and written.exit_code == exit_code:
        return written
    return TerminationRecord(
        exit_code=exit_code,
        reason=describe(exit_code),
        rank=env.node_rank * count + rank.local_rank,
        iteration=None,
        message=f"the process ended with {describe(exit_code)} and left no message; see the log above",
    )
