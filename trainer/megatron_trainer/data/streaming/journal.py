"""Records the position of a stream after some items: notes on disk that make resuming fast."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_trainjob import input_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Note:
    """Before window `window` of epoch `epoch`, the lane had yielded `items` items; these rows wait to be packed.

    waiting: (row number in the epoch, windows it has waited) of each row, in the order they wait in.
    """

    items: int
    epoch: int
    window: int
    waiting: tuple[tuple[int, int], ...] = ()


START = Note(items=0, epoch=0, window=0)


def add(path: Path, note: Note) -> None:
    """Append a note. Several processes may write the same notes at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(note)).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def latest(path: Path, items: int) -> Note:
    """The last note at or before the given number of items; the start if there is none."""
    best = START
    try:
        lines = input_file.read_bytes(path, most_bytes=input_file.MAX_TABLE_BYTES).splitlines()
    except FileNotFoundError:
        return best
    except (OSError, ValueError) as err:
        logger.warning("the journal of a stream cannot be read, so the stream restarts from its beginning: %s", err)
        return best
    for line in lines:
        note = _parse(line)
        if note is not None and best.items <= note.items <= items and _order(note) > _order(best):
            best = note
    return best


def _order(note: Note) -> tuple[int, int]:
    return note.epoch, note.window


def _parse(line: bytes) -> Note | None:
    """None for a truncated or invalid line."""
    try:
        fields = input_file.parse_json(line)
        waiting = tuple((int(row), int(rounds)) for row, rounds in fields.pop("waiting"))
        return Note(waiting=waiting, **{name: int(number) for name, number in fields.items()})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
