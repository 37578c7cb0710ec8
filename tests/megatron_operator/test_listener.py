"""The listener: what callers who may be anybody can take of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import MappingProxyType

import aiohttp
import pytest
from aiohttp import web

from local_cluster.control_plane import free_port
from megatron_operator.process import admission, health, listener
from megatron_operator.process.health import Check, Health
from megatron_operator.process.listener import Address, Limits
from megatron_operator.process.metrics import Metrics

LIMITS = Limits(connections=8, connections_of_source=4, request_s=0.5, handshake_s=0.5, idle_s=0.5)
SLOW_S = 10


def application() -> web.Application:
    """Answers with the length of what was sent."""

    async def length(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    built = web.Application(client_max_size=100)
    built.router.add_post("/", length)
    return built


@contextlib.asynccontextmanager
async def serving(limits: Limits = LIMITS) -> AsyncIterator[int]:
    """The port of a running listener."""
    port = free_port()
    task = asyncio.create_task(listener.serve(application(), Address(host="127.0.0.1", port=port), limits))
    await until_open(port)
    try:
        yield port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_open(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the listener does not listen")


async def post(port: int, body: bytes = b"abc", source: str = "127.0.0.2") -> tuple[int, str]:
    connector = aiohttp.TCPConnector(local_addr=(source, 0))
    url = f"http://127.0.0.1:{port}/"
    async with aiohttp.ClientSession(connector=connector) as session, session.post(url, data=body) as answer:
        return answer.status, await answer.text()


async def half_sent(port: int, source: str, text: bytes = b"POST / HTTP/1.1\r\nHost: x\r\n") -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(text)
    reader.writer = writer  # the connection lives as long as somebody holds its writer
    return reader


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), SLOW_S) is not None
    except ConnectionError:
        return True


def test_a_source_has_only_its_share_of_connections_and_others_are_served():
    async def play():
        async with serving(Limits(connections=8, connections_of_source=4, request_s=SLOW_S)) as port:
            held = [await half_sent(port, "127.0.0.1") for _ in range(4)]
            assert await is_closed(await half_sent(port, "127.0.0.1"))
            assert await post(port) == (200, "3")
            assert len(held) == 4

    asyncio.run(play())


def test_no_more_connections_than_the_cap_whatever_their_sources():
    async def play():
        async with serving(Limits(connections=8, connections_of_source=4, request_s=SLOW_S)) as port:
            held = [await half_sent(port, f"127.0.0.{1 + number}") for number in range(8)]
            assert await is_closed(await half_sent(port, "127.0.0.99"))
            assert len(held) == 8

    asyncio.run(play())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"POST / HT",
        b"POST / HTTP/1.1\r\nHost: x\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc",
    ],
    ids=["nothing", "half a line", "half the headers", "half the body"],
)
def test_a_request_that_never_ends_is_ended_and_its_place_given_to_others(text):
    async def play():
        async with serving() as port:
            held = [await half_sent(port, "127.0.0.2", text) for _ in range(4)]
            assert all([await is_closed(each) for each in held])
            assert await post(port) == (200, "3")

    asyncio.run(play())


def test_a_body_that_is_too_large_is_refused():
    async def play():
        async with serving() as port:
            assert (await post(port, b"x" * 101))[0] == 413

    asyncio.run(play())


def test_a_connection_that_waits_for_its_next_request_is_closed_in_time_and_an_active_one_kept():
    async def play():
        async with serving(Limits(connections=8, connections_of_source=4, request_s=5, idle_s=1.5)) as port:
            async with aiohttp.ClientSession() as session:
                for _ in range(5):
                    async with session.post(f"http://127.0.0.1:{port}/", data=b"abc") as answer:
                        assert answer.status == 200
                    await asyncio.sleep(0.2)
            reader = await half_sent(port, "127.0.0.2", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert await is_closed(reader)

    asyncio.run(play())


def test_health_answers_through_the_listener():
    async def play():
        port = free_port()
        checks = Health(metrics=Metrics(), alive=(Check(name="all", problem=lambda: None),), ready=())
        task = asyncio.create_task(health.serve(checks, "127.0.0.1", port))
        await until_open(port)
        url = f"http://127.0.0.1:{port}/healthz"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert (answer.status, await answer.text()) == (200, "all: ok\n")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(play())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 5000, b"{}", b'{"request": 3}'])
def test_what_is_no_admission_review_is_refused(body):
    class Request:
        match_info = MappingProxyType({"id": "validate"})
        headers = MappingProxyType({})

        async def read(self):
            return body

    async def review(request, *, webhook, headers):
        return {"response": {"uid": request["request"]["uid"]}}

    assert asyncio.run(admission._answer(Request(), review)).status == 400


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate of this machine's own."""
    folder = tmp_path_factory.mktemp("certificates")
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return folder


def test_the_webhook_answers_over_tls_as_kopf_asks_it_to(certificates: Path):
    async def review(request, *, webhook, headers):
        return {"webhook": webhook, "uid": request["request"]["uid"]}

    answers = []

    async def play():
        port = free_port()
        context = ssl.create_default_context(cafile=str(certificates / "tls.crt"))
        async for config in admission.server(certificates, port)(review):
            assert config["url"] == f"https://localhost:{port}"
            await until_open(port)
            url = f"https://localhost:{port}/validate"
            async with (
                aiohttp.ClientSession() as session,
                session.post(url, json={"request": {"uid": "u"}}, ssl=context) as answer,
            ):
                answers.append(await answer.json())
            break

    asyncio.run(play())
    assert answers == [{"webhook": "validate", "uid": "u"}]


def test_a_caller_who_never_shakes_hands_is_let_go(certificates: Path):
    async def play():
        port = free_port()
        address = Address(host="127.0.0.1", port=port, certificates=certificates)
        task = asyncio.create_task(listener.serve(application(), address, LIMITS))
        await until_open(port)
        held = [await half_sent(port, "127.0.0.2", b"") for _ in range(4)]
        assert all([await is_closed(each) for each in held])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(play())


def test_the_whole_address_space_is_listened_on_when_asked():
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with listener._socket(Address(host="", port=0)) as both:
        assert both.family == socket.AF_INET6
