"""Items that are tokenized on access: training starts at once and tokens need no disk space, for lazy_tokenize.

An unusable row is found only then; the next usable row replaces it, so that every rank reads equally many.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.encoding.encode import Encoded, Encoder, log_notes, to_item
from megatron_trainer.data.row import Record, as_json
from megatron_trainer.data.storage import array_file
from megatron_trainer.data.storage.tokenize import refuse_first_bad
from megatron_trainer.data.values import Pair, RowError, Sample
from megatron_trainer.failure import TrainingError
from megatron_trainjob import input_file
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)

MOST_TRIES = 11
_ALL = -1
"""Means all answers of a row."""


def write_rows(records: Iterable[Record], directory: Path) -> None:
    """Write the rows end to end, with an index, so that any of them can be read at once."""
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, int] = {}
    ends, places = [0], []
    with (directory / "rows.bin").open("wb") as stream:
        for record in records:
            content = _content(record)
            stream.write(content)
            ends.append(ends[-1] + len(content))
            answer = _ALL if record.answer is None else record.answer
            places.append((files.setdefault(record.file, len(files)), record.line, answer))
    np.save(directory / "ends.npy", np.array(ends, dtype=np.int64))
    np.save(directory / "places.npy", np.array(places, dtype=np.int64).reshape(-1, 3))
    (directory / "files.json").write_text(json.dumps(list(files)))


def _content(record: Record) -> bytes:
    """JSON text; an unreadable row becomes text that cannot be parsed, so that it is rejected later."""
    match record.payload:
        case bytes():
            return record.payload
        case RowError():
            return f"unreadable: {record.payload}".encode(errors="replace")
        case _:
            return json.dumps(record.payload, default=as_json).encode()


class LazyStore:
    """Rows written by `write_rows`, tokenized at each access. Same interface for items as store.Store.

    Raises:
        ValueError: the files are inconsistent. OSError: one cannot be opened.
    """

    def __init__(self, directory: Path, encoder: Encoder, *, is_strict: bool = False) -> None:
        self.directory = directory
        self._encoder = encoder
        self._is_strict = is_strict
        self._told: set[str] = set()
        self._ends: NDArray[np.int64] = array_file.read(directory / "ends.npy", np.int64, 1)
        self._places: NDArray[np.int64] = array_file.read(directory / "places.npy", np.int64, 2)
        most_bytes = input_file.MAX_TABLE_BYTES
        self._files: list[str] = input_file.read_json(directory / "files.json", most_bytes=most_bytes)
        input_file.check(directory / "rows.bin")
        has_rows = (directory / "rows.bin").stat().st_size > 0
        self._rows = np.memmap(directory / "rows.bin", mode="r") if has_rows else np.empty(0, np.uint8)
        self._check()

    def _check(self) -> None:
        ends, places = self._ends, self._places
        is_list = isinstance(self._files, list) and all(isinstance(name, str) for name in self._files)
        fits = {
            "ends.npy": len(ends) == len(places) + 1
            and (ends[0], ends[-1]) == (0, len(self._rows))
            and bool((ends[1:] >= ends[:-1]).all()),
            "places.npy": places.shape[1] == 3,
            "files.json": is_list
            and int(places[:, :1].min(initial=0)) >= 0
            and int(places[:, :1].max(initial=-1)) < len(self._files),
        }
        wrong = [name for name, is_right in fits.items() if not is_right]
        if wrong:
            raise ValueError(f"{self.directory}: {', '.join(wrong)} does not fit the other files")

    def __reduce__(self) -> tuple[object, ...]:
        return partial(LazyStore, is_strict=self._is_strict), (self.directory, self._encoder)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> Sample | Pair:
        """The row as a sample or pair, or the next usable one.

        Raises InvalidInput if the row is bad and the store strict, TrainingError if too many rows are bad.
        """
        for place in range(row, row + MOST_TRIES):
            [result] = self._encoder.encode([self._record(place % len(self))])
            if isinstance(result, Encoded):
                log_notes([result], self._told)
                return to_item(result)
            if self._is_strict:
                refuse_first_bad([result])
            logger.warning("the next row replaces one that cannot be used: %s", result)
        message = f"dataset: {MOST_TRIES} rows in succession cannot be used, the last one is {result}"
        raise TrainingError(ExitCode.BAD_DATA, f"{message}; set lazy_tokenize: false to see all problems")

    @property
    def num_rows(self) -> int:
        """Rows of the dataset, good and bad."""
        return len(self)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Position of each row in its dataset."""
        return np.arange(len(self))

    def _record(self, number: int) -> Record:
        file, line, answer = self._places[number].tolist()
        content = self._rows[self._ends[number] : self._ends[number + 1]].tobytes()
        return Record(number, self._files[file], line, content, answer=None if answer == _ALL else answer)
