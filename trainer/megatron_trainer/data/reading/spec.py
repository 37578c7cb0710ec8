"""The syntax of a dataset in the arguments: [hf::|ms::]id_or_path[:subset1/subset2][#N]. Reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    """The parts of a dataset entry. An existing path takes precedence over the # and : syntax.

    Raises ValueError when N is not a positive number.
    """
    if Path(text).exists():
        return DatasetSpec(text=text, name=text, path=Path(text))
    hub, name = _split_hub(text)
    name, num_rows = _split_count(name)
    if Path(name).exists():
        return DatasetSpec(text=text, name=name, path=Path(name), num_rows=num_rows)
    name, _, subsets = name.partition(":")
    return DatasetSpec(
        text=text,
        name=name,
        path=Path(name) if subsets and Path(name).is_dir() else None,
        hub=hub,
        num_rows=num_rows,
        subsets=tuple(part for part in subsets.split("/") if part),
    )


def _split_hub(text: str) -> tuple[str, str]:
    hub, separator, name = text.partition("::")
    return (hub.lower(), name) if separator and hub.lower() in ("hf", "ms") else ("hf", text)


def _split_count(text: str) -> tuple[str, int | None]:
    name, separator, count = text.rpartition("#")
    if not separator:
        return text, None
    if not count.isdigit() or int(count) == 0:
        raise ValueError(f"the part after # must be a number of rows, 1 or more (got {count!r})")
    return name, int(count)
