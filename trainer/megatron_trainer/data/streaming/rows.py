"""The rows of several datasets as one stream: concatenated or interleaved, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from megatron_trainer.data.reading.source import Source
from megatron_trainer.data.row import Record


@dataclass(frozen=True, kw_only=True)
class StreamSource:
    """One dataset of a stream; num_rows: only this many from its start, None for all."""

    source: Source
    num_rows: int | None = None

    def records(self) -> Iterator[Record]:
        """The rows, read one by one."""
        return islice(self.source.records(), self.num_rows)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How datasets are combined into one stream. probabilities: None concatenates them."""

    sources: tuple[StreamSource, ...]
    probabilities: tuple[float, ...] | None = None
    stopping: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    seed: int = 42

    def epoch(self, number: int) -> Iterator[Record]:
        """All rows of one epoch. Its mixture is sampled for each epoch from seed and number only."""
        if self.probabilities is None:
            return (record for source in self.sources for record in source.records())
        return self._interleaved(np.random.default_rng([self.seed, 2, number]))

    def _interleaved(self, generator: np.random.Generator) -> Iterator[Record]:
        """As interleave.interleave, without knowing the sizes: a dataset is exhausted when it has no next row."""
        readers = [_Repeating(source) for source in self.sources]
        shares = np.asarray(self.probabilities, dtype=np.float64)
        while True:
            for which in generator.choice(len(readers), size=1024, p=shares / shares.sum()):
                record = readers[which].next()
                if record is None:
                    return
                yield record
                if self._is_over(readers):
                    return

    def _is_over(self, readers: Sequence[_Repeating]) -> bool:
        over = (reader.is_exhausted for reader in readers)
        return any(over) if self.stopping == "first_exhausted" else all(over)


class _Repeating:
    """Reads a dataset cyclically, one row ahead, so that it detects the last row."""

    def __init__(self, source: StreamSource) -> None:
        self._source = source
        self._records = source.records()
        self._ahead = next(self._records, None)
        self.is_exhausted = self._ahead is None

    def next(self) -> Record | None:
        record = self._ahead
        self._ahead = next(self._records, None)
        if self._ahead is None:
            self.is_exhausted = True
            self._records = self._source.records()
            self._ahead = next(self._records, None)
        return record
