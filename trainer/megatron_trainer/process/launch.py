"""The launcher of one pod: starts the node's ranks, and exits with the code of the first that failed for good.

Replaces torchrun, which exits with 1 whatever its child's exit code was and thus hides whether bad data or a lost node
was the cause. Imports no torch. It outlives its ranks: after a failure that a retry may help, or when the operator says
so, it ends all of them and starts those of the next attempt in their place. Without the operator's word it starts none.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from megatron_trainer import environment, gpu_errors, lost_peer, start_stages
from megatron_trainer.environment import Environment
from megatron_trainer.process import container, operator_line, ranks
from megatron_trainer.process.operator_line import OperatorLine
from megatron_trainer.process.ranks import Process, Starter
from megatron_trainjob import launcher, termination
from megatron_trainjob.environment import FAILURE_FILE, STAGES_FILE
from megatron_trainjob.exit_codes import ExitCode, describe, ends_for_good
from megatron_trainjob.launcher import LauncherReport
from megatron_trainjob.termination import TerminationRecord

logger = logging.getLogger(__name__)

LINGER_S = 10.0  # how long the other ranks may take to fail by themselves before they are killed
LINGER_AFTER_CAUSE_S = 1.0  # the same once the first failed rank gave a reason or was killed: others only wait
POLL_S = 0.05
STACKS_S = 0.2  # how long a rank may take to write its stacks
STACKS_APART_S = 0.02  # between two ranks: stacks are written piece by piece, and those of two at once cannot be read
STACKS_AFTER_S = 30.0  # a rank that is asked to end and takes longer writes them: it saves, or hangs


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One started process of this node."""

    local_rank: int
    process: Process
    failure_file: Path


@dataclass(kw_only=True)
class Node:
    """This node and its ranks of the present attempt. starter: asked before each attempt how to start ranks.

    before: of the former container, where this one was started again. gpu_errors: what was reported since a moment.
    is_stopping: the pod is asked to end, so that no ranks start again. is_superseded: a directive has ended the ranks,
    none of which had failed. stacks_due: when the ranks that still run write their stacks, by the monotonic clock.
    """

    argv: Sequence[str]
    env: Environment
    count: int
    folder: Path
    starter: Callable[[], Starter]
    line: OperatorLine
    before: LauncherReport | None = None
    gpu_errors: gpu_errors.Since = lambda moment: ""
    ranks: list[Rank] = field(default_factory=list)
    is_stopping: bool = False
    is_superseded: bool = False
    stacks_due: float = float("inf")
    terminated: set[int] = field(default_factory=set)

    @property
    def stages_file(self) -> Path:
        """Where rank 0 notes the stages of its start."""
        return stages_file(self.folder)

    def terminate(self) -> None:
        """Asks every rank that has not been asked to save and end, now and when it has started."""
        self.is_stopping = True
        self.stacks_due = min(self.stacks_due, time.monotonic() + STACKS_AFTER_S)
        for rank in self.ranks:
            if rank.local_rank not in self.terminated:
                self.terminated.add(rank.local_rank)
                rank.process.send_signal(signal.SIGTERM)

    def ask_for_stacks(self) -> None:
        """Makes every rank write its stacks to the log (stacks.py), now and not again by itself."""
        self.stacks_due = float("inf")
        for rank in self.ranks:
            rank.process.send_signal(signal.SIGUSR2)
            time.sleep(STACKS_APART_S)

    def directed(self, attempt: int) -> int | None:
        """The later attempt that the operator wants the ranks to be of, None for none."""
        directive = self.line.directive
        is_new = directive is not None and directive.attempt > attempt and not self.is_stopping
        return directive.attempt if directive and is_new else None


