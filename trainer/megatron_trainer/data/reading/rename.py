"""Renames the columns of one dataset's rows, before those that `columns` renames in all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from megatron_trainer.data.reading.source import Source
from megatron_trainer.data.row import Record, parse_row
from megatron_trainer.data.values import RowError


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """The rows of `whole`. columns: new names by the old ones, which are matched in any case if not exactly."""

    whole: Source
    columns: Mapping[str, str]

    @property
    def note(self) -> str:
        """The source's note."""
        return self.whole.note

    def records(self) -> Iterator[Record]:
        """All rows; one that cannot be read, or whose columns would get the same name, carries the reason."""
        lower = {name.lower(): target for name, target in self.columns.items()}
        return (replace(record, payload=self._payload(record, lower)) for record in self.whole.records())

    def _payload(self, record: Record, lower: Mapping[str, str]) -> Mapping[str, object] | RowError:
        renamed: dict[str, object] = {}
        try:
            for name, value in parse_row(record.payload).items():
                target = self.columns.get(name) or lower.get(str(name).lower(), name)
                if target in renamed and renamed[target] != value:
                    raise RowError(f"two columns mean {target}", f"{name} is one; correct the columns of the entry")
                renamed[target] = value
        except RowError as err:
            return err
        return renamed

    @property
    def manner(self) -> str:
        """A key of this way of reading the source."""
        return f"renamed {json.dumps(dict(self.columns), sort_keys=True)}"

    def fingerprint(self) -> str:
        """A digest of the source and of this way of reading it."""
        return f"{self.whole.fingerprint()} {self.manner}"
