"""The images and videos of a store: where each is, or its bytes if it was in the row or behind a URL.

media.npy has a row for each image or video, source_parts.npy one for each of its files (one for an image, one for each
frame of a video); media.bin holds paths and bytes end to end, the same bytes only once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.storage import array_file
from megatron_trainer.data.values import Medium, MediumFile
from megatron_trainjob import input_file

TABLE, PARTS, CONTENT = "media.npy", "source_parts.npy", "media.bin"
_COLUMNS, _LAST = 10, 8
"""Of media.npy: sequence, is_video, height, width, grid in time, rows and columns, first and last + 1 of its parts, and
the bits of seconds_per_step as a float64. _LAST: the column that counts the parts.
"""


class MediaWriter:
    """Appends the media of sequences; writes nothing for a store of text."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._rows: list[tuple[int, ...]] = []
        self._parts: list[tuple[int, int, int]] = []
        self._known: dict[tuple[bytes, bool], tuple[int, int]] = {}
        self._content: BinaryIO | None = None
        self._end = 0

    def append(self, media: Mapping[int, tuple[Medium, ...]], first_sequence: int) -> None:
        """Add those of a chunk, by number of the sequence in it."""
        for number, found in media.items():
            for medium in found:
                first = len(self._parts)
                self._parts += [self._part(source) for source in medium.sources]
                sizes, second = (*medium.size, *medium.grid), int(np.float64(medium.seconds_per_step).view(np.int64))
                row = (first_sequence + number, int(medium.is_video), *sizes, first, len(self._parts), second)
                self._rows.append(row)

    def close(self) -> None:
        """Write the tables."""
        if self._content is None:
            return
        self._content.close()
        np.save(self._directory / TABLE, np.array(self._rows, dtype=np.int64))
        np.save(self._directory / PARTS, np.array(self._parts, dtype=np.int64))

    def _part(self, source: MediumFile) -> tuple[int, int, int]:
        is_path = isinstance(source, str)
        content = source.encode() if isinstance(source, str) else source
        key = hashlib.sha256(content).digest(), is_path
        if key not in self._known:
            if self._content is None:
                self._content = (self._directory / CONTENT).open("wb")
            self._content.write(content)
            self._known[key] = self._end, self._end + len(content)
            self._end += len(content)
        return int(is_path), *self._known[key]


class MediaTable:
    """The media of a finished store, mapped. Raises ValueError if its files do not fit each other."""

    def __init__(self, directory: Path, num_sequences: int) -> None:
        self._table: NDArray[np.int64] = np.empty((0, _COLUMNS), np.int64)
        if not (directory / TABLE).exists():
            return
        self._table = array_file.read(directory / TABLE, np.int64, 2)
        self._parts: NDArray[np.int64] = array_file.read(directory / PARTS, np.int64, 2)
        input_file.check(directory / CONTENT)
        self._content = np.memmap(directory / CONTENT, mode="r")
        self._check(directory, num_sequences)

    def _check(self, directory: Path, num_sequences: int) -> None:
        table, parts = self._table, self._parts
        fits = (
            table.shape[1] == _COLUMNS
            and parts.shape[1] == 3
            and bool((np.diff(table[:, 0]) >= 0).all())
            and int(table[-1:, 0].max(initial=-1)) < num_sequences
            and int(table.min(initial=0)) >= 0
            and int(table[:, _LAST].max(initial=0)) <= len(parts)
            and int(parts.min(initial=0)) >= 0
            and int(parts[:, 2].max(initial=0)) <= len(self._content)
        )
        if not fits:
            raise ValueError(f"{directory}: {TABLE}, {PARTS} and {CONTENT} do not fit each other")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(is_video, height, width, grid in time, rows, columns) of each image and video, int64 [media, 6]."""
        return self._table[:, 1:7]

    @property
    def sequences(self) -> NDArray[np.int64]:
        """The sequence of each image and video."""
        return self._table[:, 0]

    def of(self, sequence: int) -> tuple[Medium, ...]:
        """The images and videos of a sequence, in order."""
        if not len(self._table):
            return ()
        first, last = np.searchsorted(self._table[:, 0], [sequence, sequence + 1])
        return tuple(self._medium(row.tolist()) for row in self._table[first:last])

    def _medium(self, row: list[int]) -> Medium:
        _, is_video, height, width, time, rows, columns, first, last, second = row
        sources = tuple(self._source(*part) for part in self._parts[first:last].tolist())
        return Medium(
            sources=sources,
            size=(height, width),
            grid=(time, rows, columns),
            is_video=bool(is_video),
            seconds_per_step=float(np.int64(second).view(np.float64)),
        )

    def _source(self, is_path: int, start: int, end: int) -> MediumFile:
        content = self._content[start:end].tobytes()
        return content.decode() if is_path else content
