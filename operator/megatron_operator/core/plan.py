"""What the pure core wants done: values that a cluster applies. No decision is taken here.

A cluster applies a plan in this order and stops at the first refusal, to reconcile again later:
status, then delete (all at once), patch, create (in the given order), events. The status goes first because
it is the write-ahead record: a new attempt is written down before a pod of the old one is touched.
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
    """One event about the job. A recorder turns equal ones into one object with a count.

    of: the transition that it tells of, such as "attempt 3"; it is posted once then, however often it is told.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    of: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that one reconcile wants done.

    status: the whole new status, None when the stored one is good as it is or the next reconcile writes it.
    create: complete objects with owner reference; "already exists" with our uid as owner counts as done.
    requeue_s: reconcile again after so many seconds even if nothing happens; None when only a change can matter.
    """

    status: Object | None = None
    delete: tuple[Ref, ...] = ()
    patch: tuple[Patch, ...] = ()
    create: tuple[Object, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_s: float | None = None