def main(argv: Sequence[str]) -> int:
    """Runs the node's ranks with the given command line; returns the exit code for the pod."""
    env = environment.read()
    count = num_processes(env)
    logger.info("starting ranks node=%d of=%d ranks=%d", env.node_rank, env.num_nodes, count)
    with _node(argv, env, count) as node, _forwarding_termination(node):
        record = _run(node)
    if record is None:
        return ExitCode.OK
    if record.exit_code != ExitCode.PREEMPTED:
        logger.error("rank %d failed: %s: %s", record.rank, record.reason, record.message)
    with contextlib.suppress(OSError):  # outside a pod there is no termination log to write to
        env.termination_log.write_text(record.to_json())
    return record.exit_code if env.attempt_file is None else ends_for_good(record.exit_code)


def num_processes(env: Environment) -> int:
    """Number of ranks to start on this node: NPROC_PER_NODE; auto means one per GPU, or one on the CPU."""
    if env.processes_per_node == "auto":
        return max(1, 0 if env.device == "cpu" else environment.num_gpus())
    return int(env.processes_per_node)


def stages_file(folder: Path) -> Path:
    """Where rank 0 notes the stages of its start."""
    return folder / "stages.jsonl"


@contextlib.contextmanager
def _node(argv: Sequence[str], env: Environment, count: int) -> Iterator[Node]:
    """The node with all that outlives an attempt: folder, line to the operator, the process that forks ranks."""
    with tempfile.TemporaryDirectory(prefix="mtj-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        before = container.before(env, count)
        line = stack.enter_context(operator_line.connected(env, stages_file(folder), before))
        shared = environment.for_rank(env, 0, count)
        node = Node(argv=argv, env=env, count=count, folder=folder, starter=ranks.Spawn, line=line, before=before)
        has_gpus = env.device != "cpu" and environment.num_gpus() > 0
        node.gpu_errors = stack.enter_context(gpu_errors.listening(has_gpus=has_gpus))
        node.starter = stack.enter_context(ranks.starting(env.rank_start, argv, shared, lambda: node.is_stopping))
        yield node


def _run(node: Node) -> TerminationRecord | None:
    """Runs one attempt after the other; how the last one failed, None when it ended well."""
    attempt = node.env.attempt
    if node.before is not None and node.before.failure is not None:
        following = _wait_for_directive(node, node.before.attempt, node.before.failure)
        if following is None:
            return node.before.failure
        attempt = following
    while True:
        container.note(node.env, attempt)
        record = _run_attempt(node, attempt)
        following = node.directed(attempt)
        if following is None and record is not None:
            following = _wait_for_directive(node, attempt, record)
        if following is None:
            return record
        logger.info("starting ranks again in place node=%d attempt=%d", node.env.node_rank, following)
        attempt = following


def _run_attempt(node: Node, attempt: int) -> TerminationRecord | None:
    """Starts the ranks and waits for their end, which a directive brings about too; how they failed, if they did."""
    node.line.tell(attempt, "starting")
    began = time.monotonic()
    start_stages.begin(node.stages_file)
    starter = node.starter()
    node.ranks, node.is_superseded = [], False
    for index in range(node.count):
        if node.is_stopping:
            break
        node.ranks.append(_start(node, starter, index, attempt))
        if node.is_stopping:
            node.terminate()
    node.line.tell(attempt, "running")
    failed = _wait(node, attempt)
    if node.is_stopping and (node.is_superseded or (failed is None and len(node.ranks) < node.count)):
        return _stopped(node)
    return None if failed is None else replace(_record(failed, node.env, node.count), gpu_error=node.gpu_errors(began))


def _start(node: Node, starter: Starter, local_rank: int, attempt: int) -> Rank:
    failure_file = node.folder / f"rank-{local_rank}-{attempt}.json"
    variables = {
        **environment.for_rank(node.env, local_rank, node.count, attempt),
        FAILURE_FILE: str(failure_file),
        STAGES_FILE: str(node.stages_file),
    }
    return Rank(local_rank=local_rank, process=starter.start(node.argv, variables), failure_file=failure_file)


def _stopped(node: Node) -> TerminationRecord:
    """The record of a node that was asked to end before its ranks had started, at first or again."""
    return TerminationRecord(
        exit_code=ExitCode.PREEMPTED,
        reason=ExitCode.PREEMPTED.name,
        rank=node.env.node_rank * node.count,
        iteration=None,
        message="stopped before the ranks had started",
    )


def _wait_for_directive(node: Node, attempt: int, record: TerminationRecord) -> int | None:
    """The attempt that the operator wants after this failure; None: exit, because it says so or says nothing."""
    if not node.line.is_open or node.is_stopping or not launcher.can_start_again(record.exit_code):
        return None
    logger.error("rank %d failed: %s: %s", record.rank, record.reason, record.message)
    node.line.tell(attempt, "failed", record)
    told_at = time.monotonic()
    while not node.is_stopping:
        if (following := node.directed(attempt)) is not None:
            return following
        directive = node.line.directive
        has_answered = node.line.silent_s < time.monotonic() - told_at
        if directive is not None and directive.ends and has_answered:
            return None
        if node.line.silent_s > node.env.launcher_patience_s:
            logger.error("nothing heard from the operator for %.0f s", node.env.launcher_patience_s)
            return None
        time.sleep(POLL_S)
    return None


@contextlib.contextmanager
def _forwarding_termination(node: Node) -> Iterator[None]:
    def forward(_signal: int, _frame: FrameType | None) -> None:
        node.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(node: Node, attempt: int) -> Rank | None:
    """Waits until all ranks have exited; returns the rank that failed first, or None."""
    failed: Rank | None = None
    deadline = float("inf")
    while any(rank.process.poll() is None for rank in node.ranks):
        if failed is None:
            failed = _first_failed(node.ranks)
            if failed is not None:
                deadline = time.monotonic() + _linger_s(failed)
        # A rank that is asked to save would only wait for peers that are gone: files are whole without that.
        is_directed = node.directed(attempt) is not None
        if time.monotonic() > deadline or is_directed:
            node.is_superseded = node.is_superseded or (is_directed and failed is None)
            _kill(node, is_hang=failed is None)
        if time.monotonic() > node.stacks_due:
            node.ask_for_stacks()
        time.sleep(POLL_S)
    return _cause(failed, node.ranks)


def _kill(node: Node, *, is_hang: bool) -> None:
    """Ends the ranks. is_hang: none of them has failed, so that only their stacks say where they were."""
    if is_hang:
        node.ask_for_stacks()
        time.sleep(STACKS_S)
    for rank in node.ranks:
        rank.process.send_signal(signal.SIGKILL)


def _linger_s(failed: Rank) -> float:
    """Grace period: losing a peer may end a rank with any code, and a save on request may take longer."""
    code = failed.process.poll() or 0
    if code in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS):
        return 0.0  # no peer's end causes that
    is_cause = code < 0 or (failed.failure_file.exists() and code not in (ExitCode.ERROR, ExitCode.PREEMPTED))
    return LINGER_AFTER_CAUSE_S if is_cause else LINGER_S


def _cause(first: Rank | None, ended: Sequence[Rank]) -> Rank | None:
    """The rank that failed first, unless it gave no reason and another rank did."""
    best = _first_failed(ended)
    if first is None or best is None:
        return best
    is_silent = first.process.poll() == ExitCode.ERROR and not _explains(first)
    return best if is_silent and _explains(best) else first


def _first_failed(started: Sequence[Rank]) -> Rank | None:
    """A rank that gave a reason takes precedence over one that merely lost its peers."""
    failed = [rank for rank in started if rank.process.poll() not in (None, 0)]
    return min(
        failed,
        key=lambda rank: (not _explains(rank), not rank.failure_file.exists(), rank.local_rank),
        default=None,
    )


def _explains(rank: Rank) -> bool:
    """Whether it has given a reason of its own: that another rank is gone is none."""
    written = termination.read(rank.failure_file)
    return written is not None and not (written.exit_code == ExitCode.ERROR and lost_peer.is_said(written.message))


def _record(rank: Rank, env: Environment, count: int) -> TerminationRecord:
    code = rank.process.poll() or 0
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
