"""Files of the same five rows in every kind that is read, and the rows that are read of a file or folder."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet

from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import parse_spec
from megatron_trainer.data.row import Record, parse_row

ROWS = [{"query": f"{n}+1?", "response": str(n + 1)} for n in range(5)]


def write(path: Path, kind: str) -> None:
    """The rows as a file of this kind, which is the end of a file's name."""
    match kind:
        case "jsonl" | "ndjson" | "jsonl.gz" | "jsonl.bz2" | "jsonl.zst":
            content = "".join(json.dumps(row) + "\n\n" for row in ROWS).encode()
        case "json" | "json.gz" | "json.zst":
            content = json.dumps(ROWS, indent=1).encode()
        case "csv" | "tsv" | "csv.zst":
            separator = "\t" if kind == "tsv" else ","
            lines = [separator.join(row.values()) for row in ROWS]
            content = "\n".join([separator.join(ROWS[0]), *lines]).encode()
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
            return
    path.write_bytes(packed(content, path.suffix))


def packed(content: bytes, suffix: str) -> bytes:
    """The content as a file of this ending holds it."""
    match suffix:
        case ".gz":
            return gzip.compress(content, mtime=0)
        case ".bz2":
            return bz2.compress(content)
        case ".zst":
            return bytes(pyarrow.compress(content, "zstd", asbytes=True))
    return content


def read(path: Path) -> list[Record]:
    """What is read of a file or folder."""
    return list(open_source(parse_spec(str(path))).records())


def rows(path: Path) -> list[Mapping[str, object]]:
    """The rows that are read of a file or folder in which none is bad."""
    return [dict(parse_row(record.payload)) for record in read(path)]
