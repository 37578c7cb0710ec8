"""Reading one file row by row: jsonl, json, csv, tsv, txt and parquet, each also as .gz (except parquet).

A reader yields (line, payload); what cannot be read is a payload that says why, and the reading goes on.
Memory stays bounded by one row (json and csv aside: a json array is read whole, a csv cell may be large).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from megatron_trainer.data.values import RowError

MAX_LINE_BYTES = 256 * 2**20

Payload = bytes | Mapping[str, object] | RowError
Rows = Iterator[tuple[int, Payload]]

# UnicodeDecodeError: text columns of a parquet file that hold no UTF-8.
_DAMAGE = (OSError, EOFError, zlib.error, pyarrow.ArrowException, csv.Error, UnicodeDecodeError)


def read_file(path: Path) -> Rows:
    """All rows of a file with their line (or row) numbers, from 1. A damaged rest becomes one last unreadable row."""
    line = 0
    try:
        for line, payload in READERS[kind_of(path) or ".jsonl"](path):
            yield line, payload
    except _DAMAGE as err:
        yield line + 1, RowError("the file is damaged", str(err) or type(err).__name__)


def kind_of(path: Path) -> str | None:
    """The key of the file's reader, or None when it is no data file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes = suffixes[:-1]
        return suffixes[-1] if suffixes and suffixes[-1] in READERS and suffixes[-1] != ".parquet" else None
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_lines(path: Path) -> Iterator[tuple[int, bytes | RowError]]:
    """Lines that are not blank, without their line end."""
    number = 0
    with _open(path) as stream:
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                yield number, RowError("the line is too long", f"more than {MAX_LINE_BYTES} bytes")
            elif not line.isspace():
                yield number, line.rstrip(b"\r\n")


def _read_txt(path: Path) -> Rows:
    for number, line in _read_lines(path):
        yield number, line if isinstance(line, RowError) else _text_row(line)


def _text_row(line: bytes) -> Payload:
    try:
        return {"text": line.decode("utf-8-sig")}
    except UnicodeDecodeError as err:
        return RowError("not UTF-8", f"byte {err.start} of the row")


def _read_json(path: Path) -> Rows:
    """An array of rows, one row, or (a common slip) lines of JSON in a .json file."""
    with _open(path) as stream:
        content = stream.read()
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as err:
        yield 1, RowError("not UTF-8", f"byte {err.start} of the file")
    except (ValueError, RecursionError) as err:
        yield from _lines_instead(path, err)
    else:
        rows = value if isinstance(value, list) else [value]
        for number, row in enumerate(rows, start=1):
            yield (
                number,
                row if isinstance(row, dict) else RowError("a row is not an object", type(row).__name__),
            )


def _lines_instead(path: Path, err: Exception) -> Rows:
    rows = _read_lines(path)
    first = next(rows, None)
    if first is None or not isinstance(first[1], bytes) or not _is_json(first[1]):
        yield 1, RowError("not JSON", str(err))
        return
    yield first
    yield from rows


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_table(path: Path, delimiter: str) -> Rows:
    csv.field_size_limit(MAX_LINE_BYTES)
    with _open(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
        table = csv.reader(text, delimiter=delimiter)
        header = next(table, [])
        while True:
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as err:
                yield table.line_num, RowError("not a row of the table", str(err))
                continue
            if cells:
                yield table.line_num, _table_row(header, cells)


def _table_row(header: list[str], cells: list[str]) -> Payload:
    if len(cells) != len(header):
        return RowError("not a row of the table", f"{len(cells)} cells under {len(header)} column names")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return RowError("not UTF-8")
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def _read_csv(path: Path) -> Rows:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Rows:
    return _read_table(path, "\t")


def _read_parquet(path: Path) -> Rows:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield number, without_nulls(row)


def without_nulls(row: Mapping[str, object]) -> dict[str, object]:
    """A row of a table without the nulls by which Arrow fills the keys that a struct lacks; nulls of lists stay."""
    return {name: _pruned(value) for name, value in row.items() if value is not None}


def _pruned(value: object) -> object:
    if isinstance(value, Mapping):
        return without_nulls(value)
    return [_pruned(entry) for entry in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}
