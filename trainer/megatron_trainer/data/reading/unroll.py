"""Repeats each row once per trained answer, with the answer's index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from megatron_trainer.data.conversation.formats import Recognition, recognize
from megatron_trainer.data.encoding.turn_rows import num_rows
from megatron_trainer.data.reading.source import Source
from megatron_trainer.data.row import Record, parse_row
from megatron_trainer.data.values import RowError
from megatron_trainer.data.vision.rows import lifted


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """The rows of `whole`, renumbered. recognition, loss_scale: those of the encoder that will read them.

    sees: whether rows may have images.
    """

    whole: Source
    recognition: Recognition
    loss_scale: str
    sees: bool = False

    @property
    def note(self) -> str:
        """The source's note."""
        return self.whole.note

    def records(self) -> Iterator[Record]:
        """Each row, once per trained answer."""
        repeated = (
            replace(record, answer=answer) for record in self.whole.records() for answer in range(self._count(record))
        )
        return (replace(record, number=number) for number, record in enumerate(repeated))

    def _count(self, record: Record) -> int:
        """Number of trained answers; 1 for a row that the encoder will refuse."""
        try:
            row = parse_row(record.payload)
            if self.sees:
                row, _ = lifted(row, self.recognition.columns, has_rejected=self.recognition.needs_rejected)
            return num_rows(recognize(row, self.recognition).messages, self.loss_scale)
        except RowError:
            return 1

    @property
    def manner(self) -> str:
        """A key of this way of reading the source: all that the number of answers in a row depends on."""
        sees = " images" if self.sees else ""
        return f"split turns{sees} {self.loss_scale} {json.dumps(asdict(self.recognition), sort_keys=True)}"

    def fingerprint(self) -> str:
        """A digest of the source and of this way of reading it."""
        return f"{self.whole.fingerprint()} {self.manner}"
