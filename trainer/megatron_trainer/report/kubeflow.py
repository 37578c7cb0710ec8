"""Pushes progress to a Kubeflow Trainer status server if the pod's environment names one.

The wire form is Kubeflow's TrainJob status (KEP-2779), plus our whole progress record, which Kubeflow's own server
ignores. Pushing is best effort: it runs in a separate thread, at most every few seconds, and a slow or unavailable
server does not delay training.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from urllib import request

from megatron_trainer.report import progress_file
from megatron_trainer.report.records import (
    CheckpointRecord,
    Event,
    FinishRecord,
    LogRecord,
    PhaseRecord,
    SlowRankRecord,
)
from megatron_trainjob import environment as variables
from megatron_trainjob import kubeflow_push as push
from megatron_trainjob.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PUSHES = 5.0
TIMEOUT_S = 10.0
SECONDS_TO_FINISH = 15.0
# Events that the operator acts on: phases (which may last long without steps), checkpoints, the end.
URGENT = (PhaseRecord, CheckpointRecord, SlowRankRecord, FinishRecord)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Address of the status server; files with its CA certificate and the pod's token, which is rotated."""

    url: str
    ca_certificate: Path | None
    token: Path | None


def server_from(environment: Mapping[str, str]) -> Server | None:
    """The server that Kubeflow's controller set in the environment, or None."""
    url = environment.get(variables.PUSH_URL)
    if not url:
        return None
    certificate = environment.get(variables.PUSH_AUTHORITY_FILE)
    token = environment.get(variables.PUSH_TOKEN_FILE)
    return Server(
        url=url,
        ca_certificate=Path(certificate) if certificate else None,
        token=Path(token) if token else None,
    )


class KubeflowPush:
    """Follows the run and passes a status to the sending thread; only the newest status is queued."""

    interval = 1

    def __init__(self, server: Server, *, now: Callable[[], float]) -> None:
        self._server = server
        self._now = now
        self._pushed_at = float("-inf")
        self._state = Progress(phase="starting")
        self._waiting: queue.Queue[bytes | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._send_all, name="kubeflow-progress", daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """Records the event and queues a status, except for a step too soon after the last one."""
        self._state = progress_file.follow(self._state, event)
        is_due = self._now() - self._pushed_at >= SECONDS_BETWEEN_PUSHES
        if isinstance(event, URGENT) or (isinstance(event, LogRecord) and is_due):
            self._pushed_at = self._now()
            self._offer(json.dumps(status(self._state, self._now())).encode())

    def close(self) -> None:
        """Waits until the last status is sent, for a bounded time."""
        try:
            self._waiting.put(None, timeout=SECONDS_TO_FINISH)
        except queue.Full:
            return
        self._thread.join(SECONDS_TO_FINISH)

    def _offer(self, body: bytes) -> None:
        with contextlib.suppress(queue.Empty):  # empty: the last one is being sent
            self._waiting.get_nowait()
        self._waiting.put(body)

    def _send_all(self) -> None:
        while (body := self._waiting.get()) is not None:
            try:
                send(self._server, body)
            except (OSError, HTTPException, ValueError) as err:
                logger.warning("cannot push progress url=%s error=%s", self._server.url, err)


def status(state: Progress, now: float) -> dict[str, object]:
    """The body of a push. Percent is held at 99 until the run is finished."""
    percentage = 100 if state.phase == "finished" else min(99, state.percentage)
    metrics = [
        {push.METRIC_NAME: name, push.METRIC_VALUE: f"{value:.6g}"} for name, value in sorted(state.metrics.items())
    ]
    return {
        push.STATUS: {
            push.PERCENTAGE: percentage,
            push.REMAINING_S: round(state.remaining_s or 0),
            push.METRICS: metrics,
            push.UPDATED: datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        push.PROGRESS: asdict(state),
    }


def send(server: Server, body: bytes) -> None:
    """One POST. Raises OSError when the server cannot be reached or refuses."""
    headers = {"Content-Type": "application/json"}
    if server.token is not None:
        headers["Authorization"] = f"Bearer {server.token.read_text().strip()}"
    post = request.Request(server.url, data=body, headers=headers, method="POST")
    context = None
    if server.url.startswith("https:"):
        context = ssl.create_default_context(cafile=str(server.ca_certificate) if server.ca_certificate else None)
    with request.urlopen(post, timeout=TIMEOUT_S, context=context) as answer:
        answer.read()
