"""Encodes all rows of a source into a store, in order, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import batched
from pathlib import Path

from megatron_trainer.data.encoding.encode import TOO_LONG, Encoder
from megatron_trainer.data.row import Record
from megatron_trainer.data.storage.chunk import Chunk, to_chunk
from megatron_trainer.data.storage.store import StoreWriter
from megatron_trainer.data.storage.worker import encode_in_processes
from megatron_trainer.data.values import Rejection
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.violation import Violation

ROWS_PER_CHUNK = 256

Progress = Callable[[int], None]


def tokenize(
    records: Iterable[Record],
    encoder: Encoder,
    directory: Path,
    *,
    num_processes: int = 1,
    is_strict: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the store of these records.

    progress: called with the number of rows done so far.

    Raises InvalidInput at the first bad row if `is_strict`. A row that is only too long is never bad: it is dropped
    according to truncation_strategy.
    """
    is_weighted = encoder.is_weighted
    writer = StoreWriter(
        directory,
        sequences_per_row=encoder.sequences_per_row,
        is_weighted=is_weighted,
        is_grouped=encoder.settings.recognition.grouping is not None,
    )
    done = 0
    for chunk in encode_all(records, encoder, num_processes=num_processes):
        if is_strict:
            refuse_first_bad(chunk.rejections)
        writer.append(chunk)
        done += chunk.num_rows
        if progress is not None:
            progress(done)
    writer.close()


def refuse_first_bad(rejections: Iterable[Rejection]) -> None:
    """Raises InvalidInput with file, line and reason of the first bad row, if there is one."""
    for rejection in rejections:
        if rejection.reason != TOO_LONG:
            message = f"{rejection.reason}; correct or remove the row, or set strict: false to drop such rows"
            violation = Violation(path=str(rejection.location), value=rejection.detail, message=message)
            raise InvalidInput((violation,), ExitCode.BAD_DATA)


def encode_all(records: Iterable[Record], encoder: Encoder, *, num_processes: int) -> Iterator[Chunk]:
    """Chunks of encoded records, in order. Only a few chunks are in memory at any time."""
    parts = batched(records, ROWS_PER_CHUNK)
    if num_processes > 1:
        return encode_in_processes(parts, encoder, num_processes=num_processes)
    return (to_chunk(encoder.encode(part)) for part in parts)
