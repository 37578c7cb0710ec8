"""Stands between operator and API server and spoils what passes: refusals, lost answers, broken watches, delays.

Plain HTTP on loopback towards the operator, TLS towards the server; requests carry the operator's own token.
Faults are drawn from a seeded generator, so that a run can be had again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

Kind = Literal["none", "429", "409", "500", "503", "reset", "lost-answer", "delay", "watch-drop", "watch-silent"]
HOP_HEADERS = {"host", "connection", "transfer-encoding", "content-length"}
MESSAGES = {429: "TooManyRequests", 409: "Conflict", 500: "InternalError", 503: "ServiceUnavailable"}
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as the proxy sees it."""

    method: str
    path: str
    is_watch: bool


Choose = Callable[[Call, random.Random], Kind]


def no_faults(call: Call, draw: random.Random) -> Kind:
    """Lets everything pass."""
    return "none"


def sometimes(rate: float) -> Choose:
    """Every kind of fault, on this share of the requests that it fits."""

    def choose(call: Call, draw: random.Random) -> Kind:
        if "leases" in call.path or draw.random() >= (max(rate, 0.7) if call.is_watch else rate):
            return "none"
        if call.is_watch:
            return draw.choice(("watch-drop", "watch-drop", "watch-silent", "500"))
        kinds: tuple[Kind, ...] = ("429", "500", "503", "reset", "delay")
        if call.method in WRITES:
            kinds = (*kinds, "lost-answer", *(("409",) if call.method == "PATCH" else ()))
        return draw.choice(kinds)

    return choose


@dataclass(kw_only=True)
class FaultProxy:
    """The proxy; `choose` may be replaced while it runs. `injected` counts the faults by kind."""

    server: str
    ca_file: Path
    seed: int = 0
    host: str = "127.0.0.1"
    choose: Choose = no_faults
    injected: Counter[str] = field(default_factory=Counter)
    url: str = ""
    watch_life_s: float = 2.0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    async def serve(self, started: threading.Event) -> None:
        """Answers on a free port until cancelled."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connector = TCPConnector(ssl=context, limit=0)
        async with ClientSession(connector=connector, auto_decompress=False) as session:
            application = web.Application(client_max_size=2**26)
            application.router.add_route("*", "/{path:.*}", lambda request: self._answer(session, request))
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, self.host, 0)
            await site.start()
            port = runner.addresses[0][1]
            self.url = f"http://[{self.host}]:{port}" if ":" in self.host else f"http://{self.host}:{port}"
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                await runner.cleanup()

    async def _answer(self, session: ClientSession, request: web.Request) -> web.StreamResponse:
        call = Call(method=request.method, path=request.path, is_watch=request.query.get("watch") == "true")
        kind = self.choose(call, self._draw)
        if kind != "none":
            self.injected[kind] += 1
        if kind.isdigit():
            return _refusal(int(kind))
        if kind == "reset":
            return _cut(request)
        if kind == "delay":
            await asyncio.sleep(self._draw.uniform(0.2, 1.5))
        try:
            return await self._forward(session, request, kind)
        except (ClientError, ConnectionError):
            return _cut(request)

    async def _forward(self, session: ClientSession, request: web.Request, kind: Kind) -> web.StreamResponse:
        body = await request.read() or None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        url = self.server + request.raw_path
        timeout = ClientTimeout(total=None)
        async with session.request(request.method, url, data=body, headers=headers, timeout=timeout) as upstream:
            if kind == "lost-answer":
                await upstream.read()
                return _cut(request)
            passed = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_HEADERS}
            response = web.StreamResponse(status=upstream.status, headers=passed)
            await response.prepare(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.watch_life_s if kind.startswith("watch") else None):
                    async for chunk in upstream.content.iter_any():
                        await response.write(chunk)
                    await response.write_eof()
                    return response
        if kind == "watch-silent":
            await asyncio.sleep(600)
        return _cut(request)


def _refusal(status: int) -> web.Response:
    answer = {"kind": "Status", "status": "Failure", "reason": MESSAGES[status], "message": "injected", "code": status}
    headers = {"Retry-After": "1"} if status == 429 else {}
    return web.json_response(answer, status=status, headers=headers)


def _cut(request: web.Request) -> web.Response:
    """Breaks the connection in place of an answer."""
    if request.transport:
        request.transport.abort()
    return web.Response(status=500)


@contextlib.contextmanager
def running(proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy at work in a thread of its own for as long as the block lasts."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    task = loop.create_task(proxy.serve(started))

    def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        left = asyncio.all_tasks(loop)
        for each in left:
            each.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    started.wait(timeout=10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=10)
        loop.close()
