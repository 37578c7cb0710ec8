"""A row as stored in a file, and its parsed fields. Parsing is separate from reading: worker processes do it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_trainer.data.values import Location, RowError
from megatron_trainjob.input_file import parse_json

_SPEAKERS = frozenset({"role", "from"})
"""Keys of which a turn has one."""


@dataclass(frozen=True, slots=True)
class Record:
    """number: position of the row in its dataset, from 0. payload: JSON text, fields, or why the row is unreadable.

    answer: index of the trained answer that ends this row and is the only one trained; None trains all.
    """

    number: int
    file: str
    line: int
    payload: bytes | Mapping[str, object] | RowError
    answer: int | None = None

    @property
    def location(self) -> Location:
        """The location of the row."""
        return Location(file=self.file, line=self.line)


def parse_row(payload: bytes | Mapping[str, object] | RowError) -> Mapping[str, object]:
    """The fields of a row. Raises RowError when it is not UTF-8, not JSON, or not an object."""
    if isinstance(payload, RowError):
        raise payload
    if isinstance(payload, Mapping):
        return payload
    try:
        row = parse_json(payload.decode("utf-8-sig"), object_of=object_of)
    except UnicodeDecodeError as err:
        raise RowError("not UTF-8", f"byte {err.start} of the row") from err
    except ValueError as err:
        raise RowError("not JSON", str(err)) from err
    return row_of(row)


def row_of(value: object) -> dict[str, object]:
    """The row that a JSON value is: an object, or a list of turns. Raises RowError for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) and _SPEAKERS & turn.keys() for turn in value):
        return {"messages": value}
    raise RowError("a row is not an object", f"it is of type {type(value).__name__}")


def as_json(value: object) -> str:
    """A value that JSON cannot represent: bytes as a data URI, anything else as its text."""
    if isinstance(value, bytes | bytearray):
        return f"data:application/octet-stream;base64,{base64.b64encode(value).decode()}"
    return str(value)


def object_of(fields: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Raises RowError for a duplicate key, of which Python would keep only the last."""
    found = dict(fields)
    if len(found) != len(fields):
        twins = sorted({name for name, value in fields if found[name] != value})
        if twins:
            raise RowError("a name is used twice in an object", ", ".join(twins))
    return found
