"""Items of data that is too large to prepare: read, tokenized and packed during training, in bounded memory.

Rows are assigned in turn to lanes, as many as the run had data-parallel ranks when it started, and each lane processes
its rows in windows, independently:
    rows 0 1 2 3 4 5 6 7 8 ...   2 lanes, windows of 2 rows a lane
    lane 0: window 0 = rows 0 2, window 1 = rows 4 6      lane 1: window 0 = rows 1 3, window 1 = rows 5 7
A window is shuffled, encoded and packed. Item n of the run is item n // lanes of lane n % lanes, and rank r of d ranks
reads the items r, r + d, r + 2d ...: its own lane, or, in a run that resumes with another number of ranks, several
lanes or parts of some. The next items of a lane depend only on the number of items it has yielded before, so a run
resumes exactly from its count of consumed samples; a journal avoids tokenizing all of them again. Every rank reads all
files but tokenizes only the rows of its lanes; no rank waits for another.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import batched, cycle, islice
from pathlib import Path

import numpy as np

from megatron_trainer.data.collate import round_up, split
from megatron_trainer.data.encoding.encode import Encoded, Encoder, log_notes, to_item
from megatron_trainer.data.ordering.sample import Segment
from megatron_trainer.data.row import Record
from megatron_trainer.data.storage.tokenize import refuse_first_bad
from megatron_trainer.data.streaming import journal
from megatron_trainer.data.streaming.journal import Note
from megatron_trainer.data.streaming.pack import Waiting, pack_window
from megatron_trainer.data.streaming.rows import Mixture
from megatron_trainer.data.values import Item, Pair, Rejection, Sample
from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The streamed data and its settings. Has no length.

    window_rows: rows of one lane that are shuffled and packed together. packing_length: tokens of a packed row, None
    disables packing. sample_multiple: each sequence counts as this multiple when packing. notes: folder of the journal.
    """

    mixture: Mixture
    encoder: Encoder
    window_rows: int
    shuffle: bool
    seed: int
    packing_length: int | None
    sample_multiple: int
    is_strict: bool
    notes: Path


@dataclass(frozen=True, kw_only=True)
class StreamSampler:
    """The position of a rank in a stream; the counterpart of sample.Sampler for datasets.

    consumed_samples: items that all ranks together read since the start of the run.
    history: the segments of the run so far; its first layout determines the number of lanes.
    num_epochs: passes after which this rank's items end (not at the same item on all ranks); None never ends.
    """

    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int
    consumed_samples: int = 0
    history: tuple[Segment, ...] = ()
    num_epochs: int | None = None

    @property
    def num_lanes(self) -> int:
        """Data-parallel ranks at the start of the run."""
        return self.history[0].data_parallel_size if self.history else self.data_parallel_size


def micro_batches_of(stream: Stream, sampler: StreamSampler) -> Iterator[list[Item]]:
    """Yields the items of each micro-batch of this rank; an incomplete last one is dropped.

    Raises InvalidInput at a bad row when the stream is strict, TrainingError when a whole pass has no usable row.
    """
    batches = batched(_items(stream, sampler), sampler.micro_batch_size)
    return (list(batch) for batch in batches if len(batch) == sampler.micro_batch_size)


