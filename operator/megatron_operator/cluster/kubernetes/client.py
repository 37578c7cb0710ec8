"""HTTP client of the Kubernetes API server: one session, bounded parallel requests, one error type.

The only caller of the API besides kopf's own watch of the jobs. Knows resources and verbs, nothing about jobs.
Raw dicts in, raw dicts out: typed client objects cost ten times the CPU (docs/decisions).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import orjson

from megatron_operator.cluster.kubernetes.connection import Connection
from megatron_operator.cluster.kubernetes.resource import EVENT, LEASE, Resource

Object = Mapping[str, Any]
Verb = Literal["get", "list", "create", "update", "patch", "delete"]
METHODS: dict[Verb, str] = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}
MERGE_PATCH = "application/merge-patch+json"
JSON = "application/json"
AS_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
AS_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
USER_AGENT = "megatron-train-operator/0.1"
UNCHECKED = {"fieldValidation": "Ignore"}
"""Spares the server the search for fields that it does not know: it would only warn of them, in a header."""
MAX_THROTTLED_TRIES = 6
MAX_PAUSE_S = 30.0
# Events have a limit of their own (EventRateLimit), and leases a priority of their own: neither says how busy the
# server is for others. A lease is renewed while others pause, or its leader would lose it.
APART = frozenset({EVENT, LEASE})
OF_WEBHOOK = "admission webhook "
"""How the server's message begins when a webhook rejects; it wraps the webhook's status, with code and causes."""
# A webhook may delay a write for 30 s; the server then names it, which a client that timed out earlier never sees.
WRITE_TIMEOUT_S = 35.0
DEFAULT_RETRY_AFTER_S = 1.0
logger = logging.getLogger(__name__)


class ApiError(Exception):
    """The API server rejected a request, or could not be reached (status 0). fields: the rejected parts."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after_s: float | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.fields = fields

    @property
    def is_of_webhook(self) -> bool:
        """Whether somebody's webhook rejects the request, with a status that may be any: it says nothing of objects."""
        return self.message.startswith(OF_WEBHOOK)

    @property
    def is_missing(self) -> bool:
        """Whether the object, or its whole resource, does not exist."""
        return self.status == 404 and not self.is_of_webhook

    @property
    def is_conflict(self) -> bool:
        """Whether the object changed since it was read."""
        return self.status == 409 and self.reason != "AlreadyExists" and not self.is_of_webhook

    @property
    def already_exists(self) -> bool:
        """Whether an object with this name exists."""
        return self.status == 409 and self.reason == "AlreadyExists" and not self.is_of_webhook

    @property
    def is_throttling(self) -> bool:
        """Whether the server is too busy for any request."""
        return self.status == 429 and not self.is_of_webhook

    @property
    def is_validation(self) -> bool:
        """Whether the server's own validation rejects the object, permanently, unlike a webhook or policy."""
        if self.is_of_webhook:
            return False
        is_invalid = self.status == 422 and bool(self.fields) and " is invalid: " in self.message
        return is_invalid or (self.status == 400 and " cannot be handled as a " in self.message)

    @property
    def is_gone(self) -> bool:
        """Whether a list or watch has to start over."""
        return self.status == 410


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request and its outcome, for metrics. `code` 0: no response."""

    verb: str
    resource: str
    code: int
    seconds: float


class Client:
    """Requests to one API server.

    Creates have their own limit, so that a burst of them never delays deletes and status writes. A 429 of the server
    pauses every request until its Retry-After has passed, one of a webhook none.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        max_parallel_creates: int = 32,
        max_parallel_requests: int = 32,
        timeout_s: float = 10.0,
        on_request: Callable[[Request], None] = lambda request: None,
    ) -> None:
        self._connection = connection
        self._creates = asyncio.Semaphore(max_parallel_creates)
        self._others = asyncio.Semaphore(max_parallel_requests)
        self._read_timeout = _timeout(timeout_s)
        self._write_timeout = _timeout(max(timeout_s, WRITE_TIMEOUT_S))
        self._on_request = on_request
        self._resume_at = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._connection.ssl, keepalive_timeout=30),
            headers={"User-Agent": USER_AGENT},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The object, or None if it does not exist."""
        try:
            return await self.request("get", resource, resource.path(namespace, name))
        except ApiError as error:
            if error.is_missing:
                return None
            raise

    async def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        """The object as the server created it."""
        return await self.request("create", resource, resource.path(namespace), body=body, parameters=UNCHECKED)

    async def update(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        """The object as replaced; its resourceVersion is a precondition."""
        path = resource.path(namespace, body["metadata"]["name"])
        return await self.request("update", resource, path, body=body, parameters=UNCHECKED)

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Object, *, subresource: str = ""
    ) -> Object:
        """The object after a merge patch. A resourceVersion in the body's metadata is a precondition."""
        path = resource.path(namespace, name, subresource)
        return await self.request("patch", resource, path, body=body, content_type=MERGE_PATCH, parameters=UNCHECKED)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        grace_period_s: int | None = None,
    ) -> Object | None:
        """The server's response, or None if the object (or the one with this uid) no longer exists."""
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        try:
            return await self.request("delete", resource, resource.path(namespace, name), body=options)
        except ApiError as error:
            if error.is_missing or (error.is_conflict and uid):
                return None
            raise

    async def list_page(
        self, resource: Resource, namespace: str | None, parameters: Mapping[str, str], *, metadata_only: bool
    ) -> Object:
        """One page of a list; `metadata.continue` leads to the next."""
        accept = AS_METADATA_LIST if metadata_only else JSON
        path = resource.path(namespace)
        return await self.request("list", resource, path, parameters=parameters, accept=accept)

    async def request(
        self,
        verb: Verb,
        resource: Resource,
        path: str,
        *,
        body: Object | None = None,
        content_type: str = JSON,
        parameters: Mapping[str, str] | None = None,
        accept: str = JSON,
    ) -> Object:
        """The decoded response. Retries when the server is too busy (429); raises ApiError for any other error."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type, "Accept": accept, **self._connection.headers()}
        limiter = self._creates if verb == "create" else self._others
        for tries_left in reversed(range(1 if resource in APART else MAX_THROTTLED_TRIES)):
            if resource is not LEASE:
                await self._until_resumed()
            async with limiter:
                try:
                    return await self._send(verb, resource, path, data, headers, parameters)
                except ApiError as error:
                    if not error.is_throttling or not tries_left:
                        raise
                    self._pause(min(error.retry_after_s or DEFAULT_RETRY_AFTER_S, MAX_PAUSE_S))
        raise AssertionError("the last try returns or raises")

    async def _send(
        self,
        verb: Verb,
        resource: Resource,
        path: str,
        data: bytes | None,
        headers: Mapping[str, str],
        parameters: Mapping[str, str] | None,
    ) -> Object:
        loop = asyncio.get_running_loop()
        timeout = self._read_timeout if METHODS[verb] == "GET" else self._write_timeout
        started, code = loop.time(), 0
        try:
            async with self._open(METHODS[verb], path, data, headers, parameters, timeout) as response:
                payload = await response.read()
                code = response.status
                if code >= 400:
                    raise api_error(code, payload, response.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", str(error) or type(error).__name__) from error
        finally:
            seconds = loop.time() - started
            self._on_request(Request(verb=verb, resource=resource.plural, code=code, seconds=seconds))
        return _decoded(payload)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        parameters: Mapping[str, str],
        *,
        metadata_only: bool = False,
        silence_s: float = 90.0,
    ) -> AsyncIterator[Object]:
        """Watch events until the server ends the stream.

        Raises ApiError when the server refuses, the connection breaks, or nothing (not even a bookmark) came
        for `silence_s`: a dead connection looks like a quiet one.
        """
        accept = AS_METADATA if metadata_only else JSON
        headers = {"Accept": accept, **self._connection.headers()}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence_s)
        query = {**parameters, "watch": "true"}
        try:
            async with self._open("GET", resource.path(namespace), None, headers, query, timeout) as response:
                if response.status >= 400:
                    raise api_error(response.status, await response.read(), response.headers)
                async for line in _lines(response.content):
                    yield _decoded(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "WatchBroken", str(error) or type(error).__name__) from error

    async def read_text(
        self, resource: Resource, namespace: str, name: str, subresource: str, parameters: Mapping[str, str]
    ) -> AsyncIterator[bytes]:
        """A plain-text subresource, streamed (a pod's log, followed). Raises ApiError."""
        headers = {"Accept": "*/*", **self._connection.headers()}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        path = resource.path(namespace, name, subresource)
        try:
            async with self._open("GET", path, None, headers, parameters, timeout) as response:
                if response.status >= 400:
                    raise api_error(response.status, await response.read(), response.headers)
                async for chunk in response.content.iter_any():
                    yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", str(error) or type(error).__name__) from error

    def _open(
        self,
        method: str,
        path: str,
        data: bytes | None,
        headers: Mapping[str, str],
        parameters: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("use the client as `async with Client(...) as client`")
        url = self._connection.server + path
        return self._session.request(method, url, data=data, headers=headers, params=parameters, timeout=timeout)

    def _pause(self, seconds: float) -> None:
        """Delays every request for so long, with jitter so that they do not all resume at once."""
        loop = asyncio.get_running_loop()
        logger.warning("API server is busy, pausing seconds=%.1f", seconds)
        self._resume_at = max(self._resume_at, loop.time() + seconds * random.uniform(1.0, 1.1))

    async def _until_resumed(self) -> None:
        while (wait_s := self._resume_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait_s)


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    """Timeout of a whole request; connecting times out sooner."""
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 10.0))


