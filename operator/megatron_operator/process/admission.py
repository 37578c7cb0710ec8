"""The optional admission webhook: responds to a submitted job with all of its problems in one message.

The rules are in the core; the operator applies the same ones again, so the webhook may be disabled safely.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web

from megatron_operator.api import names
from megatron_operator.core.job import Job
from megatron_operator.manifest import parse
from megatron_operator.process import listener
from megatron_operator.process.listener import Address, Limits

HANDLER = "validate"
LIMITS = Limits(connections=256, connections_of_source=128, idle_s=300.0)
MAX_BODY_BYTES = 8 * 2**20  # an API server sends both the old and the new object
PLACEHOLDER_UID = "not-created-yet"


def register(registry: kopf.OperatorRegistry) -> None:
    """Adds the webhook, served under /validate."""

    @kopf.on.validate(names.GROUP, names.VERSION, names.PLURAL, id=HANDLER, registry=registry)
    async def validate(body: Mapping[str, Any], warnings: list[str], **_: object) -> None:
        problem, remarks = judge(dict(body))
        warnings += remarks
        if problem:
            raise kopf.AdmissionError(problem, code=422)


def judge(body: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(all problems of this manifest, one a line, "" if it can run; its warnings)."""
    metadata = {"uid": PLACEHOLDER_UID, "generation": 1, **body["metadata"]}
    if "deletionTimestamp" in metadata:
        return "", []
    parsed = parse({**body, "metadata": metadata})
    if isinstance(parsed, Job):
        return "", [str(warning) for warning in parsed.warnings]
    return "\n".join(str(violation) for violation in parsed), []


def server(certificates: Path, port: int) -> kopf.WebhookServerProtocol:
    """The HTTPS endpoint with the certificate from this directory; a renewed one is reloaded without a restart."""

    async def serve(review: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        application = web.Application(client_max_size=MAX_BODY_BYTES)

        async def answer(request: web.Request) -> web.Response:
            return await _answer(request, review)

        application.router.add_post("/{id}", answer)
        address = Address(host="", port=port, certificates=certificates)
        serving = asyncio.create_task(listener.serve(application, address, LIMITS))
        try:
            yield kopf.WebhookClientConfig(url=f"https://localhost:{port}")
            await serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    return serve


async def _answer(request: web.Request, review: kopf.WebhookFn) -> web.Response:
    """kopf's answer to an AdmissionReview; 400 for anything else."""
    try:
        body = json.loads(await request.read())
        answer = await review(body, webhook=request.match_info["id"], headers=dict(request.headers))
    except Exception as error:  # noqa: BLE001  # anyone who reaches the port may send anything
        return web.Response(status=400, text=f"not an AdmissionReview of a job: {type(error).__name__}\n")
    return web.json_response(answer)
