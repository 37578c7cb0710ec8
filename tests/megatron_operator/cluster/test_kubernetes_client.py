"""The client against a server of this machine: how long it waits, and what it then says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from megatron_operator.cluster.kubernetes import client as kubernetes
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.connection import Identity, connect
from megatron_operator.cluster.kubernetes.resource import EVENT, LEASE, POD

Handler = Callable[[web.Request], Awaitable[web.Response]]
Call = Callable[[Client], Awaitable[object]]
WORDS = 'failed calling webhook "slow.example.com": context deadline exceeded'


async def answer_late(request: web.Request) -> web.Response:
    """What an API server says once a webhook has had its time."""
    await asyncio.sleep(0.5)
    return web.json_response({"reason": "InternalError", "message": WORDS}, status=500)


@pytest.mark.parametrize(("verb", "heard"), [("create", WORDS), ("patch", WORDS), ("get", "")])
def test_a_write_outwaits_a_slow_webhook_and_hears_whose_it_is(monkeypatch, verb, heard):
    async def ask() -> str:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer_late)
        async with TestServer(application) as server:
            connection = connect(str(server.make_url("")).rstrip("/"), ca_file=None, identity=Identity())
            async with Client(connection, timeout_s=0.1) as client:
                with pytest.raises(ApiError) as raised:
                    await {
                        "create": lambda: client.create(POD, "team", {}),
                        "patch": lambda: client.patch(POD, "team", "a", {}),
                        "get": lambda: client.get(POD, "team", "a"),
                    }[verb]()
        return raised.value.message if raised.value.status else ""

    monkeypatch.setattr(kubernetes, "WRITE_TIMEOUT_S", 5.0)
    assert asyncio.run(ask()) == heard


async def be_busy(request: web.Request) -> web.Response:
    """A server that is too busy for anything but leases."""
    if "leases" in request.path:
        return web.json_response({"kind": "Lease"})
    return web.Response(status=429, text="Too many requests, please try again later.", headers={"Retry-After": "1"})


async def limit_events(request: web.Request) -> web.Response:
    """One that admits no more events of this namespace."""
    if "events" in request.path:
        words = {"reason": "TooManyRequests", "message": "limit reached on type Namespace for key team"}
        return web.json_response(words, status=429, headers={"Retry-After": "3600"})
    return web.json_response({"kind": "Pod"})


async def ask(handler: Handler, first: Call, second: Call) -> float:
    """Seconds that the second request takes, which is made after the first was refused for the first time."""
    application, refused = web.Application(), asyncio.Event()
    application.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(application) as server:
        connection = connect(str(server.make_url("")).rstrip("/"), ca_file=None, identity=Identity())
        async with Client(connection, on_request=lambda request: refused.set()) as client:
            refusal = asyncio.create_task(first(client))
            await refused.wait()
            began = asyncio.get_running_loop().time()
            await asyncio.wait_for(second(client), timeout=5)
            took_s = asyncio.get_running_loop().time() - began
            refusal.cancel()
            await asyncio.gather(refusal, return_exceptions=True)
    return took_s


def test_a_lease_is_renewed_while_a_busy_server_has_all_others_pause():
    assert asyncio.run(ask(be_busy, lambda c: c.get(POD, "team", "a"), lambda c: c.get(LEASE, "mtj", "x"))) < 0.5


def test_a_limit_for_events_holds_up_nothing_else():
    assert asyncio.run(ask(limit_events, lambda c: c.create(EVENT, "team", {}), lambda c: c.get(POD, "b", "x"))) < 0.5
