"""A cache of one resource's objects that belong to jobs, kept up to date by list and watch, as small records.

Keeps only what `read` makes of an object: 8,000 raw pods would be 60 MB of dicts. Decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.resource import Resource
from megatron_operator.core.observe import is_job, job_name
from megatron_operator.guard import Guard

Object = Mapping[str, Any]
Key = tuple[str, str]
PAGE_SIZE = 500
WATCH_S = 290
BACKOFF_S = (0.5, 30.0)
MAX_TOMBSTONES = 20_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry[Record]:
    """One cached object. `version` is its resourceVersion, which grows with every change."""

    uid: str
    owner_uid: str
    version: int
    record: Record


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """An informer's callbacks: a job's children changed and, for metrics, watch events and ends.

    guard: parses the objects, and counts those that cannot be parsed.
    """

    changed: Callable[[Key], None]
    event: Callable[[str, str], None] = lambda resource, type_: None
    restarted: Callable[[str], None] = lambda resource: None
    guard: Guard = Guard()


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What to cache: a resource of the given namespaces (None: all) with the job label.

    metadata_only fetches no specs. silence_s: a watch without even a bookmark for so long is dead.
    """

    resource: Resource
    namespaces: tuple[str | None, ...] = (None,)
    metadata_only: bool = False
    silence_s: float = 90.0
    selector: str = names.LABEL_JOB_NAME


@dataclass(kw_only=True)
class Stream:
    """State of the list and watch of one namespace."""

    namespace: str | None
    version: str | None = None
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    heard_at: float = 0.0


