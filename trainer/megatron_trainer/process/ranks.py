"""Starting the ranks of a node: forked from a process that has imported everything, or each as a new interpreter.

A forked rank starts without an import, and so does one that takes its place after a failure. Where forking is not safe
(fork_server.py says when), ranks are spawned and a log line says why.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from megatron_trainer.orphans import die_with_parent
from megatron_trainjob.environment import RankStart

logger = logging.getLogger(__name__)

RANK_COMMAND = [sys.executable, "-m", "megatron_trainer.process.rank"]
SERVER_COMMAND = [sys.executable, "-m", "megatron_trainer.process.fork_server"]
POLL_S = 0.05
MAX_IMPORT_S = 600.0
MAX_FORK_S = 30.0
MAX_WORD_S = 5.0  # from the end of a forked rank until its parent tells its code; a parent that hangs never does


class Process(Protocol):
    """A started rank."""

    def poll(self) -> int | None:
        """Its exit code, -n after signal n; None while it runs."""

    def send_signal(self, number: int) -> None:
        """Sends a signal, to no one once it has ended."""


class Starter(Protocol):
    """A way of starting ranks."""

    def start(self, argv: Sequence[str], variables: Mapping[str, str]) -> Process:
        """Starts one rank with this command line and environment."""


class Spawn:
    """Each rank is a new interpreter, which imports everything itself."""

    def start(self, argv: Sequence[str], variables: Mapping[str, str]) -> Process:
        """Starts one rank."""
        return subprocess.Popen([*RANK_COMMAND, *argv], env=dict(variables), preexec_fn=die_with_parent)


class Forked:
    """A rank that the fork server has started; the server, its parent, tells how it ended."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self._server = server
        self._pidfd: int | None = None
        self._silent_since: float | None = None
        self.returncode: int | None = None
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, -n after signal n; None while it runs."""
        self._server.listen()
        if self.returncode is None and self._has_ended():
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() > self._silent_since + MAX_WORD_S:
                logger.warning("a rank has ended, and the process that forks ranks does not say how: it hangs")
                self._server.give_up()
        return self.returncode

    def _has_ended(self) -> bool:
        return self._pidfd is not None and bool(select.select([self._pidfd], [], [], 0)[0])

    def send_signal(self, number: int) -> None:
        """Sends a signal by the process's descriptor: never to a later process with its number."""
        if self._pidfd is not None and self.returncode is None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                signal.pidfd_send_signal(self._pidfd, number)

    def end(self, returncode: int) -> None:
        """Notes how it ended."""
        self.returncode = returncode
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


class ForkServer:
    """The launcher's end of the fork server. refusal: why it forks nothing, None while it may.

    argv: of the ranks; the server bears it too, so that a list of processes shows what its ranks work at.
    """

    def __init__(self, argv: Sequence[str], variables: Mapping[str, str], *, is_replacement: bool = False) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [*SERVER_COMMAND, str(descriptor), *argv],
                env=dict(variables),
                pass_fds=[descriptor],
                preexec_fn=die_with_parent,
            )
        self._connection.setblocking(False)
        self._received = b""
        self._ranks: dict[int, Forked] = {}
        self._started: list[Forked] = []
        self.is_replacement = is_replacement
        self.is_ready = self.is_gone = False
        self.refusal: str | None = None

    def wait_until_ready(self, is_stopping: Callable[[], bool]) -> bool:
        """Whether it forks ranks, once it has imported everything and tried a fork."""
        until = time.monotonic() + MAX_IMPORT_S
        while not self.is_ready and self.refusal is None and not is_stopping():
            if time.monotonic() > until:
                self.refusal = f"it has not imported everything within {MAX_IMPORT_S:.0f} s"
            time.sleep(POLL_S)
            self.listen()
        return self.is_ready and self.refusal is None

    def start(self, argv: Sequence[str], variables: Mapping[str, str]) -> Process:
        """Starts one rank: spawned where the server is gone or hangs, which then ends with the ranks that it has."""
        try:
            return self._fork(argv, variables)
        except OSError as err:
            self.give_up()
            logger.warning("a rank is started with its own imports: %s", err)
            return Spawn().start(argv, variables)

    def _fork(self, argv: Sequence[str], variables: Mapping[str, str]) -> Process:
        request = json.dumps({"argv": list(argv), "variables": dict(variables)}) + "\n"
        until = time.monotonic() + MAX_FORK_S
        self._connection.settimeout(MAX_FORK_S)
        self._connection.sendall(request.encode())
        self._connection.setblocking(False)
        while not self._started:
            self.listen()
            if self.is_gone:
                raise BrokenPipeError("the process that forks ranks has ended; see the log above")
            if time.monotonic() > until:
                raise TimeoutError(f"the process that forks ranks has not answered for {MAX_FORK_S:.0f} s")
            if not self._started:
                time.sleep(POLL_S / 10)
        return self._started.pop(0)

    def listen(self) -> None:
        """Takes in what the server has said since."""
        if self.is_gone:
            return
        try:
            while piece := self._connection.recv(65536):
                *lines, self._received = (self._received + piece).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        except BlockingIOError:
            return
        except ConnectionResetError:
            pass
        self._on_end()

    def give_up(self) -> None:
        """Ends a server that hangs, and with it ranks that it still has: of none of them it would tell the end."""
        self._process.kill()
        self._on_end()

    def close(self) -> None:
        """Ends the server, and with it ranks that it still has."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _take(self, said: Mapping[str, Any]) -> None:
        if "ready" in said:
            self.is_ready = True
        elif "refusal" in said:
            self.refusal = str(said["refusal"])
        elif "started" in said:
            rank = self._ranks[said["started"]] = Forked(said["started"], self)
            self._started.append(rank)
        else:
            self._ranks.pop(said["ended"]).end(said["code"])

    def _on_end(self) -> None:
        """The server is gone, and the system has killed its ranks with it."""
        self.is_gone = True
        self.refusal = self.refusal or "the process that imports everything has ended; see the log above"
        for rank in self._ranks.values():
            rank.end(-signal.SIGKILL)
        self._ranks.clear()


def _has_descriptors() -> bool:
    """Whether processes have descriptors here, by which forked ranks are sent signals; some sandboxes have none."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as err:
        logger.warning("ranks are started one by one, each with its own imports: no descriptors of processes: %s", err)
        return False
    return True


@contextlib.contextmanager
def starting(
    how: RankStart, argv: Sequence[str], variables: Mapping[str, str], is_stopping: Callable[[], bool]
) -> Iterator[Callable[[], Starter]]:
    """A function that returns the way to start ranks now: by a fork server that is ready, else one by one.

    variables: the environment that all ranks of the node share. The first call waits for the imports. A server that was
    killed is replaced for later restarts: the one under way does not wait for its imports.
    """
    servers: list[ForkServer] = [ForkServer(argv, variables)] if how == "fork" and _has_descriptors() else []

    def current() -> Starter:
        if not servers:
            return Spawn()
        server = servers[0]
        server.listen()
        if server.is_ready and server.is_gone:
            server.close()
            servers[:] = [ForkServer(argv, variables, is_replacement=True)]
            return Spawn()
        if server.is_replacement and not server.is_ready and server.refusal is None:
            return Spawn()
        if server.wait_until_ready(is_stopping):
            return server
        if not is_stopping():
            logger.warning("ranks are started one by one, each with its own imports: %s", server.refusal)
        servers.clear()
        server.close()
        return Spawn()

    try:
        yield current
    finally:
        for server in servers:
            server.close()
