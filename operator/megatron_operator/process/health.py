"""Serves the kubelet and Prometheus: /healthz (liveness), /readyz (readiness), /metrics.

Reports the results of checks; measures nothing itself but the lag of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from megatron_operator.process import listener
from megatron_operator.process.listener import Address, Limits
from megatron_operator.process.metrics import Metrics

LAG_INTERVAL_S = 1.0
LIMITS = Limits(connections=64, connections_of_source=16)
MAX_BODY_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Check:
    """One health check; `problem` returns what is wrong, None when healthy."""

    name: str
    problem: Callable[[], str | None]


def at_most(name: str, value: Callable[[], float], limit: float) -> Check:
    """A check that fails while the value (seconds) is above its limit."""

    def problem() -> str | None:
        current = value()
        return f"{current:.1f} s, at most {limit:.0f} s" if current > limit else None

    return Check(name=name, problem=problem)


def holds(name: str, statement: Callable[[], bool]) -> Check:
    """A check that fails until the statement is true."""
    return Check(name=name, problem=lambda: None if statement() else "not yet")


@dataclass(frozen=True, kw_only=True)
class Health:
    """What the endpoints report."""

    metrics: Metrics
    alive: tuple[Check, ...]
    ready: tuple[Check, ...]


async def serve(health: Health, address: str, port: int) -> None:
    """Serves on this address ("" is every address, IPv4 and IPv6) until cancelled."""
    await listener.serve(_application(health), Address(host=address, port=port), LIMITS)


async def watch_lag(metrics: Metrics) -> None:
    """Runs forever; measures how much later than requested the event loop wakes up."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        metrics.loop_lag_s.set(max(0.0, loop.time() - due))


def _application(health: Health) -> web.Application:
    application = web.Application(client_max_size=MAX_BODY_BYTES)

    async def healthz(request: web.Request) -> web.Response:
        return _answer(health.alive)

    async def readyz(request: web.Request) -> web.Response:
        return _answer(health.ready)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=health.metrics.text(), content_type="text/plain")

    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", metrics)
    return application


def _answer(checks: tuple[Check, ...]) -> web.Response:
    """200 and every check's name, or 503 and the problems."""
    problems = {check.name: check.problem() for check in checks}
    lines = [f"{name}: {problem or 'ok'}" for name, problem in problems.items()]
    is_well = not any(problems.values())
    return web.Response(text="\n".join(lines) + "\n", status=200 if is_well else 503)
