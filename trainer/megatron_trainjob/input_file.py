"""Reads untrusted files: whatever they contain, reading ends in bounded time and memory, with a reason on failure.

A named pipe never ends, a device has no size, and a few kilobytes of JSON brackets become gigabytes of objects.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_BYTES = 16 * 2**20
"""Limit for a configuration, a template, a list of words: the largest published ones have a tenth of it."""
MAX_TABLE_BYTES = 64 * 2**20
"""Limit for a tokenizer's vocabulary or an index of weights, which have a line for every token or tensor."""
MAX_PARTS = 4_000_000
"""Limit of lists and objects in one JSON text: each takes at least 64 bytes, however short its text."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_POINTER_BYTES = 1024


class UnfitFile(ValueError):
    """The path is not a readable file; the message gives the reason and the remedy."""


def check(path: Path, *, most_bytes: int | None = None) -> None:
    """Returns if this is a regular file of at most this many bytes. Raises UnfitFile, or OSError as stat does."""
    status = path.stat()
    kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), None)
    if kind:
        raise UnfitFile(f"{path} is {kind}; pass a file")
    if most_bytes is not None and status.st_size > most_bytes:
        raise UnfitFile(f"{path} has {status.st_size} bytes, expected at most {most_bytes}; it is no such file")
    if len(_POINTER) < status.st_size < _MOST_POINTER_BYTES:
        _refuse_pointer(path)


def _refuse_pointer(path: Path) -> None:
    """Raises UnfitFile for what git leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UnfitFile(f"{path} is a pointer of Git LFS and not the file itself; fetch it with git lfs pull")


def read_bytes(path: Path, *, most_bytes: int = MAX_BYTES) -> bytes:
    """The content. Raises UnfitFile if it is not a file or too large, and OSError."""
    check(path, most_bytes=most_bytes)
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:  # in /proc, or still being written
        raise UnfitFile(f"{path} has more than {most_bytes} bytes; it is no such file")
    return content


def read_text(path: Path, *, most_bytes: int = MAX_BYTES) -> str:
    """The content of a UTF-8 file, without a byte order mark and with line ends of \\n, as open() reads it.

    Raises ValueError (UnfitFile, or invalid UTF-8) and OSError.
    """
    text = read_bytes(path, most_bytes=most_bytes).decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, *, most_bytes: int = MAX_BYTES) -> Any:  # noqa: ANN401 - JSON holds anything
    """The value that a JSON file holds. Raises ValueError for any problem with its content, and OSError."""
    return parse_json(read_bytes(path, most_bytes=most_bytes))


def parse_json(content: bytes | str, *, object_of: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:  # noqa: ANN401 - JSON holds anything
    """The value of a JSON text; object_of: builds an object from its fields, in order.

    Raises ValueError, also for excessive nesting or too many parts.
    """
    if len(content) > MAX_PARTS and _num_brackets(content) > MAX_PARTS:
        raise ValueError(f"has more than {MAX_PARTS} lists and objects")
    try:
        return json.loads(content, object_pairs_hook=object_of)
    except RecursionError as err:
        raise ValueError("is nested too deeply") from err


def _num_brackets(content: bytes | str) -> int:
    if isinstance(content, bytes):
        return content.count(b"[") + content.count(b"{")
    return content.count("[") + content.count("{")
