"""The optional admission webhook: answers a submitted job with every problem it has, in one message.

Rules lie in the core; the operator applies the same ones again, so that a webhook that is off costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kopf

from megatron_operator import names
from megatron_operator.job import Job
from megatron_operator.manifest import parse

HANDLER = "validate"
PLACEHOLDER_UID = "not-created-yet"


def register(registry: kopf.OperatorRegistry) -> None:
    """Adds the webhook, served under /validate."""

    @kopf.on.validate(names.GROUP, names.VERSION, names.PLURAL, id=HANDLER, registry=registry)
    async def validate(body: Mapping[str, Any], **_: object) -> None:
        problem = judge(dict(body))
        if problem:
            raise kopf.AdmissionError(problem, code=422)


def judge(body: Mapping[str, Any]) -> str | None:
    """Everything that is wrong with this manifest, one problem a line; None when it can run."""
    metadata = {"uid": PLACEHOLDER_UID, "generation": 1, **body["metadata"]}
    if "deletionTimestamp" in metadata:
        return None
    parsed = parse({**body, "metadata": metadata})
    return None if isinstance(parsed, Job) else "\n".join(str(violation) for violation in parsed)


def server(certificates: Path, port: int) -> kopf.WebhookServer:
    """The HTTPS endpoint with the certificate of this folder; a renewed one is read without a restart."""
    return kopf.WebhookServer(
        addr=None,  # every address, IPv4 and IPv6
        port=port,
        certfile=certificates / "tls.crt",
        pkeyfile=certificates / "tls.key",
    )
