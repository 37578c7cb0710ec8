"""The checksum of a file that several threads read is zlib's of its bytes."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from megatron_trainjob import checksum
from megatron_trainjob.checksum import crc32_of

CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize("size_bytes", [0, 1, 999, 1000, 1001, 2000, 5 * 1000, len(CONTENT)])
def test_it_equals_zlibs_whatever_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int):
    monkeypatch.setattr(checksum, "PART_BYTES", 1000)
    monkeypatch.setattr(checksum, "BLOCK_BYTES", 300)
    path = tmp_path / "file"
    path.write_bytes(CONTENT[:size_bytes])
    assert crc32_of(path) == (zlib.crc32(CONTENT[:size_bytes]), size_bytes)


def test_a_flipped_bit_in_any_part_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checksum, "PART_BYTES", 1000)
    path = tmp_path / "file"
    found = set()
    for place in (0, 999, 1000, 5500, len(CONTENT) - 1):
        path.write_bytes(CONTENT[:place] + bytes([CONTENT[place] ^ 1]) + CONTENT[place + 1 :])
        found.add(crc32_of(path)[0])
    assert len(found) == 5
    assert zlib.crc32(CONTENT) not in found
