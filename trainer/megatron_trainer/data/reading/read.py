"""Reading one file row by row: jsonl (or ndjson), json, csv, tsv, txt and parquet, each but parquet also compressed.

A reader yields (line, payload); for an unreadable row the payload gives the reason, and reading continues.
Memory stays bounded by one row, and a row by MAX_LINE_BYTES, whatever the file claims or grows to.
"""

from __future__ import annotations

import codecs
import csv
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from megatron_trainer.data.bounded import bounded_memory
from megatron_trainer.data.reading import json_rows, packed, table_size
from megatron_trainer.data.reading.packed import PACKED
from megatron_trainer.data.row import parse_row
from megatron_trainer.data.values import RowError
from megatron_trainjob import input_file
from megatron_trainjob.input_file import UnfitFile

MAX_LINE_BYTES = 64 * 2**20
MAX_GROWTH = 300
"""Text compresses by a factor of 3 to 30; a file that expands more than this is a decompression bomb."""
FREE_GROWTH_BYTES = 64 * 2**20
"""Maximum size of any decompressed file."""
FREE_TABLE_BYTES = 2**30
"""Maximum size of the rows of any table: many rows may share long texts."""
BATCH_BYTES = 256 * 2**20
"""Maximum size of the rows of a parquet file in memory at once."""

