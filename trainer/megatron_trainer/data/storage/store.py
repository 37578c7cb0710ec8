"""Tokenized rows on disk: written once, row by row, and then memory-mapped.

A store is a folder: input_ids.bin and weights.bin hold all sequences end to end, offsets.npy has the start of each,
numbers.npy and channels.npy are per row, as are the targets in targets.npy if rows have any; store.json holds counts
and the reasons of rejections. Images have files of their own (media.py).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.storage import array_file
from megatron_trainer.data.storage.chunk import Chunk
from megatron_trainer.data.storage.media import MediaTable, MediaWriter
from megatron_trainer.data.values import IGNORED, Location, Pair, Rejection, Sample
from megatron_trainjob import input_file

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Rows rejected for one reason: how many, and the first of them."""

    count: int
    first: Rejection


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """The content of store.json. sequences_per_row: 1, or 2 for chosen and rejected. notes: remarks about kept rows,
    with the number of rows.

    is_grouped: each sequence is a group of them (values.Sample).
    """

    sequences_per_row: int
    weight_type: str
    channels: tuple[str, ...]
    num_rows: int
    num_truncated: int
    dropped: dict[str, Dropped]
    notes: dict[str, int] = field(default_factory=dict)
    is_grouped: bool = False


class StoreWriter:
    """Appends chunks to a new store. Nothing can be read before `close`."""

    def __init__(self, directory: Path, *, sequences_per_row: int, is_weighted: bool, is_grouped: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._sequences_per_row = sequences_per_row
        self._is_grouped = is_grouped
        self._weight_type = np.dtype(np.float32 if is_weighted else np.uint8)
        self._input_ids: BinaryIO = (directory / "input_ids.bin").open("wb")
        self._weights: BinaryIO = (directory / "weights.bin").open("wb")
        self._lengths: list[NDArray[np.int32]] = []
        self._numbers: list[NDArray[np.int64]] = []
        self._channel_codes: dict[str, int] = {}
        self._row_channels: list[NDArray[np.int32]] = []
        self._targets: list[NDArray[np.float32]] = []
        self._dropped: dict[str, Dropped] = {}
        self._notes: Counter[str] = Counter()
        self._num_rows = 0
        self._num_truncated = 0
        self._media = MediaWriter(directory)
        self._num_sequences = 0

    def append(self, chunk: Chunk) -> None:
        """Add the rows of a chunk after those already there."""
        chunk.input_ids.tofile(self._input_ids)
        if chunk.weights.dtype == np.float32 and self._weight_type == np.uint8:
            self._widen()
        chunk.weights.astype(self._weight_type, copy=False).tofile(self._weights)
        self._notes.update(chunk.notes)
        self._lengths.append(chunk.lengths)
        self._media.append(chunk.media, self._num_sequences)
        self._num_sequences += len(chunk.lengths)
        self._numbers.append(chunk.numbers)
        codes = [self._code(channel) for channel in chunk.channels]
        self._row_channels.append(np.array(codes, dtype=np.int32))
        if chunk.targets.size:
            self._targets.append(chunk.targets)
        for rejection in chunk.rejections:
            known = self._dropped.get(rejection.reason)
            self._dropped[rejection.reason] = (
                replace(known, count=known.count + 1) if known else Dropped(count=1, first=rejection)
            )
        self._num_rows += chunk.num_rows
        self._num_truncated += chunk.num_truncated

    def account(self, *, num_rows: int, num_truncated: int, dropped: dict[str, Dropped]) -> None:
        """Replace the row counts, for rows that were counted elsewhere."""
        self._num_rows, self._num_truncated, self._dropped = num_rows, num_truncated, dict(dropped)

    def close(self) -> None:
        """Write the rest: offsets, numbers, channels and the facts."""
        self._input_ids.close()
        self._weights.close()
        self._media.close()
        lengths = np.concatenate([np.zeros(1, np.int32), *self._lengths])
        np.save(self._directory / "offsets.npy", np.cumsum(lengths, dtype=np.int64))
        np.save(self._directory / "numbers.npy", np.concatenate([np.empty(0, np.int64), *self._numbers]))
        np.save(self._directory / "channels.npy", np.concatenate([np.empty(0, np.int32), *self._row_channels]))
        if self._targets:
            np.save(self._directory / "targets.npy", np.concatenate(self._targets))
        facts = StoreFacts(
            sequences_per_row=self._sequences_per_row,
            weight_type=self._weight_type.name,
            channels=tuple(self._channel_codes),
            num_rows=self._num_rows,
            num_truncated=self._num_truncated,
            dropped=self._dropped,
            notes=dict(self._notes),
            is_grouped=self._is_grouped,
        )
        (self._directory / "store.json").write_text(json.dumps({"version": VERSION, **asdict(facts)}))

    def _widen(self) -> None:
        """Weights other than 0 and 1 have occurred: rewrite the previous ones in the wider type."""
        path = self._directory / "weights.bin"
        self._weights.close()
        aside = path.with_name("weights.part")
        _map(path, "uint8").astype(np.float32).tofile(aside)
        os.replace(aside, path)
        self._weights = path.open("ab")
        self._weight_type = np.dtype(np.float32)

    def _code(self, channel: str | None) -> int:
        return -1 if channel is None else self._channel_codes.setdefault(channel, len(self._channel_codes))


class Store:
    """The rows of a finished store.

    Raises:
        ValueError: its files are not a store, or are inconsistent. OSError: one cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts = _read_facts(directory)
        self.offsets: NDArray[np.int64] = array_file.read(directory / "offsets.npy", np.int64, 1)
        self.numbers: NDArray[np.int64] = array_file.read(directory / "numbers.npy", np.int64, 1)
        self._channels: NDArray[np.int32] = array_file.read(directory / "channels.npy", np.int32, 1)
        targets = directory / "targets.npy"
        self._targets: NDArray[np.float32] | None = (
            array_file.read(targets, np.float32, 2) if targets.exists() else None
        )
        self._input_ids = _map(directory / "input_ids.bin", "int32")
        self._weights = _map(directory / "weights.bin", self.facts.weight_type)
        self.media = MediaTable(directory, len(self.numbers) * self.facts.sequences_per_row)
        self._check()

    def _check(self) -> None:
        """Checks that the files are consistent: otherwise later reads would silently return other rows, or none."""
        rows, tokens = len(self.numbers), len(self._input_ids)
        channels = self._channels
        fits = {
            "offsets.npy": len(self.offsets) == rows * self.facts.sequences_per_row + 1
            and (self.offsets[0], self.offsets[-1]) == (0, tokens)
            and bool((self.offsets[1:] >= self.offsets[:-1]).all()),
            "weights.bin": len(self._weights) == tokens,
            "channels.npy": len(channels) == rows and int(channels.max(initial=-1)) < len(self.facts.channels),
            "targets.npy": self._targets is None or len(self._targets) == rows,
        }
        wrong = [name for name, is_right in fits.items() if not is_right]
        if wrong:
            raise ValueError(f"{self.directory}: {', '.join(wrong)} does not fit the other files")

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.directory,)  # another process maps the files itself instead of receiving a copy

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> Sample | Pair:
        """The row as a sample, or as a pair if the store has chosen and rejected sequences."""
        channel, target = self._channel(row), self._target(row)
        if self.facts.sequences_per_row == 1:
            return replace(self._sample(row, channel), target=target)
        chosen, rejected = self._sample(2 * row, channel), self._sample(2 * row + 1, channel)
        return Pair(chosen=chosen, rejected=rejected, target=target)

    @property
    def num_rows(self) -> int:
        """Rows of the dataset, rejected ones included."""
        return self.facts.num_rows

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, int64[rows, sequences_per_row]."""
        return np.diff(self.offsets).reshape(-1, self.facts.sequences_per_row)

    def padded_lengths(self, multiple: int) -> NDArray[np.int64]:
        """Tokens of each row with each sequence padded to the multiple; an upper bound for groups."""
        if self.facts.is_grouped and multiple > 1:
            members = np.diff(np.searchsorted(np.flatnonzero(self._weights), self.offsets))
            padded: NDArray[np.int64] = self.lengths[:, 0] + members * (multiple - 1)
        else:
            padded = (-(-self.lengths // multiple) * multiple).sum(axis=1)
        return padded

    @cached_property
    def num_trained_tokens(self) -> int:
        """Number of tokens with loss."""
        return int(np.count_nonzero(self._weights))

    def has_targets(self) -> bool:
        """Whether its rows have targets."""
        return self._targets is not None

    def _target(self, row: int) -> tuple[float, ...]:
        return () if self._targets is None else tuple(self._targets[row].tolist())

    def _channel(self, row: int) -> str | None:
        code = int(self._channels[row])
        return None if code < 0 else self.facts.channels[code]

    def _sample(self, sequence: int, channel: str | None) -> Sample:
        start, end = int(self.offsets[sequence]), int(self.offsets[sequence + 1])
        input_ids = np.array(self._input_ids[start:end])
        weights = self._weights[start:end]
        is_weighted = self.facts.weight_type == "float32"
        return Sample(
            input_ids=input_ids,
            labels=np.where(weights > 0, input_ids, np.int32(IGNORED)),
            loss_scale=np.array(weights) if is_weighted else None,
            channel=channel,
            media=self.media.of(sequence),
        )


def merge_dropped(parts: Sequence[dict[str, Dropped]]) -> dict[str, Dropped]:
    """All rejections by reason, with the first example of each."""
    merged: dict[str, Dropped] = {}
    for part in parts:
        for reason, dropped in part.items():
            known = merged.get(reason)
            merged[reason] = replace(known, count=known.count + dropped.count) if known else dropped
    return merged


def _map(path: Path, dtype: str) -> NDArray:  # type: ignore[type-arg]
    input_file.check(path)
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, np.dtype(dtype))
    return np.memmap(path, dtype=dtype, mode="r")


def _read_facts(directory: Path) -> StoreFacts:
    content = input_file.read_json(directory / "store.json", most_bytes=input_file.MAX_TABLE_BYTES)
    try:
        version = content.pop("version")
        content["channels"] = tuple(content["channels"])
        content["dropped"] = {
            reason: Dropped(count=int(entry["count"]), first=_rejection(entry["first"]))
            for reason, entry in content["dropped"].items()
        }
        facts = StoreFacts(**content)
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"{directory}/store.json does not describe a store ({err!r})") from err
    if version != VERSION:
        raise ValueError(f"{directory} was written by another version of the trainer; tokenize the data again")
    if facts.sequences_per_row not in (1, 2) or facts.weight_type not in ("uint8", "float32"):
        raise ValueError(f"{directory}/store.json does not describe a store")
    return facts


def _rejection(fields: Mapping[str, Any]) -> Rejection:
    return Rejection(**{**fields, "location": Location(**fields["location"])})