def _items(stream: Stream, sampler: StreamSampler) -> Iterator[Item]:
    """The items of this rank, from its lanes in turn; they end when one of the lanes ends."""
    lanes, ranks = sampler.num_lanes, sampler.data_parallel_size
    first = sampler.consumed_samples + sampler.data_parallel_rank
    step = ranks // math.gcd(lanes, ranks)  # distance between the items of a lane that this rank reads
    readers = [
        islice(_Lane(stream, number % lanes, lanes, sampler.num_epochs).items(number // lanes), 0, None, step)
        for number in range(first, first + math.lcm(lanes, ranks), ranks)
    ]
    for reader in cycle(readers):
        item = next(reader, None)
        if item is None:
            return
        yield item


@dataclass(frozen=True, kw_only=True)
class _Numbered:
    """An item and the number of its row in the epoch."""

    number: int
    item: Sample | Pair


def _lengths(encoded: Encoded, item: Sample | Pair) -> list[int]:
    """Tokens of each sequence of a row."""
    if encoded.is_grouped and isinstance(item, Sample):
        return [member.length for member in split(item)]
    return [len(ids) for ids in encoded.input_ids]


class _Lane:
    """The iteration of one lane over a stream."""

    def __init__(self, stream: Stream, lane: int, lanes: int, num_epochs: int | None) -> None:
        self._stream = stream
        self._lane, self._lanes = lane, lanes
        self._num_epochs = num_epochs
        self._journal = stream.notes / f"lane-{lane}-of-{lanes}.jsonl"
        self._dropped: Counter[str] = Counter()
        self._told: set[str] = set()

    def items(self, given: int) -> Iterator[Item]:
        """All items after the first `given`."""
        note = journal.latest(self._journal, given)
        skipped = given - note.items
        for window in self._windows(note):
            yield from window[skipped:]
            skipped = max(0, skipped - len(window))

    def _windows(self, note: Note) -> Iterator[list[Item]]:
        """The items of each window, starting with the one after the note."""
        while self._num_epochs is None or note.epoch < self._num_epochs:
            at_start = note
            rows = self._my_rows(note.epoch)
            waiting = self._wait_again(self._pass_over(rows, note), note)
            for records, is_last in _with_last(batched(rows, self._stream.window_rows)):
                items, waiting = self._window(records, waiting, note, is_last=is_last)
                yield items
                note = Note(
                    items=note.items + len(items),
                    epoch=note.epoch,
                    window=note.window + 1,
                    waiting=tuple((entry.item.number, entry.rounds) for entry in waiting),
                )
                if not is_last:
                    journal.add(self._journal, note)
            self._refuse_empty(note, at_start)
            self._tell_dropped(note.epoch)
            note = Note(items=note.items, epoch=note.epoch + 1, window=0)
            journal.add(self._journal, note)

    def _my_rows(self, epoch: int) -> Iterator[_Row]:
        numbered = enumerate(self._stream.mixture.epoch(epoch))
        return ((number, record) for number, record in numbered if number % self._lanes == self._lane)

    def _pass_over(self, rows: Iterator[_Row], note: Note) -> dict[int, Record]:
        """Skip to the note's window; returns the skipped rows that wait to be packed."""
        wanted = {number for number, _ in note.waiting}
        passed = islice(rows, note.window * self._stream.window_rows)
        return {number: record for number, record in passed if number in wanted}

    def _wait_again(self, records: dict[int, Record], note: Note) -> list[Waiting[_Numbered]]:
        entries = {entry.item.number: entry for entry in self._encoded(list(records.items()))}
        return [replace(entries[number], rounds=rounds) for number, rounds in note.waiting]

    def _window(
        self, rows: Sequence[_Row], waiting: list[Waiting[_Numbered]], note: Note, *, is_last: bool
    ) -> tuple[list[Item], list[Waiting[_Numbered]]]:
        if self._stream.shuffle:
            generator = np.random.default_rng([self._stream.seed, 5, note.epoch, note.window, self._lane])
            rows = [rows[place] for place in generator.permutation(len(rows))]
        entries = self._encoded(rows)
        if self._stream.packing_length is None:
            return [entry.item.item for entry in entries], []
        packed, waiting = pack_window([*waiting, *entries], self._stream.packing_length, is_last=is_last)
        return [[numbered.item for numbered in row] for row in packed], waiting

    def _encoded(self, rows: Sequence[_Row]) -> list[Waiting[_Numbered]]:
        results = self._stream.encoder.encode([record for _, record in rows])
        self._report([result for result in results if isinstance(result, Rejection)])
        log_notes((result for result in results if isinstance(result, Encoded)), self._told)
        return [
            self._entry(number, result)
            for (number, _), result in zip(rows, results, strict=True)
            if isinstance(result, Encoded)
        ]

    def _entry(self, number: int, encoded: Encoded) -> Waiting[_Numbered]:
        item = to_item(encoded)
        multiple = self._stream.sample_multiple
        length = sum(round_up(length, multiple) for length in _lengths(encoded, item))
        return Waiting(item=_Numbered(number=number, item=item), length=length)

    def _report(self, rejections: Sequence[Rejection]) -> None:
        """Stop at a bad row when strict; else log the first row of each reason."""
        if self._stream.is_strict:
            refuse_first_bad(rejections)
        for rejection in rejections:
            if rejection.reason not in self._dropped:
                logger.warning("dropped a row, and will drop all others like it: %s", rejection)
            self._dropped[rejection.reason] += 1

    def _tell_dropped(self, epoch: int) -> None:
        if self._dropped:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in self._dropped.most_common())
            logger.warning("rows dropped so far epoch=%d lane=%d: %s", epoch, self._lane, reasons)

    def _refuse_empty(self, note: Note, at_start: Note) -> None:
        if at_start.window == 0 and note.items == at_start.items:
            reasons = "; ".join(sorted(self._dropped)) or "there are fewer rows than data-parallel ranks"
            message = f"a whole pass over the streamed data has no usable row for data-parallel rank {self._lane}"
            raise TrainingError(ExitCode.BAD_DATA, f"dataset: {message}: {reasons}")


_Row = tuple[int, Record]
"""A row and its number in the epoch."""


def _with_last[Element](elements: Iterator[Element]) -> Iterator[tuple[Element, bool]]:
    """Yields each element and whether it is the last."""
    ahead = next(elements, None)
    while ahead is not None:
        current, ahead = ahead, next(elements, None)
        yield current, ahead is None
