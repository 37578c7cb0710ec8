"""The datasets that the sampler indexes: rows of several stores in any order, single or packed into longer rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_trainer.data.mismatch import joined
from megatron_trainer.data.storage.lazy import LazyStore
from megatron_trainer.data.storage.store import Store
from megatron_trainer.data.values import Pair, Sample


@dataclass(frozen=True, kw_only=True)
class Items:
    """Rows of stores: item i is row rows[i] of stores[which[i]]. Reads in place; takes 12 bytes per item.

    reference: per store, log-probabilities of its sequences under a reference model, float32 [rows, 1 or 2].
    mismatched_length: samples include their mismatched ones (mismatch.py), with prompt and answer of at most this many
    tokens in total: the answer is that of the previous row in the same store. reference then covers both.
    """

    stores: tuple[Store | LazyStore, ...]
    which: NDArray[np.int32]
    rows: NDArray[np.int64]
    reference: tuple[NDArray[np.float32], ...] | None = None
    mismatched_length: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample | Pair:
        store, row = int(self.which[index]), int(self.rows[index])
        item = self.stores[store][row]
        if self.reference is None:
            return item
        values = tuple(self.reference[store][row].tolist())
        if self.mismatched_length is None or isinstance(item, Pair):
            return replace(item, reference=values)
        other = replace(mismatched_in(self.stores[store], row, self.mismatched_length), reference=values[1:])
        return replace(item, reference=values[:1], mismatched=other)

    def __iter__(self) -> Iterator[Sample | Pair]:
        return (self[index] for index in range(len(self)))

    def take(self, order: NDArray[np.int64]) -> Items:
        """These items in another order; an item may occur several times or not at all."""
        return replace(self, which=self.which[order], rows=self.rows[order])

    def lengths(self, multiple: int = 1) -> NDArray[np.int64]:
        """Tokens of each item, with its sequences rounded up to the multiple. Unknown for lazily tokenized items."""
        lengths = np.empty(len(self), np.int64)
        for number, store in enumerate(self.stores):
            assert isinstance(store, Store)
            mine = self.which == number
            lengths[mine] = store.padded_lengths(multiple)[self.rows[mine]]
        return lengths


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """Rows of several items: row r holds items order[starts[r]:starts[r+1]]."""

    items: Items
    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[Sample | Pair]:
        return [self.items[int(item)] for item in self.order[self.starts[index] : self.starts[index + 1]]]

    def __iter__(self) -> Iterator[list[Sample | Pair]]:
        return (self[index] for index in range(len(self)))


Dataset = Items | PackedRows


def stores_of(dataset: Dataset) -> tuple[Store | LazyStore, ...]:
    """The stores that contain the rows of a dataset."""
    return (dataset.items if isinstance(dataset, PackedRows) else dataset).stores


def mismatched_in(store: Store | LazyStore, row: int, max_length: int) -> Sample:
    """The prompt of a row with the answer of the previous row; for the first row, that of the last."""
    prompt, answer = store[row], store[(row - 1) % len(store)]
    assert isinstance(prompt, Sample)
    assert isinstance(answer, Sample)
    return joined(prompt, answer, max_length)


def with_reference(
    dataset: Dataset, reference: Mapping[Path, NDArray[np.float32]], *, mismatched_length: int | None = None
) -> Dataset:
    """The dataset with the reference log-probabilities of its items, given per store folder.

    mismatched_length: as in Items.
    """
    known = tuple(reference[store.directory] for store in stores_of(dataset))
    if isinstance(dataset, PackedRows):
        return replace(dataset, items=replace(dataset.items, reference=known, mismatched_length=mismatched_length))
    return replace(dataset, reference=known, mismatched_length=mismatched_length)


def identity(dataset: Dataset) -> str:
    """A key of the items and their order: equal for equal data, seeds and packing, on every machine."""
    items = dataset.items if isinstance(dataset, PackedRows) else dataset
    digest = hashlib.sha256(repr([(store.directory.name, len(store)) for store in items.stores]).encode())
    arrays: list[NDArray[Any]] = [items.which, items.rows]
    if isinstance(dataset, PackedRows):
        arrays += [dataset.order, dataset.starts]
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


def items_of(store: Store | LazyStore) -> Items:
    """Items for all rows of a store, in order."""
    return Items(stores=(store,), which=np.zeros(len(store), np.int32), rows=np.arange(len(store)))


def concatenate(parts: Sequence[Items]) -> Items:
    """The items of all parts, one part after the other."""
    stores = tuple(dict.fromkeys(store for part in parts for store in part.stores))
    which = [_renumber(part, stores) for part in parts]
    return Items(
        stores=stores,
        which=np.concatenate([np.empty(0, np.int32), *which]),
        rows=np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)]),
    )


def _renumber(part: Items, stores: tuple[Store | LazyStore, ...]) -> NDArray[np.int32]:
    places = np.array([stores.index(store) for store in part.stores], np.int32)
    return places[part.which]