def api_error(status: int, payload: bytes, headers: Mapping[str, str]) -> ApiError:
    """The server's response (a Status object, or plain text from a proxy) as an error."""
    try:
        answer = _loads(payload)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        answer = {"message": payload[:500].decode(errors="replace")}
    retry_after = headers.get("Retry-After", "")
    return ApiError(
        status,
        answer.get("reason") or "",
        answer.get("message") or "",
        float(retry_after) if retry_after.isdecimal() else None,
        _fields(answer),
    )


def _fields(answer: Object) -> tuple[str, ...]:
    """The fields named by the causes of a Status, such as status.progress.iteration."""
    details = answer.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    named = [cause.get("field") for cause in causes or () if isinstance(cause, dict)]
    return tuple(field for field in named if isinstance(field, str) and field)


def _decoded(payload: bytes) -> Object:
    """The response as an object. Anything else (a proxy's page, a truncated line) is an ApiError too."""
    try:
        decoded = _loads(payload)
    except (ValueError, RecursionError) as error:
        raise ApiError(0, "Unreadable", f"{type(error).__name__}: {error}"[:500]) from error
    if not isinstance(decoded, dict):
        raise ApiError(0, "Unreadable", f"the response is not an object but {type(decoded).__name__}")
    return decoded


def _loads(payload: bytes) -> Any:  # noqa: ANN401 (any JSON value)
    """The value, from orjson in a third of the time. What it refuses (deep nesting, half a surrogate pair), Python's
    decoder may still read.
    """
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return json.loads(payload)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length (StreamReader.readline rejects long ones)."""
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
