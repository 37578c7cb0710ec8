"""Parses objects that others wrote: one that cannot be parsed is ignored, counted and logged, and nothing else stops.

Anyone who may create a pod can put our labels on it, so an error here must cost no more than that object.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_operator import clock
from megatron_trainjob import shown

Object = Mapping[str, Any]
LOG_INTERVAL_S = 60.0
MAX_LOGGED_CHARACTERS = 300
logger = logging.getLogger(__name__)


class Unreadable(ValueError):
    """The object is not what its labels and owner claim; the message says why."""


@dataclass(kw_only=True)
class LogLimit:
    """Lets one log line of a kind pass per `interval_s` and counts the others."""

    interval_s: float = LOG_INTERVAL_S
    _last: dict[str, tuple[float, int]] = field(default_factory=dict)

    def suppressed(self, kind: str) -> int | None:
        """How many lines of this kind were suppressed since the last one, None if this one is suppressed too."""
        now = clock.now()
        logged_at, held_back = self._last.get(kind, (float("-inf"), 0))
        if now - logged_at < self.interval_s:
            self._last[kind] = (logged_at, held_back + 1)
            return None
        self._last[kind] = (now, 0)
        return held_back


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Parses objects of any content. count: called with the resource of each object that could not be parsed."""

    count: Callable[[str], None] = lambda resource: None
    limit: LogLimit = field(default_factory=LogLimit)

    def read[Record](self, resource: str, read: Callable[[Object], Record], raw: Object) -> Record | None:
        """What `read` returns for the object, None if it raises."""
        try:
            return read(raw)
        except Exception as error:  # noqa: BLE001  # a foreign object may break its parser in any way
            self._report(resource, raw, error)
            return None

    def read_all[Record](
        self, resource: str, read: Callable[[Object], Record], objects: Iterable[Object]
    ) -> list[Record]:
        """The records of the objects that can be parsed."""
        records = (self.read(resource, read, raw) for raw in objects)
        return [record for record in records if record is not None]

    def _report(self, resource: str, raw: Object, error: Exception) -> None:
        self.count(resource)
        held_back = self.limit.suppressed(resource)
        if held_back is not None:
            logger.warning(
                "unreadable object ignored resource=%s object=%s error=%s more=%d",
                resource,
                shortened(_name(raw), MAX_LOGGED_CHARACTERS),
                shortened(f"{type(error).__name__}: {error}", MAX_LOGGED_CHARACTERS),
                held_back,
            )


def shortened(value: object, max_characters: int) -> str:
    """The text without secrets, control characters and halves of surrogate pairs, cut; "" for anything but text."""
    if not isinstance(value, str):
        return ""
    value = shown.without_secrets(value[: 2 * max_characters])
    if not value.isprintable():
        text = value.encode(errors="replace").decode()
        value = "".join(each if each.isprintable() or each in "\n\t" else " " for each in text)
    return value[:max_characters]


def whole_number(value: object, *, largest: int, smallest: int | None = None) -> int | None:
    """The value if it is a whole number between the bounds (by default from -largest - 1), else None."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if (-largest - 1 if smallest is None else smallest) <= value <= largest else None


def _name(raw: Object) -> str:
    try:
        return f"{raw['metadata'].get('namespace', '')}/{raw['metadata']['name']}"
    except Exception:  # noqa: BLE001
        return "?"
