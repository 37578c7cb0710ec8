"""The syntax of an entry of `dataset` or `val_dataset`: [hf::|ms::]id_or_path[:subset1/subset2][#N]. Reads no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

HUBS = ("hf", "ms")
FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
PACKED = (".gz", ".bz2", ".zst")
"""Ends of the names of data files; all but parquet may also be packed."""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """name: a path (is_path) or the id of a data set on the hub. num_rows: N, None for all rows."""

    name: str
    is_path: bool
    hub: str = "hf"
    subsets: tuple[str, ...] = ()
    num_rows: int | None = None


def parse(text: str, exists: Callable[[str], bool]) -> DatasetEntry:
    """The parts of an entry. exists: whether there is such a path, which takes precedence over the # and : syntax.

    Raises ValueError when N is not a positive number.
    """
    if exists(text):
        return DatasetEntry(name=text, is_path=True)
    hub, name = _split_hub(text)
    name, num_rows = _split_count(name)
    if exists(name):
        return DatasetEntry(name=name, is_path=True, num_rows=num_rows)
    name, _, subsets = name.partition(":")
    return DatasetEntry(
        name=name,
        is_path=bool(subsets) and exists(name),
        hub=hub,
        num_rows=num_rows,
        subsets=tuple(part for part in subsets.split("/") if part),
    )


def _split_hub(text: str) -> tuple[str, str]:
    hub, separator, name = text.partition("::")
    return (hub.lower(), name) if separator and hub.lower() in HUBS else ("hf", text)


def _split_count(text: str) -> tuple[str, int | None]:
    name, separator, count = text.rpartition("#")
    if not separator:
        return text, None
    if not count.isdigit() or int(count) == 0:
        raise ValueError(f"the part after # must be a number of rows, 1 or more (got {count!r})")
    return name, int(count)