_OTHER_CONTENT = (
    (codecs.BOM_UTF16_LE, "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\x1f\x8b", "compressed by gzip; add .gz to its name"),
    (b"(\xb5/\xfd", "compressed by zstd; add .zst to its name"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or save it as CSV"),
    (b"PAR1", "a parquet file; its name must end with .parquet"),
)
"""How files begin that have the name of a text file and are none."""

Payload = bytes | Mapping[str, object] | RowError
Rows = Iterator[tuple[int, Payload]]

# UnicodeDecodeError: text columns of a parquet file that are not UTF-8. KeyError: a map with a key twice.
_DAMAGE = (OSError, EOFError, zlib.error, pyarrow.ArrowException, csv.Error, UnicodeDecodeError, UnfitFile, KeyError)


def read_file(path: Path) -> Rows:
    """All rows of a file with their line (or row) numbers, from 1. A damaged rest becomes one last unreadable row."""
    line = 0
    try:
        for line, payload in READERS[kind_of(path) or ".jsonl"](path):
            yield line, payload
    except _DAMAGE as err:
        yield line + 1, RowError("the file is damaged", str(err) or type(err).__name__)


def kind_of(path: Path) -> str | None:
    """The key of the file's reader, or None if it is not a data file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
        return suffixes[-1] if suffixes and suffixes[-1] in READERS and suffixes[-1] != ".parquet" else None
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def check(path: Path) -> None:
    """Returns if the file can be opened and may hold data. Raises UnfitFile, or OSError as open does."""
    input_file.check(path)
    with path.open("rb") as stream:
        beginning = stream.read(4096)
    if beginning and not beginning.strip(b"\0"):
        raise UnfitFile(f"{path} starts with zeros: it was never fully written; copy it again")
    kind = next((kind for mark, kind in _OTHER_CONTENT if beginning.startswith(mark)), None)
    if kind and path.suffix.lower() not in (*PACKED, ".parquet"):
        raise UnfitFile(f"{path} is {kind}")


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() not in PACKED:
        return path.open("rb")
    return packed.opened(path, most_bytes=max(FREE_GROWTH_BYTES, MAX_GROWTH * path.stat().st_size))


def _read_lines(path: Path) -> Iterator[tuple[int, bytes | RowError]]:
    """Non-blank lines, without their line ends."""
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


def _read_jsonl(path: Path) -> Rows:
    """Lines of JSON, or (a common slip) an array of rows in a .jsonl file."""
    if _is_array(path):
        with _open(path) as stream:
            yield from json_rows.array(stream, MAX_LINE_BYTES)
    else:
        yield from _read_lines(path)


def _is_array(path: Path) -> bool:
    """Whether the file is one array, and not lines of which the first begins like one."""
    lines = (line for _, line in _read_lines(path))
    first = next(lines, None)
    if not isinstance(first, bytes):  # no line, or one that is too long
        with _open(path) as stream:
            return first is not None and json_rows.is_array(stream)
    if not first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        return False
    second = next(lines, None)
    if second is None:
        return not _holds_turns(first)
    return not _holds(first, list) and not (isinstance(second, bytes) and _holds(second, dict))


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
        if json_rows.is_array(stream):
            yield from json_rows.array(stream, MAX_LINE_BYTES)
            return
        row = next(json_rows.whole(stream, MAX_LINE_BYTES), None)
    if row is not None:
        yield from enumerate(json_rows.within(row), start=1)
        return
    lines = _read_lines(path)
    first = next(lines, None)
    if first is None or not isinstance(first[1], bytes) or not _holds(first[1], dict):
        yield (
            1,
            RowError(
                "not JSON", f"neither an array, nor an object of at most {MAX_LINE_BYTES} bytes, nor lines of objects"
            ),
        )
        return
    yield first
    yield from lines


def _holds_turns(line: bytes) -> bool:
    try:
        return "messages" in parse_row(line)
    except RowError:
        return False


def _holds(line: bytes, kind: type) -> bool:
    try:
        return isinstance(input_file.parse_json(line), kind)
    except ValueError:
        return False


def _read_table(path: Path, delimiter: str) -> Rows:
    csv.field_size_limit(MAX_LINE_BYTES)
    with _open(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
        lines = _bounded_lines(text)
        first = next(lines, "")
        table = csv.reader(chain([first] if first else [], lines), delimiter=_delimiter(first, delimiter))
        header = _header(next(table, []))
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


def _delimiter(header: str, usual: str) -> str:
    """What separates the names of the columns: spreadsheets of many languages write semicolons into .csv files."""
    return usual if usual in header else next((each for each in ",;\t" if each in header), usual)


def _header(cells: Sequence[str]) -> list[str]:
    """The names of the columns; one without a name (an index, or the empty columns of a spreadsheet) has its number.

    What it holds is thus reported as a column that nothing reads.
    """
    _refuse_twins([name for name in cells if name.strip()])
    return [name if name.strip() else f"{number} (without a name)" for number, name in enumerate(cells, start=1)]


def _refuse_twins(names: Sequence[str]) -> None:
    twins = sorted({name or "''" for name in names if names.count(name) > 1})
    if twins:
        raise UnfitFile(f"two columns have the name {', '.join(twins)}; rename one")


def _bounded_lines(text: TextIO) -> Iterator[str]:
    while line := text.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES and not line.endswith("\n"):
            raise csv.Error(f"a line of more than {MAX_LINE_BYTES} characters; the rest is ignored")
        yield line


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
    number, bytes_left = 0, max(FREE_TABLE_BYTES, MAX_GROWTH * path.stat().st_size)
    for batch in _batches(path):
        bytes_left -= table_size.written_out(batch)
        if bytes_left < 0:
            raise UnfitFile(f"its rows grow to more than {MAX_GROWTH} times its size")
        for row in _rows_of(batch):
            number += 1
            yield number, row


def _batches(path: Path) -> Iterator[Any]:
    """The rows, a few of them at a time, with dictionaries as they are stored."""
    with pyarrow.parquet.ParquetFile(path) as file:
        _refuse_twins(file.schema_arrow.names)
        shared = table_size.texts_in_lists(file.schema)
    with pyarrow.parquet.ParquetFile(path, read_dictionary=shared) as file:
        for group in range(file.num_row_groups):
            # Only this number is safe to read: pyarrow aborts the process on columns with damaged metadata.
            size = _rows_at_once(file.metadata.row_group(group).total_byte_size, path.stat().st_size)
            batches = file.iter_batches(batch_size=size, row_groups=[group])
            while True:
                with bounded_memory(FREE_TABLE_BYTES):  # the metadata may be wrong
                    batch = next(batches, None)
                if batch is None:
                    break
                yield batch


def _rows_at_once(unpacked_bytes: int, packed_bytes: int) -> int:
    """Number of rows of a group to hold in memory at once: each may hold the longest text of a column's dictionary.

    A dictionary of one text of 7 MB and 1000 references to it is a file of 641 bytes. Raises UnfitFile for a group that
    expands more than text can.
    """
    if unpacked_bytes > max(FREE_GROWTH_BYTES, MAX_GROWTH * packed_bytes):
        raise UnfitFile(f"it grows to more than {MAX_GROWTH} times its size")
    return max(1, min(1000, BATCH_BYTES // max(unpacked_bytes, 1)))


def _rows_of(batch: Any) -> Iterator[Mapping[str, object] | RowError]:  # noqa: ANN401 - pyarrow has no types
    """The rows of a batch as Python values, a few at a time."""
    if table_size.written_out(batch) <= MAX_LINE_BYTES:
        yield from map(without_nulls, batch.to_pylist(maps_as_pydicts="strict"))
    elif batch.num_rows == 1:
        yield RowError("the row is too long", f"more than {MAX_LINE_BYTES} bytes")
    else:
        half = batch.num_rows // 2
        yield from _rows_of(batch.slice(0, half))
        yield from _rows_of(batch.slice(half))


def without_nulls(row: Mapping[str, object]) -> dict[str, object]:
    """A row of a table without the nulls that Arrow adds for missing keys of a struct; nulls in lists are kept."""
    return {name: _pruned(value) for name, value in row.items() if value is not None}


def _pruned(value: object) -> object:
    if isinstance(value, Mapping):
        return without_nulls(value)
    return [_pruned(entry) for entry in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}
