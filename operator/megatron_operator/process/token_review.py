"""Authenticates the token of a pushed report by TokenReview; results are cached for a while.

Rejections are cached briefly, and a source that sends many invalid tokens is ignored for a while: a flood
of them must not take API server capacity away from starting jobs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from megatron_operator import clock
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.resource import TOKEN_REVIEW
from megatron_operator.core import push
from megatron_operator.core.push import Reporter

ACCEPTED_S = 600.0
REFUSED_S = 10.0
MAX_REMEMBERED = 50_000
MAX_PARALLEL = 4
MAX_TOKEN_CHARACTERS = 8192
MAX_REFUSALS = 10  # from one source within REFUSED_S


class TooManyRefusals(Exception):
    """This source has sent too many invalid tokens; it may try again later."""


@dataclass(kw_only=True)
class _Memory[Value]:
    """A cache whose values expire, or are evicted when there are too many."""

    _values: OrderedDict[str, tuple[Value, float]] = field(default_factory=OrderedDict)

    def get(self, key: str) -> Value | None:
        value, until = self._values.get(key, (None, float("-inf")))
        return value if clock.now() < until else None

    def put(self, key: str, value: Value, until: float) -> None:
        self._values[key] = (value, until)
        self._values.move_to_end(key)
        if len(self._values) > MAX_REMEMBERED:
            self._values.popitem(last=False)


class TokenReviews:
    """Reviews tokens and caches the results."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._limit = asyncio.Semaphore(MAX_PARALLEL)
        self._accepted: _Memory[Reporter] = _Memory()
        self._refused: _Memory[bool] = _Memory()
        self._refusals: _Memory[int] = _Memory()

    async def reporter(self, token: str, namespace: str, audience: str, source: str) -> Reporter | None:
        """The pod that the token belongs to, None if it is invalid. Raises TooManyRefusals or ApiError."""
        digest = hashlib.sha256(f"{audience}\n{token}".encode()).hexdigest()
        if known := self._accepted.get(digest):
            return known
        if self._refused.get(digest):
            return None
        if (self._refusals.get(source) or 0) >= MAX_REFUSALS:
            raise TooManyRefusals(f"{MAX_REFUSALS} invalid tokens within {REFUSED_S:.0f} s")
        found = await self._ask(token, namespace, audience)
        now = clock.now()
        if found is None:
            self._refused.put(digest, True, now + REFUSED_S)
            self._refusals.put(source, (self._refusals.get(source) or 0) + 1, now + REFUSED_S)
        else:
            self._accepted.put(digest, found, min(now + ACCEPTED_S, push.expiry_for(token, audience) or now))
        return found

    async def _ask(self, token: str, namespace: str, audience: str) -> Reporter | None:
        """The API server's review; not requested for a token that cannot be valid for this audience."""
        expiry = push.expiry_for(token, audience) if len(token) <= MAX_TOKEN_CHARACTERS else None
        if expiry is None or expiry <= clock.now():
            return None
        async with self._limit:
            body = push.review(token, audience)
            answer = await self._client.request("create", TOKEN_REVIEW, TOKEN_REVIEW.path(None), body=body)
        return push.reporter(answer, namespace, audience)
