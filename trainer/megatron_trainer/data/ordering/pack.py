"""Packs whole items tightly into rows of at most `length` tokens. Items are never cut; a longer item gets its own row.

Best fit over buckets: items are placed from the longest to the shortest, each into the open row that it fills best.
Open rows are indexed by their remaining room, and a bit set records which sizes exist, so finding the row is one
operation on a big integer instead of a search: near-linear in the number of items.

    length 8, items of 5 3 6 2 4:  rows [6 2] [5 3] [4]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Row r holds the items order[starts[r]:starts[r+1]], in the order of the dataset."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1


def pack(lengths: Sequence[int] | NDArray[np.int64], row_length: int) -> Packing:
    """The rows of items with these lengths. Deterministic. Rows are in the order of their first items."""
    rows = best_fit([int(length) for length in lengths], row_length)
    for row in rows:
        row.sort()
    rows.sort(key=lambda row: row[0])
    sizes = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    order = np.fromiter((item for row in rows for item in row), np.int64, int(sizes.sum()))
    return Packing(order=order, starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Lists of item indices whose lengths sum to at most row_length (or a single longer item)."""
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # room left -> rows with that room
    rooms = 0  # bit r is set while some row has room r
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        length = lengths[item]
        fitting = rooms >> length
        if length < row_length and fitting:
            room = length + ((fitting & -fitting).bit_length() - 1)
            waiting = open_rows[room]
            row = waiting.pop()
            if not waiting:
                rooms ^= 1 << room
            rows[row].append(item)
            room -= length
        else:
            row = len(rows)
            rows.append([item])
            room = row_length - length
        if room > 0:
            waiting = open_rows.setdefault(room, [])
            if not waiting:
                rooms |= 1 << room
            waiting.append(row)
    return rows


def fill(lengths: NDArray[np.int64], packing: Packing, row_length: int) -> float:
    """Share of the rows' tokens that belong to items."""
    total = len(packing) * row_length
    return float(lengths.sum() / total) if total else 0.0
