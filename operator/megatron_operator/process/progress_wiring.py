"""Wires the progress server into the operator: what pods are configured with, who leads, who receives a push."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client.core import GaugeMetricFamily

from megatron_operator import clock
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.core.job import ProgressPush
from megatron_operator.process import leader
from megatron_operator.process.controller import Controller
from megatron_operator.process.leader import Candidate
from megatron_operator.process.metrics import job_gauge
from megatron_operator.process.progress_server import Endpoint, ProgressServer, Sender
from megatron_operator.process.settings import Settings
from megatron_operator.process.token_review import TokenReviews
from megatron_operator.process.work_queue import WorkQueue
from megatron_trainjob.launcher import Directive, LauncherReport
from megatron_trainjob.progress import Progress

LEADER_AGE_S = 5.0
RENEW_S = 60.0
SEPARATOR = "_"
logger = logging.getLogger(__name__)


def for_pods(settings: Settings) -> Callable[[], ProgressPush | None]:
    """The progress endpoint that pods are given, None when pushing is off; asked for each job that is read.

    A renewed authority is read within a minute, for pods made from then on. Raises OSError without the certificate.
    """
    if settings.progress_port is None or settings.progress_certificates is None:
        return lambda: None
    file = settings.progress_certificates / "ca.crt"
    url = f"https://{_in_url(settings.progress_host)}:{settings.progress_service_port}"
    known, read_at = ProgressPush(url=url, authority=file.read_text()), clock.now()

    def current() -> ProgressPush:
        nonlocal known, read_at
        if clock.now() - read_at >= RENEW_S:
            read_at = clock.now()
            with contextlib.suppress(OSError):  # just being replaced
                if (authority := file.read_text()) and authority != known.authority:
                    known = ProgressPush(url=url, authority=authority)
                    logger.info("authority of the progress server reloaded file=%s", file)
        return known

    return current


def identity(settings: Settings) -> str:
    """The identity under which this replica leads; followers read the address to forward pushes to from it."""
    if settings.progress_port is None:
        return settings.pod_name
    return f"{settings.pod_name}{SEPARATOR}{_in_url(settings.pod_ip)}:{settings.progress_port}"


def _in_url(host: str) -> str:
    """The name or address as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def server(
    settings: Settings, client: Client, controller: Controller, queue: WorkQueue, candidate: Candidate
) -> ProgressServer | None:
    """This replica's progress server, None when pushing is off."""
    if settings.progress_port is None or settings.progress_certificates is None:
        return None

    def take(sender: Sender, progress: Progress) -> bool:
        if controller.is_past(sender.key, sender.uid, sender.place.attempt, progress.attempt):
            return False
        if controller.take_progress(sender.key, sender.uid, progress):
            queue.add(sender.key)
        return True

    def hear(sender: Sender, report: LauncherReport) -> Directive | None:
        if controller.take_report(sender.key, sender.uid, sender.pod, report):
            queue.add(sender.key)
        return controller.directive(sender.key, sender.uid, sender.place, report)

    endpoint = Endpoint(
        address=settings.http_address,
        port=settings.progress_port,
        certificates=settings.progress_certificates,
        host=settings.progress_host,
    )
    finds_leader = leader_finder(client, candidate) if settings.leader_election else _itself
    return ProgressServer(
        endpoint=endpoint,
        reviews=TokenReviews(client),
        take=take,
        hear=hear,
        uid_of=controller.uid_of,
        leader=finds_leader,
    )


async def _itself() -> str | None:
    return None


def leader_finder(client: Client, candidate: Candidate) -> Callable[[], Awaitable[str | None]]:
    """A function that returns the leader's address: None if this replica leads, "" while there is no leader."""
    asked_at, holder = float("-inf"), ""

    async def find() -> str | None:
        nonlocal asked_at, holder
        now = asyncio.get_running_loop().time()
        if now - asked_at > LEADER_AGE_S:
            try:
                holder, asked_at = await leader.holder(client, candidate), now
            except ApiError:
                holder = ""
        return None if holder == candidate.identity else holder.partition(SEPARATOR)[2]

    return find


def gauges(controller: Controller) -> Iterator[GaugeMetricFamily]:
    """Progress and age of the last heartbeat of each job that reports, until the job is deleted."""
    now, reports = clock.now(), controller.progress()
    yield job_gauge(
        "megatron_job_progress_ratio",
        "Fraction of the iterations completed.",
        {key: progress.percentage / 100 for key, progress in reports.items()},
    )
    yield job_gauge(
        "megatron_job_heartbeat_age_seconds",
        "Seconds since the trainer's last report.",
        {key: now - progress.updated_at for key, progress in reports.items()},
    )
