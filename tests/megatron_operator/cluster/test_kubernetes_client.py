"""The client against a server of this machine: how long it waits, and what it then says."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from megatron_operator.cluster.kubernetes import client as kubernetes
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.connection import Identity, connect
from megatron_operator.cluster.kubernetes.resource import POD

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
