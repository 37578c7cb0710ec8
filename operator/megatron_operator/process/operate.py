"""Runs the operator's parts concurrently: caches, kopf, health, leader election, workers. Ends when one of them ends.

Followers keep their caches warm and serve the webhook; only the leader's workers change anything.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from threading import Event as Flag
from typing import Any

from prometheus_client.core import GaugeMetricFamily

from megatron_operator.cluster.kubernetes import connection as kubernetes_connection
from megatron_operator.cluster.kubernetes import discovery
from megatron_operator.cluster.kubernetes.cache import Cache, Extent
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.connection import Connection
from megatron_operator.cluster.kubernetes.events import Recorder
from megatron_operator.cluster.kubernetes.informer import Listeners
from megatron_operator.cluster.kubernetes.resource import JOB
from megatron_operator.guard import Guard
from megatron_operator.process import health, leader, progress_wiring
from megatron_operator.process.controller import Controller, Jobs, key_of
from megatron_operator.process.handlers import run_kopf, taker
from megatron_operator.process.metrics import Metrics, job_gauges, simple_gauge, slow_rank_gauge
from megatron_operator.process.settings import Settings
from megatron_operator.process.work_queue import Key, Urgency, WorkQueue

MAX_LAG_S = 30.0
MAX_SILENCE_S = 180.0
MAX_QUEUE_AGE_S = 300.0
logger = logging.getLogger(__name__)


class DeafWatch(Exception):
    """The watch of the jobs is open but delivers no events."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """The parts of one operator process."""

    settings: Settings
    connection: Connection
    client: Client
    metrics: Metrics
    queue: WorkQueue
    jobs: Jobs
    cache: Cache
    controller: Controller
    candidate: leader.Candidate
    kopf_ready: Flag


async def operate(settings: Settings) -> int:
    """The exit code after one of the parts has ended: 0 when asked to stop, 1 otherwise."""
    connection = connect(settings)
    metrics = Metrics()
    async with Client(
        connection,
        max_parallel_creates=settings.max_parallel_creates,
        timeout_s=settings.request_timeout_s,
        on_request=metrics.on_request,
    ) as client:
        operator = assemble(settings, connection, client, metrics)
        try:
            return await run_until_first_end(operator)
        finally:
            await _give_back_lease(operator)


def connect(settings: Settings) -> Connection:
    """The API server from the settings; MTJ_API_SERVER overrides its address (such as a proxy's)."""
    if settings.kubeconfig:
        connection = kubernetes_connection.from_kubeconfig(settings.kubeconfig)
    else:
        host, port = settings.kubernetes_service_host or "", settings.kubernetes_service_port
        connection = kubernetes_connection.in_cluster(host, port)
    if settings.api_server is None:
        return connection
    identity, ca_file = connection.identity, connection.ca_file
    return kubernetes_connection.connect(settings.api_server, ca_file=ca_file, identity=identity)


def assemble(settings: Settings, connection: Connection, client: Client, metrics: Metrics) -> Operator:
    """The parts, connected to each other; nothing runs yet."""
    jobs = Jobs(settings.trainer_image, progress_wiring.for_pods(settings), settings.kueue_mode)

    def urgency_of(key: Key) -> Urgency:
        """In a burst of new jobs, creating pods goes before the first status of a job that has its pods."""
        return "normal" if jobs.is_reported(key) else "patient"

    queue = WorkQueue(urgency_of=urgency_of)
    listeners = Listeners(
        changed=queue.add_soon,
        event=metrics.on_watch_event,
        restarted=metrics.on_watch_restart,
        guard=Guard(count=metrics.on_unreadable),
    )
    extent = Extent(
        namespaces=settings.watch_namespaces,
        groups=settings.gang_schedulers,
        nodes=settings.node_loss_detection,
        kueue=settings.kueue_mode == "External",
        silence_s=settings.watch_silence_s,
    )
    cache = Cache(client, extent, listeners)
    recorder = Recorder(client, instance=settings.pod_name)
    controller = Controller(client=client, recorder=recorder, cache=cache, jobs=jobs, metrics=metrics)
    return Operator(
        settings=settings,
        connection=connection,
        client=client,
        metrics=metrics,
        queue=queue,
        jobs=jobs,
        cache=cache,
        controller=controller,
        candidate=_candidate(settings),
        kopf_ready=Flag(),
    )


def _candidate(settings: Settings) -> leader.Candidate:
    """This process in the election of a leader."""
    return leader.Candidate(
        namespace=settings.pod_namespace,
        lease_name=settings.lease_name,
        identity=progress_wiring.identity(settings),
        duration_s=settings.lease_duration_s,
    )


async def run_until_first_end(operator: Operator) -> int:
    """Runs every part; the first to end ends all. Returns 0 if that was due to a signal, else 1."""
    settings, metrics = operator.settings, operator.metrics
    metrics.report_at_scrape(lambda: _gauges(operator))
    parts: dict[str, Coroutine[Any, Any, None]] = {
        "signal": _wait_for_signal(),
        "kopf": run_kopf(
            operator.connection, settings, taker(operator.jobs, operator.queue), ready=operator.kopf_ready
        ),
        "cache": operator.cache.run(on_served=lambda: _add_all(operator)),
        "health": health.serve(_health(operator), settings.http_address, settings.http_port),
        "progress": _serve_progress(operator),
        "lag": health.watch_lag(metrics),
        "resync": _resync(operator),
        "work": _work(operator),
    }
    tasks = {asyncio.create_task(part, name=name) for name, part in parts.items()}
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return max(_exit_code(task) for task in ended)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_signal() -> None:
    """Returns after SIGTERM or SIGINT."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    await asked.wait()
    logger.info("asked to stop")


def _exit_code(task: asyncio.Task[None]) -> int:
    error = task.exception()
    if error or task.get_name() != "signal":
        logger.error("part ended name=%s", task.get_name(), exc_info=error)
        return 1
    return 0


async def _work(operator: Operator) -> None:
    """Acquires leadership (if election is on), then reconciles forever."""
    await operator.cache.synced()
    workers = _reconcile(operator)
    if not operator.settings.leader_election:
        operator.metrics.leader.set(1)
        return await workers
    await leader.become_leader(operator.client, operator.candidate)
    operator.metrics.leader.set(1)
    async with asyncio.TaskGroup() as group:
        group.create_task(leader.stay_leader(operator.client, operator.candidate))
        group.create_task(workers)
    return None


async def _reconcile(operator: Operator) -> None:
    """What the cluster can do is asked by the leader, for a follower may wait through an upgrade of the cluster."""
    operator.jobs.has_container_restarts = await discovery.restarts_containers(operator.client)
    await operator.queue.run(operator.settings.num_workers, operator.controller.reconcile)


async def _give_back_lease(operator: Operator) -> None:
    if operator.settings.leader_election:
        try:
            await leader.release(operator.client, operator.candidate)
        except ApiError as error:
            logger.warning("lease not released error=%s", error)


async def _resync(operator: Operator) -> None:
    """Compares the cached jobs with the server's every minute, reconciles each of them every resync_s.

    Drops jobs whose deletion the watch missed. Raises when the watch has not delivered a change that is a minute old,
    or the server's version is older: the watch is dead, or the server's store was restored from a backup, whose objects
    every cache takes for old. A new process is the remedy.
    """
    loop = asyncio.get_running_loop()
    differing: dict[Key, int] = {}
    next_resync = loop.time() + operator.settings.resync_s
    while True:
        await asyncio.sleep(operator.settings.compare_s * random.uniform(0.9, 1.1))
        before = set(operator.jobs)
        try:
            existing = await _existing(operator)
        except ApiError as error:
            logger.warning("comparison with the server skipped error=%s", error)
            continue
        for key in before - set(existing):
            operator.jobs.drop(key)
        before_that, differing = differing, _differing(operator, existing)
        if late := set(before_that.items()) & set(differing.items()):
            raise DeafWatch(f"jobs changed but the watch did not deliver it: {sorted(key for key, _ in late)[:5]}")
        if loop.time() >= next_resync:
            next_resync = loop.time() + operator.settings.resync_s * random.uniform(0.9, 1.1)
            _add_all(operator)


async def _existing(operator: Operator) -> dict[Key, int]:
    """Every job on the server with its resourceVersion."""
    existing: dict[Key, int] = {}
    for namespace in operator.settings.watch_namespaces or (None,):
        parameters = {"limit": "500"}
        while parameters:
            page = await operator.client.list_page(JOB, namespace, parameters, metadata_only=True)
            existing |= {key_of(raw): int(raw["metadata"]["resourceVersion"]) for raw in page["items"] or ()}
            following = page["metadata"].get("continue")
            parameters = {"limit": "500", "continue": following} if following else {}
    return existing


def _differing(operator: Operator, existing: Mapping[Key, int]) -> dict[Key, int]:
    """The versions on the server that are not the cached ones; of a job that was just written, an older one."""
    return {key: version for key, version in existing.items() if operator.jobs.version(key) != version}


def _add_all(operator: Operator) -> None:
    for key in operator.jobs:
        operator.queue.add(key)


def _health(operator: Operator) -> health.Health:
    loop_lag = operator.metrics.loop_lag_s.collect
    cache, queue = operator.cache, operator.queue
    return health.Health(
        metrics=operator.metrics,
        alive=(
            health.at_most("event loop lag", lambda: next(iter(loop_lag())).samples[0].value, MAX_LAG_S),
            health.at_most("watch silence", lambda: cache.silence_s, MAX_SILENCE_S),
            health.at_most("queue age", lambda: _queue_age(operator), MAX_QUEUE_AGE_S),
        ),
        ready=(
            health.holds("caches listed", lambda: cache.is_synced),
            health.holds("jobs watched", operator.kopf_ready.is_set),
            health.at_most("queue age", lambda: queue.oldest_s if _leads(operator) else 0.0, MAX_QUEUE_AGE_S),
        ),
    )


async def _serve_progress(operator: Operator) -> None:
    """Serves the port to which pods push their progress, if it is set."""
    server = progress_wiring.server(
        operator.settings, operator.client, operator.controller, operator.queue, operator.candidate
    )
    await (server.serve() if server else asyncio.Event().wait())


def _leads(operator: Operator) -> bool:
    return next(iter(operator.metrics.leader.collect())).samples[0].value == 1


def _queue_age(operator: Operator) -> float:
    return operator.queue.oldest_s if _leads(operator) else 0.0


def _gauges(operator: Operator) -> Iterator[GaugeMetricFamily]:
    """Of the leader alone: its followers know the same jobs, which a sum would count again, and work off no queue."""
    if not _leads(operator):
        return
    yield job_gauges(operator.jobs.statuses())
    yield slow_rank_gauge(operator.jobs.statuses())
    if operator.settings.per_job_metrics:
        yield from progress_wiring.gauges(operator.controller)
    queue = operator.queue
    yield simple_gauge("megatron_operator_queue_depth", "Jobs waiting for a worker.", len(queue))
    yield simple_gauge("megatron_operator_queue_oldest_seconds", "Waiting time of the first of them.", queue.oldest_s)
