"""The CRC-32 of a file, which several threads read: a checkpoint is verified before anything is loaded from it, and one
thread reads slower than a good volume delivers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from zlib_ng import zlib_ng

PART_BYTES: Final = 128 << 20
"""What one thread reads before it takes another part."""
BLOCK_BYTES: Final = 4 << 20
MOST_THREADS: Final = 4


def crc32_of(path: Path) -> tuple[int, int]:
    """Checksum, as zlib computes it, and size in bytes of a file, which is read completely. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        part = partial(_part, file.fileno())
        starts = range(0, os.fstat(file.fileno()).st_size, PART_BYTES)
        if len(starts) <= 1:
            return part(0)
        with ThreadPoolExecutor(min(MOST_THREADS, len(starts))) as pool:
            return _joined(pool.map(part, starts))


def _part(descriptor: int, start: int) -> tuple[int, int]:
    """Of a part of the file."""
    block = memoryview(bytearray(BLOCK_BYTES))
    checksum, size_bytes = 0, 0
    while left := block[: PART_BYTES - size_bytes]:
        num_read = os.preadv(descriptor, [left], start + size_bytes)
        if not num_read:
            break
        checksum, size_bytes = zlib_ng.crc32(left[:num_read], checksum), size_bytes + num_read
    return checksum, size_bytes


def _joined(parts: Iterator[tuple[int, int]]) -> tuple[int, int]:
    checksum, size_bytes = next(parts)
    for each, length in parts:
        checksum, size_bytes = zlib_ng.crc32_combine(checksum, each, length), size_bytes + length
    return checksum, size_bytes
