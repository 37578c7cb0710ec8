"""The launcher's line to the operator: reports how the ranks are, hears which attempt they have to be of.

Over the network by HTTPS with the pod's token, as progress goes; on one machine by files in the pod's folder. A thread
of its own keeps it up: the launcher never waits for an answer. A pod of neither kind has no line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from megatron_trainer import start_stages
from megatron_trainer.environment import Environment
from megatron_trainer.process import container
from megatron_trainjob import environment as names
from megatron_trainjob import launcher
from megatron_trainjob.checkpoint_folder import NAME
from megatron_trainjob.launcher import Directive, LauncherReport, Stage
from megatron_trainjob.termination import TerminationRecord

logger = logging.getLogger(__name__)

ANSWER_S = 5.0
RETRY_S = 1.0
FIRST_ANSWER_S = 5.0  # after the launcher's start; where none came by then, none can be expected
LOOK_S = 0.02
KEPT_OPEN_S = 5.0  # a connection that is used more seldom would only take a place


class Channel(Protocol):
    """One way to the operator."""

    def exchange(self, report: LauncherReport) -> Directive:
        """The answer to a report. Raises OSError, HTTPException or ValueError when there is none."""


class Folder:
    """The pod's folder on one machine: the report is a file, and so is the answer, which names the report."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def exchange(self, report: LauncherReport) -> Directive:
        """Writes the report and waits for the answer."""
        self._number += 1
        written = self._folder / launcher.REPORT_FILE
        aside = written.with_name(written.name + ".tmp")
        aside.write_text(json.dumps({**report.to_fields(), "number": self._number}))
        aside.replace(written)
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):
                answer = json.loads((self._folder / launcher.DIRECTIVE_FILE).read_text())
                if answer.get("number") == self._number:
                    return launcher.read_directive(answer)
            time.sleep(LOOK_S)
        raise TimeoutError(f"nothing has read {written}")


