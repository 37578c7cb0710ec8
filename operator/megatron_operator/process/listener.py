"""Serves HTTP to untrusted callers: limits on connections, in total and per source, and on their duration.

Connections are counted when accepted, before TLS allocates a quarter of a megabyte for each; aiohttp itself
waits forever for the rest of a request. Requests and their senders are opaque here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SWEEP_S = 1.0
RENEW_S = 60.0
RETRY_S = 0.1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a listener. Times in seconds.

    request_s: a whole request, from its first byte (or the connection) to the response. idle_s: between two requests.
    """

    connections: int
    connections_of_source: int
    request_s: float = 10.0
    handshake_s: float = 5.0
    idle_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to listen; host "" is every address, IPv4 and IPv6.

    certificates: directory with tls.crt and tls.key, None for plain HTTP.
    """

    host: str
    port: int
    certificates: Path | None = None


async def serve(application: web.Application, address: Address, limits: Limits) -> None:
    """Serves until cancelled. A renewed certificate is reloaded within a minute."""
    listener = _Listener(limits)
    application.middlewares.append(listener.timed)
    runner = web.AppRunner(application, access_log=None, handle_signals=False, keepalive_timeout=limits.idle_s)
    await runner.setup()
    server = runner.server
    if server is None:
        raise RuntimeError("the runner has no server")
    try:
        with _socket(address) as listening:
            async with asyncio.TaskGroup() as group:
                context = _context(address.certificates)
                if address.certificates and context:
                    group.create_task(_renew(address.certificates, context))
                group.create_task(listener.sweep())
                group.create_task(listener.accept(listening, server, context))
    finally:
        await runner.cleanup()


class _Connection(asyncio.Protocol):
    """One connection; delegates to aiohttp's protocol and notifies the listener when it closes."""

    def __init__(self, listener: _Listener, handler: asyncio.Protocol, source: str) -> None:
        self._listener, self.handler, self.source = listener, handler, source
        self.transport: asyncio.BaseTransport | None = None
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.handler.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.forget(self)
        self.handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self.handler.eof_received()

    def pause_writing(self) -> None:
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self.handler.resume_writing()


class _Listener:
    """The connections of one port."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._connections: dict[asyncio.Protocol, _Connection] = {}
        self._sources: Counter[str] = Counter()
        self._handshakes: set[asyncio.Task[None]] = set()

    async def accept(
        self, listening: socket.socket, server: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        """Accepts connections forever; one over the limit is closed at once."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:  # no file descriptor left, or the caller has disconnected
                logger.warning("connection not accepted error=%s", error)
                await asyncio.sleep(RETRY_S)
                continue
            source = str(peer[0])
            if not self._has_room(source):
                accepted.close()
                continue
            connection = _Connection(self, server(), source)
            self._add(connection)
            task = asyncio.create_task(self._connect(accepted, connection, context))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def sweep(self) -> None:
        """Closes connections that have timed out."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            for connection in [each for each in self._connections.values() if each.due < loop.time()]:
                if isinstance(connection.transport, asyncio.WriteTransport):
                    connection.transport.abort()

    @web.middleware
    async def timed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Responds with 408 when the whole request, including its body, takes too long."""
        connection = self._connections.get(request.protocol)
        if connection:
            connection.due = float("inf")
        try:
            async with asyncio.timeout(self._limits.request_s):
                return await handler(request)
        except TimeoutError:
            return web.Response(status=408, text="the request took too long\n")
        finally:
            if connection:
                connection.due = asyncio.get_running_loop().time() + self._limits.idle_s

    def forget(self, connection: _Connection) -> None:
        """Removes a closed connection from the counts."""
        if self._connections.pop(connection.handler, None):
            self._sources[connection.source] -= 1
            self._sources += Counter()  # drops sources without connections

    def _has_room(self, source: str) -> bool:
        has_room_for_source = self._sources[source] < self._limits.connections_of_source
        return len(self._connections) < self._limits.connections and has_room_for_source

    def _add(self, connection: _Connection) -> None:
        limits = self._limits
        connection.due = asyncio.get_running_loop().time() + limits.handshake_s + limits.request_s
        self._connections[connection.handler] = connection
        self._sources[connection.source] += 1

    async def _connect(self, accepted: socket.socket, connection: _Connection, context: ssl.SSLContext | None) -> None:
        """Performs the TLS handshake; its failures are the caller's problem."""
        timeout_s = self._limits.handshake_s if context else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted, ssl=context, ssl_handshake_timeout=timeout_s
            )
        except (OSError, ssl.SSLError, TimeoutError):
            self.forget(connection)
            accepted.close()


def _socket(address: Address) -> socket.socket:
    has_both = socket.has_dualstack_ipv6()
    host = address.host or ("::" if has_both else "0.0.0.0")
    listening = socket.create_server(
        (host, address.port),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        backlog=128,
        dualstack_ipv6=not address.host and has_both,
    )
    listening.setblocking(False)
    return listening


def _context(certificates: Path | None) -> ssl.SSLContext | None:
    if certificates is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "tls.crt", certificates / "tls.key")
    return context


async def _renew(certificates: Path, context: ssl.SSLContext) -> None:
    """Reloads the certificate whenever its file changes."""
    known = _digest(certificates)
    while True:
        await asyncio.sleep(RENEW_S)
        try:
            if (found := _digest(certificates)) != known:
                context.load_cert_chain(certificates / "tls.crt", certificates / "tls.key")
                known = found
                logger.info("certificate reloaded directory=%s", certificates)
        except OSError as error:  # half written: the next check sees the whole file
            logger.warning("certificate not reloaded directory=%s error=%s", certificates, error)


def _digest(certificates: Path) -> bytes:
    return hashlib.sha256((certificates / "tls.crt").read_bytes() + (certificates / "tls.key").read_bytes()).digest()
