"""Where pods push their progress: HTTPS, each push authenticated by TokenReview for the job that it reports on.

Every replica authenticates and responds; a follower forwards to the leader, which alone keeps progress and writes
status.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from megatron_operator import clock
from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import ApiError
from megatron_operator.core import push
from megatron_operator.guard import LogLimit
from megatron_operator.process import listener
from megatron_operator.process.listener import Address, Limits
from megatron_operator.process.token_review import TokenReviews, TooManyRefusals
from megatron_operator.process.work_queue import Key
from megatron_trainjob import launcher
from megatron_trainjob.environment import PUSH_ATTEMPT
from megatron_trainjob.launcher import Directive, LauncherReport
from megatron_trainjob.progress import Progress

LIMITS = Limits(connections=384, connections_of_source=48, idle_s=30.0)
MAX_BODY_BYTES = 64 * 1024
MAX_REFUSAL_CHARACTERS = 1024
FORWARDED = "X-MTJ-Forwarded"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to listen, with which certificate (a directory with tls.crt, tls.key, ca.crt) for which host name."""

    address: str
    port: int
    certificates: Path
    host: str


@dataclass(frozen=True, kw_only=True)
class Sender:
    """The sender of a report: this pod of the job with this uid."""

    key: Key
    uid: str
    pod: str
    place: names.Place


@dataclass(frozen=True, kw_only=True)
class ProgressServer:
    """Receives pushes.

    leader: address (host:port) of the leader if it is another replica, None if it is this one, "" if unknown.
    uid_of: uid of the current job with this name, None if there is no such job.
    take: called with every authenticated push of a master; returns False when its attempt is over.
    hear: called with every authenticated report of a launcher; returns the answer, None for an attempt that is refused.
    """

    endpoint: Endpoint
    reviews: TokenReviews
    take: Callable[[Sender, Progress], bool]
    hear: Callable[[Sender, LauncherReport], Directive | None]
    uid_of: Callable[[Key], str | None]
    leader: Callable[[], Awaitable[str | None]]
    log_limit: LogLimit = field(default_factory=LogLimit)

    async def serve(self) -> None:
        """Serves until cancelled."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post(push.ROUTE, self._on_progress)
        application.router.add_post(push.LAUNCHER_ROUTE, self._on_launcher)
        endpoint = self.endpoint
        address = Address(host=endpoint.address, port=endpoint.port, certificates=endpoint.certificates)
        await listener.serve(application, address, LIMITS)

    async def _on_progress(self, request: web.Request) -> web.Response:
        """Progress, which only a master reports."""
        sender = await self._sender(request)
        if not isinstance(sender, Sender):
            return sender
        if sender.place.role != names.MASTER:
            return refusal(403, "this token does not belong to the master of this job")
        leader = await self.leader()
        return (
            self._take(sender, request, await request.read())
            if leader is None
            else await self._hand_on(request, leader)
        )

    async def _on_launcher(self, request: web.Request) -> web.Response:
        """The report of a launcher, which each pod of a job has."""
        sender = await self._sender(request)
        if not isinstance(sender, Sender):
            return sender
        leader = await self.leader()
        return self._hear(sender, await request.read()) if leader is None else await self._hand_on(request, leader)

    async def _sender(self, request: web.Request) -> Sender | web.Response:
        """The pod that the request's token belongs to, or the refusal."""
        key = (request.match_info["namespace"], request.match_info["name"])
        uid = self.uid_of(key)
        if uid is None:
            return refusal(404, "no such job")
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        audience = push.audience(*key, uid)
        try:
            reporter = await self.reviews.reporter(token, key[0], audience, request.remote or "")
        except ApiError as error:
            logger.warning("push not authenticated namespace=%s job=%s error=%s", *key, error)
            return refusal(503, "the token could not be verified; try again")
        except TooManyRefusals as error:
            return refusal(429, str(error))
        place = names.place_of(reporter.pod, key[1]) if reporter else None
        if reporter is None or place is None:
            return refusal(403, "this token does not belong to a pod of this job")
        return Sender(key=key, uid=uid, pod=reporter.pod, place=place)

    def _take(self, sender: Sender, request: web.Request, content: bytes) -> web.Response:
        """Processes the progress of an authenticated master."""
        try:
            body = json.loads(content)
            attempt = push.attempt_of(sender.place, request.query.get(PUSH_ATTEMPT))
            progress, problems = push.read(body, attempt, clock.now())
        except (ValueError, RecursionError) as error:
            return refusal(422, str(error)[:MAX_REFUSAL_CHARACTERS])
        if problems and self.log_limit.suppressed("push") is not None:
            logger.warning("push truncated namespace=%s job=%s problems=%.1000s", *sender.key, "; ".join(problems))
        if not self.take(sender, progress):
            return refusal(409, f"attempt {attempt} of this job is over")
        return web.json_response(body)

    def _hear(self, sender: Sender, content: bytes) -> web.Response:
        """Answers the report of an authenticated launcher."""
        try:
            report = launcher.read_report(json.loads(content))
        except (ValueError, RecursionError) as error:
            return refusal(422, str(error)[:MAX_REFUSAL_CHARACTERS])
        directive = self.hear(sender, report)
        if directive is None:
            return refusal(409, f"attempt {report.attempt} of this job is not one of pod {sender.pod}")
        return web.json_response(directive.to_fields())

    async def _hand_on(self, request: web.Request, leader: str) -> web.Response:
        """The leader's response to the same request."""
        if not leader or FORWARDED in request.headers:
            return refusal(503, "no leader yet; try again")
        context = ssl.create_default_context(cafile=str(self.endpoint.certificates / "ca.crt"))
        headers = {"Authorization": request.headers.get("Authorization", ""), FORWARDED: "1"}
        url = f"https://{leader}{request.path_qs}"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.post(
                    url, data=await request.read(), headers=headers, ssl=context, server_hostname=self.endpoint.host
                ) as answer,
            ):
                return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")
        except (aiohttp.ClientError, TimeoutError) as error:
            return refusal(503, f"the leader does not respond: {error}")


def refusal(status: int, message: str) -> web.Response:
    """A Kubernetes Status with the error."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
    return web.json_response(body, status=status)
