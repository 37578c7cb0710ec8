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
from megatron_operator.cluster.kubernetes.client import ApiError
from megatron_operator.core import push
from megatron_operator.guard import LogLimit
from megatron_operator.process import listener
from megatron_operator.process.listener import Address, Limits
from megatron_operator.process.token_review import TokenReviews, TooManyRefusals
from megatron_operator.process.work_queue import Key
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
    """The sender of a report: the master of this attempt of the job with this uid."""

    key: Key
    uid: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class ProgressServer:
    """Receives pushes.

    leader: address (host:port) of the leader if it is another replica, None if it is this one, "" if unknown.
    uid_of: uid of the current job with this name, None if there is no such job.
    take: called with every authenticated push (job, uid, progress); returns False when its attempt is over.
    """

    endpoint: Endpoint
    reviews: TokenReviews
    take: Callable[[Key, str, Progress], bool]
    uid_of: Callable[[Key], str | None]
    leader: Callable[[], Awaitable[str | None]]
    log_limit: LogLimit = field(default_factory=LogLimit)

    async def serve(self) -> None:
        """Serves until cancelled."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post(push.ROUTE, self._answer)
        endpoint = self.endpoint
        address = Address(host=endpoint.address, port=endpoint.port, certificates=endpoint.certificates)
        await listener.serve(application, address, LIMITS)

    async def _answer(self, request: web.Request) -> web.Response:
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
        attempt = push.attempt_of(reporter.pod, key[1]) if reporter else None
        if attempt is None:
            return refusal(403, "this token does not belong to the master of this job")
        leader = await self.leader()
        if leader is not None:
            return await self._hand_on(request, leader)
        return await self._take_in(request, Sender(key=key, uid=uid, attempt=attempt))

    async def _take_in(self, request: web.Request, sender: Sender) -> web.Response:
        """Processes the report of an authenticated sender."""
        try:
            body = json.loads(await request.read())
            progress, problems = push.read(body, sender.attempt, clock.now())
        except (ValueError, RecursionError) as error:
            return refusal(422, str(error)[:MAX_REFUSAL_CHARACTERS])
        if problems and self.log_limit.suppressed("push") is not None:
            logger.warning("push truncated namespace=%s job=%s problems=%.1000s", *sender.key, "; ".join(problems))
        if not self.take(sender.key, sender.uid, progress):
            return refusal(409, f"attempt {sender.attempt} of this job is over")
        return web.json_response(body)

    async def _hand_on(self, request: web.Request, leader: str) -> web.Response:
        """The leader's response to the same request."""
        if not leader or FORWARDED in request.headers:
            return refusal(503, "no leader yet; try again")
        context = ssl.create_default_context(cafile=str(self.endpoint.certificates / "ca.crt"))
        headers = {"Authorization": request.headers.get("Authorization", ""), FORWARDED: "1"}
        url = f"https://{leader}{request.path}"
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
