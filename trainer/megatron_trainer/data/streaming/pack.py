"""Online packing: windows of items are packed, and rows with room left wait for the next window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_trainer.data.ordering.pack import best_fit

GOOD_FILL = 0.995
MOST_WAITING = 0.25
MOST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Waiting[Entry]:
    """An item that waits for a better row. rounds: number of windows it has waited."""

    item: Entry
    length: int
    rounds: int = 0


def pack_window[Entry](
    entries: Sequence[Waiting[Entry]], row_length: int, *, is_last: bool
) -> tuple[list[list[Entry]], list[Waiting[Entry]]]:
    """Rows of the entries' items, and the entries that wait for the next window (none when this is the last one).

    A row waits when it is not full, at most a quarter of the rows, the emptiest first; no item waits more than
    MOST_ROUNDS times, so memory stays bounded by a window and no item is left over.
    """
    rows = best_fit([entry.length for entry in entries], row_length)
    for row in rows:
        row.sort()
    rows.sort(key=lambda row: row[0])
    late = set() if is_last else _to_wait(rows, entries, row_length)
    ready = [[entries[place].item for place in row] for number, row in enumerate(rows) if number not in late]
    waiting = [
        Waiting(item=entries[place].item, length=entries[place].length, rounds=entries[place].rounds + 1)
        for number in sorted(late)
        for place in rows[number]
    ]
    return ready, waiting


def _to_wait[Entry](rows: list[list[int]], entries: Sequence[Waiting[Entry]], row_length: int) -> set[int]:
    filled = {number: sum(entries[place].length for place in row) for number, row in enumerate(rows)}
    able = [
        number
        for number, row in enumerate(rows)
        if filled[number] < GOOD_FILL * row_length and all(entries[place].rounds < MOST_ROUNDS for place in row)
    ]
    able.sort(key=lambda number: (filled[number], number))
    return set(able[: max(1, int(len(rows) * MOST_WAITING))])
