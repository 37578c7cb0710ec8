"""Splits rows with two answers into two rows with one: the chosen one desirable, the rejected one not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import batched

from megatron_trainer.data.conversation.columns import Row, named
from megatron_trainer.data.conversation.preference import is_labeled, is_paired
from megatron_trainer.data.reading.source import Source
from megatron_trainer.data.row import Record, parse_row
from megatron_trainer.data.values import RowError

ROWS_AT_ONCE = 1000
"""Rows per block in which rejected answers follow all chosen ones, so that answers to one prompt are not adjacent."""


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """The rows of `whole`, renumbered. columns: the user's names of columns, as in Recognition."""

    whole: Source
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """The source's note."""
        return self.whole.note

    def records(self) -> Iterator[Record]:
        """All rows with one answer, each with its own label or the one assigned here."""
        parts = batched(self.whole.records(), ROWS_AT_ONCE)
        split = (record for part in parts for record in unpaired(part, self.columns))
        return (replace(record, number=number) for number, record in enumerate(split))

    @property
    def manner(self) -> str:
        """A key of this way of reading the source: all that decides which rows have two answers."""
        return f"unpaired {json.dumps(dict(self.columns), sort_keys=True)}"

    def fingerprint(self) -> str:
        """A digest of the source and of this way of reading it."""
        return f"{self.whole.fingerprint()} {self.manner}"


def unpaired(records: Iterable[Record], columns: Mapping[str, str]) -> list[Record]:
    """First all rows, those with two answers labeled true; then the latter again, labeled false.

    A row that already has a label stays one row.
    """
    first, second = [], []
    for record in records:
        row = _pair(record, columns)
        if row is None:
            first.append(record)
        else:
            first.append(replace(record, payload={**row, "label": True}))
            second.append(replace(record, payload={**row, "label": False}))
    return [*first, *second]


def _pair(record: Record, columns: Mapping[str, str]) -> Row | None:
    """The fields of an unlabeled row with two answers; None for any other row, or one that the encoder will refuse."""
    try:
        row = parse_row(record.payload)
        known = named(row, columns)
    except RowError:
        return None
    return row if is_paired(known) and not is_labeled(known) else None
