"""The pure core's output: values that a cluster applies. No decision is made here.

A cluster applies a plan in this order and stops at the first error, to reconcile again later:
status, then delete (all at once), patch, create (in the given order), events. The status goes first because
it is the write-ahead record: a new attempt is persisted before a pod of the old one is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Ref:
    """One object of the job's namespace to delete. `uid` is a precondition where it is known."""

    api_version: str
    kind: str
    name: str
    uid: str | None = None
    grace_period_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A merge patch of one object of the job's namespace, or of a part of it (status)."""

    api_version: str
    kind: str
    name: str
    body: Object
    subresource: str = ""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event about the job. A recorder aggregates equal ones into one object with a count.

    of: the transition that it reports, such as "attempt 3"; it is then posted once, however often it is emitted.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    of: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The output of one reconcile.

    status: the whole new status, None if the stored one is up to date or the next reconcile writes it.
    create: complete objects with owner reference; "already exists" with our uid as owner counts as done.
    requeue_s: reconcile again after so many seconds even if nothing happens; None when only a change can matter.
    """

    status: Object | None = None
    delete: tuple[Ref, ...] = ()
    patch: tuple[Patch, ...] = ()
    create: tuple[Object, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_s: float | None = None
