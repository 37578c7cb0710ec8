"""The rows of a .json file: an array of any length read row by row, a single object, or (a common slip) lines of JSON.

Memory is bounded by the longest row, which may have as many bytes as a line of a .jsonl file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO, TypeGuard

from megatron_trainer.data.conversation.columns import KNOWN
from megatron_trainer.data.conversation.messages import ROLE_KEYS
from megatron_trainer.data.row import object_of, row_of
from megatron_trainer.data.values import RowError
from megatron_trainjob.input_file import MAX_PARTS, parse_json

CHUNK_BYTES = 2**20
_BLANK = " \t\r\n\ufeff"

Rows = Iterator[tuple[int, dict[str, object] | RowError]]


def is_array(stream: BinaryIO) -> bool:
    """Whether the text begins with an array; rewinds the stream."""
    while (found := stream.read(CHUNK_BYTES)).isspace():
        continue
    stream.seek(0)
    return found.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def whole(stream: BinaryIO, most_bytes: int) -> Iterator[dict[str, object] | RowError]:
    """The file as a single row; empty if it is not valid JSON."""
    content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        return
    objects = _Objects()
    try:
        yield objects.row(parse_json(content.decode("utf-8-sig"), object_of=objects))
    except UnicodeDecodeError as err:
        yield RowError("not UTF-8", f"byte {err.start} of the file")
    except ValueError:
        return


def array(stream: BinaryIO, most_bytes: int) -> Rows:
    """The rows of an array. Everything after invalid JSON cannot be read: it becomes one last row."""
    text = _Text(stream, most_bytes)
    number = 0
    try:
        text.skip("[")
        while not text.ends("]"):
            number += 1
            yield number, text.row()
            if not text.ends("]"):
                text.skip(",")
    except UnicodeDecodeError as err:
        yield number + 1, RowError("not UTF-8", f"in the file, {err.reason}")
    except ValueError as err:
        yield number or 1, RowError("not JSON", str(err))


def within(row: dict[str, object] | RowError) -> list[dict[str, object] | RowError]:
    """The rows of a file that is one object: itself, or those of its only list of rows ({"data": [...]})."""
    if isinstance(row, RowError) or any(name.lower() in KNOWN for name in row):
        return [row]
    lists = {name: value for name, value in row.items() if _are_rows(value)}
    if len(lists) > 1:
        return [
            RowError("the file is one object", f"it has lists of rows in {', '.join(lists)}; write one as an array")
        ]
    found: list[dict[str, object] | RowError] = next(iter(lists.values()), [row])
    return found


def _are_rows(value: object) -> TypeGuard[list[dict[str, object] | RowError]]:
    """Whether this is a list of objects that are no turns."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        return False
    return not any(key in entry for entry in value for key in ROLE_KEYS)


class _Objects:
    """Builds the objects of a row. refusal: of a name that stands twice in one of them; the row is read to its end."""

    def __init__(self) -> None:
        self.refusal: RowError | None = None

    def __call__(self, fields: list[tuple[str, object]]) -> dict[str, object]:
        try:
            return object_of(fields)
        except RowError as err:
            self.refusal = err
            return {}

    def row(self, value: object) -> dict[str, object] | RowError:
        """The value if it is a row, or the reason why it is not."""
        try:
            return self.refusal or row_of(value)
        except RowError as err:
            return err


class _Text:
    """A text of which a part is in memory: what has been read but not yet consumed."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream = stream
        self._most = most
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._objects = _Objects()
        self._json = json.JSONDecoder(object_pairs_hook=self._objects)
        self._held = ""
        self._place = 0
        self._is_whole = False

    def skip(self, mark: str) -> None:
        """Consumes the given character, which must come next."""
        found = self._next()
        if found != mark:
            raise ValueError(f"expected {mark!r}, found {found or 'the end of the file'!r}")
        self._place += 1

    def ends(self, mark: str) -> bool:
        """Whether the given character comes next."""
        return self._next() == mark

    def row(self) -> dict[str, object] | RowError:
        """The next value. Raises ValueError if there is none, or it is longer than a row may be."""
        self._next()
        while True:
            self._check_parts()
            self._objects.refusal = None
            try:
                value, self._place = self._json.raw_decode(self._held, self._place)
            except RecursionError as err:
                raise ValueError("is nested too deeply") from err
            except ValueError:
                if self._is_whole:
                    raise
                if len(self._held) - self._place > self._most:
                    raise ValueError(f"a row of more than {self._most} characters, or none") from None
                self._read(len(self._held))
            else:
                return self._objects.row(value)

    def _check_parts(self) -> None:
        if len(self._held) > MAX_PARTS and self._held.count("[") + self._held.count("{") > MAX_PARTS:
            raise ValueError(f"has more than {MAX_PARTS} lists and objects")

    def _next(self) -> str:
        """The next non-blank character, "" at the end."""
        while True:
            while self._place < len(self._held) and self._held[self._place] in _BLANK:
                self._place += 1
            if self._place < len(self._held) or self._is_whole:
                return self._held[self._place : self._place + 1]
            self._read(CHUNK_BYTES)

    def _read(self, size_bytes: int) -> None:
        found = self._stream.read(max(size_bytes, CHUNK_BYTES))
        self._is_whole = not found
        self._held = self._held[self._place :] + self._decoder.decode(found, final=self._is_whole)
        self._place = 0
