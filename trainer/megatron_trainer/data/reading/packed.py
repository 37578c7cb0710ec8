"""The content of compressed files, read in order and within a bound: a decompression bomb ends with a reason."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": lambda path: pyarrow.input_stream(str(path), compression="zstd"),
}
PACKED = tuple(_OPENERS)
"""Endings of compressed files."""


def opened(path: Path, *, most_bytes: int) -> BinaryIO:
    """The content of a compressed file. Reading raises an error once it is longer than this, or damaged."""
    return io.BufferedReader(_Unpacked(path, most_bytes))


class _Unpacked(io.RawIOBase):
    """The content of a compressed file."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._most_bytes = self._bytes_left = most_bytes
        self._file = _OPENERS[path.suffix.lower()](path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if (offset, whence) != (0, 0):
            raise io.UnsupportedOperation("only to the beginning")
        self._file.close()
        self._file = _OPENERS[self._path.suffix.lower()](self._path)
        return 0

    def tell(self) -> int:
        return self._most_bytes - self._bytes_left

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        found = self._file.read1(len(view))
        view[: len(found)] = found
        self._bytes_left -= len(found)
        if self._bytes_left < 0:
            raise zlib.error(f"it grows to more than {self._most_bytes} bytes, which no text does")
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()
