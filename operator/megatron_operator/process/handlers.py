"""kopf's part: it watches the jobs and serves the admission webhook. Handlers only enqueue a key.

No timers, daemons, finalizers or annotations: kopf's change-driven handlers miss changes made while the
operator is down, and their annotations would conflict with GitOps tools that own the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag
from typing import Any

import kopf

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.connection import Connection
from megatron_operator.process import admission
from megatron_operator.process.controller import Jobs, key_of
from megatron_operator.process.settings import Settings
from megatron_operator.process.work_queue import WorkQueue

Object = Mapping[str, Any]
QUEUE_IDLE_S = 0.2
STOP_S = 3.0
WATCH_S = 290
CLIENT_S = 310


class NoDiffBase(kopf.DiffBaseStorage):
    """Stores nothing on the job and computes no diffs: kopf's own copies cost two thirds of its CPU time."""

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        """An empty essence."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing was stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Stores nothing."""


class NoProgress(kopf.ProgressStorage):
    """Stores no handler progress: the status of the job is the only state."""

    def fetch(self, *, key: object, body: kopf.Body) -> None:
        """Nothing was stored."""

    def store(self, *, key: object, record: object, body: kopf.Body, patch: kopf.Patch) -> None:
        """Stores nothing."""

    def purge(self, *, key: object, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing to remove."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Touches nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """The essence as it is."""
        return essence


def kopf_registry(connection: Connection, take: Callable[[str | None, Object], None]) -> kopf.OperatorRegistry:
    """The handlers: log in as everywhere else, pass on each watch event as (event type, job)."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def log_in(**_: object) -> kopf.ConnectionInfo:
        return kopf_connection(connection)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def on_event(event: Mapping[str, Any], **_: object) -> None:
        take(event["type"], event["object"])

    return registry


def taker(jobs: Jobs, queue: WorkQueue) -> Callable[[str | None, Object], None]:
    """The event handler: caches the job and enqueues its key.

    In a burst, new jobs get their pods before other jobs get their status updates.
    """

    def take(type_: str | None, raw: Object) -> None:
        key = key_of(raw)
        if type_ == "DELETED":
            jobs.drop(key)
            queue.forget(key)
            queue.add(key)
        elif jobs.put(raw):
            queue.add(key, "normal" if "status" in raw else "urgent")

    return take


def kopf_connection(connection: Connection) -> kopf.ConnectionInfo:
    """The same server and credentials as kopf's ConnectionInfo."""
    identity = connection.identity
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_path=connection.ca_file,
        token=connection.token(),
        certificate_path=identity.certificate_file,
        private_key_path=identity.key_file,
    )


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Settings that reduce kopf to a quiet watcher."""
    tuned = kopf.OperatorSettings()
    tuned.posting.enabled = False
    tuned.process.ultimate_exiting_timeout = None
    tuned.scanning.disabled = True
    tuned.persistence.finalizer = f"{names.GROUP}/unused"
    tuned.persistence.diffbase_storage = NoDiffBase()
    tuned.persistence.progress_storage = NoProgress()
    tuned.queueing.idle_timeout = QUEUE_IDLE_S
    tuned.queueing.worker_limit = None
    tuned.watching.server_timeout = WATCH_S
    tuned.watching.client_timeout = CLIENT_S
    tuned.watching.connect_timeout = settings.request_timeout_s
    tuned.watching.inactivity_timeout = settings.watch_silence_s
    tuned.networking.request_timeout = settings.request_timeout_s
    tuned.networking.enforce_retry_after = True
    tuned.execution.executor = ThreadPoolExecutor(max_workers=1)
    return tuned


async def run_kopf(
    connection: Connection, settings: Settings, take: Callable[[str | None, Object], None], *, ready: Flag
) -> None:
    """Watches the jobs until cancelled; `take` is called with each event, `ready` is set once the watch is open.

    kopf runs in a thread with an event loop of its own: it takes over the signal handlers of its loop, and when it
    stops it cancels every task there.
    """
    loop, stop = asyncio.get_running_loop(), Flag()

    def take_from_thread(type_: str | None, raw: Object) -> None:
        loop.call_soon_threadsafe(take, type_, raw)

    def work() -> None:
        asyncio.run(kopf_operator(connection, settings, take_from_thread, ready=ready, stop=stop))

    ended = loop.run_in_executor(ThreadPoolExecutor(max_workers=1, thread_name_prefix="kopf"), work)
    try:
        await asyncio.shield(ended)
    finally:
        stop.set()
        await asyncio.wait([ended], timeout=STOP_S)


async def kopf_operator(
    connection: Connection,
    settings: Settings,
    take: Callable[[str | None, Object], None],
    *,
    ready: Flag,
    stop: Flag,
) -> None:
    """kopf itself, until `stop` is set."""
    registry, tuned = kopf_registry(connection, take), kopf_settings(settings)
    identity: Any = settings.pod_name  # kopf's type for it is private
    if settings.webhook_certificates:
        admission.register(registry)
        tuned.admission.server = admission.server(settings.webhook_certificates, settings.webhook_port)
    await kopf.operator(
        registry=registry,
        settings=tuned,
        identity=identity,  # kopf would look up the user's name, which a container's user may not have
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        stop_flag=stop,
        ready_flag=ready,
    )