class Server:
    """The operator's server. The token is reread for each report: it is rotated."""

    def __init__(self, url: str, authority: Path | None, token: Path | None) -> None:
        self._url = urlsplit(url)
        self._authority = authority
        self._token = token
        self._connection: HTTPConnection | None = None

    def exchange(self, report: LauncherReport) -> Directive:
        """Posts the report."""
        try:
            directive = self._post(report)
        except (OSError, HTTPException, ValueError):
            self._close()
            raise
        if directive.interval_s > KEPT_OPEN_S:
            self._close()
        return directive

    def _post(self, report: LauncherReport) -> Directive:
        if self._connection is None:
            self._connection = self._connect()
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.read_text().strip()}"
        self._connection.request("POST", self._url.path, json.dumps(report.to_fields()), headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"{response.status}: {body[:200].decode(errors='replace')}")
        return launcher.read_directive(json.loads(body))

    def _connect(self) -> HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme != "https":
            return HTTPConnection(host, port, timeout=ANSWER_S)
        context = ssl.create_default_context(cafile=str(self._authority) if self._authority else None)
        return HTTPSConnection(host, port, timeout=ANSWER_S, context=context)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class OperatorLine:
    """Reports the present state again and again. directive: the last one heard, None before the first.

    state: the first to report. patience_s: how long nothing may be heard at first. on_answer: called at the first one.
    memory_folder: where this node keeps checkpoints in memory.
    """

    def __init__(
        self,
        channel: Channel | None,
        stages_file: Path,
        state: LauncherReport,
        patience_s: float,
        on_answer: Callable[[], None],
        memory_folder: Path | None = None,
    ) -> None:
        self._channel = channel
        self._stages_file = stages_file
        self._state = state
        self._patience_s = patience_s
        self._on_answer = on_answer
        self._memory_folder, self._in_memory_before = memory_folder, _in_memory(memory_folder)
        self._container = state.container
        self._since = self._started = self._opened = time.monotonic()
        self._heard_at: float | None = None
        self._changed = threading.Event()
        self._closed = False
        self.directive: Directive | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is an operator to report to."""
        return self._channel is not None

    @property
    def silent_s(self) -> float:
        """Seconds since the operator was last heard; infinite where it was not within the first seconds."""
        if self._channel is None:
            return float("inf")
        now = time.monotonic()
        if self._heard_at is not None:
            return now - self._heard_at
        return 0.0 if now < self._opened + self._patience_s else float("inf")

    def tell(self, attempt: int, state: launcher.RanksState, failure: TerminationRecord | None = None) -> None:
        """Reports this from now on, and at once."""
        self._state, self._since = LauncherReport(attempt=attempt, state=state, failure=failure), time.monotonic()
        self._started = self._since if state == "running" else self._started
        self._changed.set()

    def run(self) -> None:
        """Keeps the line up until it is closed."""
        problem = ""
        while not self._closed and self._channel is not None:
            self._changed.clear()
            report = self._report()
            pause_s = RETRY_S
            try:
                self.directive = directive = self._channel.exchange(report)
                if self._heard_at is None:
                    self._on_answer()
                self._heard_at = time.monotonic()
                pause_s = directive.interval_s
                problem = ""
            except (OSError, HTTPException, ValueError) as error:
                if str(error) != problem:  # once for each, not once a second
                    logger.warning("the operator does not answer the launcher: %s", error)
                problem = str(error)
            self._changed.wait(pause_s)

    def close(self) -> None:
        """Ends the line after the exchange under way."""
        self._closed = True
        self._changed.set()

    def _report(self) -> LauncherReport:
        state, since = self._state, self._since
        stages = {} if state.state == "starting" else _stages(self._stages_file, self._started)
        in_memory = _in_memory(self._memory_folder)
        return LauncherReport(
            attempt=state.attempt,
            state=state.state,
            age_s=time.monotonic() - since,
            failure=state.failure,
            stages_s=stages,
            memory_iteration=max((iteration for iteration, *_ in in_memory - self._in_memory_before), default=None),
            container=self._container,
        )


@contextlib.contextmanager
def connected(env: Environment, stages_file: Path, before: LauncherReport | None) -> Iterator[OperatorLine]:
    """The line that the environment names, kept up by a thread.

    before: what a container that was started again has to report. Where the operator has answered the one before, it
    does answer, if not at every moment.
    """
    first = before or LauncherReport(attempt=env.attempt, state="starting")
    state = replace(first, container=container.count(env))
    patience_s = env.launcher_patience_s if container.was_answered(env) else FIRST_ANSWER_S
    answered = partial(container.note_answer, env)
    line = OperatorLine(_channel(env.variables), stages_file, state, patience_s, answered, env.memory_folder)
    threading.Thread(target=line.run, name="operator", daemon=True).start()
    try:
        yield line
    finally:
        line.close()


def _channel(variables: Mapping[str, str]) -> Channel | None:
    if folder := variables.get(names.LAUNCHER_FOLDER):
        return Folder(Path(folder))
    if url := variables.get(names.LAUNCHER_URL):
        authority, token = variables.get(names.PUSH_AUTHORITY_FILE), variables.get(names.PUSH_TOKEN_FILE)
        return Server(url, Path(authority) if authority else None, Path(token) if token else None)
    return None


def _stages(path: Path, since: float) -> dict[Stage, float]:
    """Seconds from the start of the ranks to each stage, from the lines that rank 0 has written."""
    try:
        moments = start_stages.moments(path)
    except (OSError, ValueError):
        return {}
    return {stage: max(0.0, moments[stage] - since) for stage in launcher.STAGES if stage in moments}


def _in_memory(folder: Path | None) -> frozenset[tuple[int, Path, int]]:
    """The checkpoints that a node keeps in memory: iteration, folder, and when in ns the folder was last changed.

    A folder gets its name once all nodes have their parts. Those found at the launcher's start may be another run's;
    that moment tells them from its own, and not our clock, which may be ahead of the file system's.
    """
    named = ((path, NAME.fullmatch(path.name)) for path in (folder.glob("*/*") if folder else ()))
    return frozenset((int(name[1]), path, at) for path, name in named if name and (at := _changed_ns(path)) is not None)


def _changed_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # a run makes room meanwhile
        return None