class Informer[Record]:
    """The records of one resource by job. `run` keeps them up to date until cancelled."""

    def __init__(
        self,
        client: Client,
        scope: Scope,
        read: Callable[[Object], Record],
        listeners: Listeners,
        removed: Callable[[Key, str, Record], None] = lambda key, owner_uid, record: None,
    ) -> None:
        """`removed` is called with job, uid of the owner and last record of each deleted object."""
        self._client = client
        self._removed = removed
        self._scope = scope
        self._read = read
        self._listeners = listeners
        self._jobs: dict[Key, dict[str, Entry[Record]]] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._streams = [Stream(namespace=namespace) for namespace in scope.namespaces]

    def of(self, key: Key, owner_uid: str) -> dict[str, Record]:
        """The records of this job's objects by name, without those of an earlier job of the same name."""
        entries = self._jobs.get(key, {})
        return {name: entry.record for name, entry in entries.items() if entry.owner_uid == owner_uid}

    def of_others(self, key: Key, owner_uid: str) -> dict[str, Record]:
        """The records of objects of earlier jobs of the same name."""
        entries = self._jobs.get(key, {})
        return {name: entry.record for name, entry in entries.items() if entry.owner_uid != owner_uid}

    async def synced(self) -> None:
        """Returns once every namespace has been listed."""
        await asyncio.gather(*(stream.synced.wait() for stream in self._streams))

    @property
    def is_synced(self) -> bool:
        """Whether every namespace has been listed."""
        return all(stream.synced.is_set() for stream in self._streams)

    @property
    def silence_s(self) -> float:
        """Seconds since the quietest stream last received something."""
        return asyncio.get_running_loop().time() - min(stream.heard_at for stream in self._streams)

    async def run(self) -> None:
        """Lists and watches forever."""
        async with asyncio.TaskGroup() as group:
            for stream in self._streams:
                stream.heard_at = asyncio.get_running_loop().time()
                group.create_task(self._follow(stream))

    def put(self, raw: Object) -> None:
        """Stores an object that the server just returned, so that we read our own writes.

        An object that no job owns is ignored, one that cannot be parsed changes nothing.
        """
        self._listeners.guard.read(self._scope.resource.plural, self._put, raw)

    def _put_shown(self, raw: Object) -> None:
        """Stores an object from a list or watch. A deleted one may return where only its label had been removed."""
        self._tombstones.pop(raw["metadata"]["uid"], None)
        self.put(raw)

    def drop(self, raw: Object) -> None:
        """Removes a deleted object."""
        self._listeners.guard.read(self._scope.resource.plural, self._drop, raw)

    def _put(self, raw: Object) -> None:
        metadata, key, owner_uid = raw["metadata"], _key(raw), _owner_uid(raw)
        if key is None or metadata["uid"] in self._tombstones:
            return
        if owner_uid is None:
            self._remove(key, metadata["name"], metadata["uid"])
            return
        version = int(metadata["resourceVersion"])
        known = self._jobs.get(key, {}).get(metadata["name"])
        if known and known.uid == metadata["uid"] and known.version >= version:
            return
        entry = Entry(uid=metadata["uid"], owner_uid=owner_uid, version=version, record=self._read(raw))
        self._jobs.setdefault(key, {})[metadata["name"]] = entry
        self._listeners.changed(key)

    def _drop(self, raw: Object) -> None:
        metadata, key = raw["metadata"], _key(raw)
        if key is None:
            return
        self._tombstones[metadata["uid"]] = None
        if len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)
        self._remove(key, metadata["name"], metadata["uid"])

    def _remove(self, key: Key, name: str, uid: str) -> None:
        entries = self._jobs.get(key, {})
        if name in entries and entries[name].uid == uid:
            entry = entries.pop(name)
            self._removed(key, entry.owner_uid, entry.record)
            if not entries:
                del self._jobs[key]
            self._listeners.changed(key)

    async def _follow(self, stream: Stream) -> None:
        failures = 0
        while True:
            try:
                await self._list_and_watch(stream)
                failures = 0
            except ApiError as error:
                if error.is_gone:
                    stream.version = None
                failures = 0 if error.reason == "WatchBroken" else failures + 1
                logger.warning(
                    "watch ended resource=%s namespace=%s error=%s",
                    self._scope.resource.plural,
                    stream.namespace or "*",
                    error,
                )
                self._listeners.restarted(self._scope.resource.plural)
                first_s, longest_s = BACKOFF_S
                await asyncio.sleep(min(longest_s, first_s * 2**failures) * random.uniform(0.5, 1.0))

    async def _list_and_watch(self, stream: Stream) -> None:
        if stream.version is None:
            stream.version = await self._list(stream)
            stream.synced.set()
        parameters = {
            "labelSelector": self._scope.selector,
            "resourceVersion": stream.version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S + random.randrange(30)),
        }
        events = self._client.watch(
            self._scope.resource,
            stream.namespace,
            parameters,
            metadata_only=self._scope.metadata_only,
            silence_s=self._scope.silence_s,
        )
        async for event in events:
            self._take(stream, event)

    def _take(self, stream: Stream, event: Object) -> None:
        """Applies one watch event to the cache and advances the stream's position."""
        type_, raw = event["type"], event["object"]
        self._listeners.event(self._scope.resource.plural, type_)
        stream.heard_at = asyncio.get_running_loop().time()
        if type_ == "ERROR":
            raise ApiError(raw.get("code", 500), raw.get("reason", ""), raw.get("message", ""))
        stream.version = raw["metadata"]["resourceVersion"]
        if type_ in ("ADDED", "MODIFIED"):
            self._put_shown(raw)
        elif type_ == "DELETED":
            self.drop(raw)

    async def _list(self, stream: Stream) -> str:
        """Lists everything and drops what no longer exists; returns the version to watch from."""
        found: set[tuple[Key, str]] = set()
        parameters = {"labelSelector": self._scope.selector, "limit": str(PAGE_SIZE)}
        while True:
            page = await self._client.list_page(
                self._scope.resource, stream.namespace, parameters, metadata_only=self._scope.metadata_only
            )
            stream.heard_at = asyncio.get_running_loop().time()
            for raw in page["items"] or ():
                self._put_shown(raw)
                if key := _key(raw):
                    found.add((key, raw["metadata"]["name"]))
            following = page["metadata"].get("continue")
            if not following:
                version: str = page["metadata"]["resourceVersion"]
                self._forget(stream.namespace, found, int(version))
                return version
            parameters = {**parameters, "continue": following}

    def _forget(self, namespace: str | None, found: set[tuple[Key, str]], version: int) -> None:
        """Drops what a list at `version` did not contain; objects created since then stay."""
        gone = [
            (key, name, entry.uid)
            for key, entries in self._jobs.items()
            if namespace in (None, key[0])
            for name, entry in entries.items()
            if entry.version <= version and (key, name) not in found
        ]
        for key, name, uid in gone:
            self._remove(key, name, uid)


def _key(raw: Object) -> Key | None:
    """The job that the object belongs to, None without owner and label (which another client may have removed)."""
    name = job_name(raw)
    return (raw["metadata"]["namespace"], name) if name else None


def _owner_uid(raw: Object) -> str | None:
    """Uid of the job that is the controlling owner, None if there is none or it is not a job."""
    owners = raw["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if is_job(owner)), None)
