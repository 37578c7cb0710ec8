"""One data set of a run: where it is, and what of it is read. Reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_trainjob import dataset_entry


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One entry of `dataset` or `val_dataset`: a local path (when `path` is set) or a hub id; with subsets.

    splits: those to read, one after the other; () for the one that the argument reads. columns: old and new names.
    """

    text: str
    name: str
    path: Path | None = None
    hub: str = "hf"
    subsets: tuple[str, ...] = ()
    num_rows: int | None = None
    splits: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()


def parse_spec(text: str) -> DatasetSpec:
    """The parts of a dataset entry. Raises ValueError when N is not a positive number."""
    entry = dataset_entry.parse(text, lambda name: Path(name).exists())
    return DatasetSpec(
        text=text,
        name=entry.name,
        path=Path(entry.name) if entry.is_path else None,
        hub=entry.hub,
        num_rows=entry.num_rows,
        subsets=entry.subsets,
    )
