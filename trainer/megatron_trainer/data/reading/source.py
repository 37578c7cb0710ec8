"""Sources of a dataset's rows: files, folders, tables saved by `datasets`, a hub. Reads without parsing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import pyarrow  # type: ignore[import-untyped]

from megatron_trainer.data.reading import split
from megatron_trainer.data.reading.packed import PACKED
from megatron_trainer.data.reading.read import READERS, check, kind_of, read_file, without_nulls
from megatron_trainer.data.reading.spec import DatasetSpec
from megatron_trainer.data.row import Record
from megatron_trainjob import hub_cache


class Source(Protocol):
    """The rows of one dataset, in a fixed order. note: a remark about it for the user."""

    @property
    def note(self) -> str:
        """For example that a folder has other splits; empty if there is no remark."""
        ...

    def records(self) -> Iterator[Record]:
        """All rows, read one by one."""
        ...

    def fingerprint(self) -> str:
        """A digest of the content: equal content, equal digest."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Rows of files, one file after the other."""

    files: tuple[Path, ...]
    note: str = ""

    def records(self) -> Iterator[Record]:
        """All rows, numbered through all files."""
        number = 0
        for file in self.files:
            for line, payload in read_file(file):
                yield Record(number, str(file), line, payload)
                number += 1

    def fingerprint(self) -> str:
        """A digest of the files' kinds and bytes; their names and locations do not matter."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{kind_of(file)} {file.suffix if file.suffix in PACKED else ''} ".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Rows of a dataset of the `datasets` library."""

    name: str
    table: datasets.Dataset | datasets.IterableDataset
    note: str = ""

    def records(self) -> Iterator[Record]:
        """All rows of the table."""
        for number, row in enumerate(_rows(self.table)):
            yield Record(number, self.name, number + 1, without_nulls(row))

    def fingerprint(self) -> str:
        """The fingerprint that `datasets` stores with the table; for a stream, the name."""
        return str(getattr(self.table, "_fingerprint", self.name))


IMAGE_ROWS_AT_ONCE = 16


def _rows(table: datasets.Dataset | datasets.IterableDataset) -> Iterator[Mapping[str, object]]:
    """The rows, with images as they are stored: the library would decode them and fail at the first damaged one."""
    if not _has_images(table.features):
        yield from table
    elif isinstance(table, datasets.IterableDataset):
        yield from table.decode(False)
    else:
        for batch in table.with_format("arrow").iter(IMAGE_ROWS_AT_ONCE):
            yield from batch.to_pylist()


def _has_images(feature: object) -> bool:
    if isinstance(feature, datasets.Image):
        return True
    inner = feature.values() if isinstance(feature, Mapping) else feature if isinstance(feature, list) else None
    if inner is None:
        inner = [feature.feature] if hasattr(feature, "feature") else []
    return any(_has_images(part) for part in inner)


@dataclass(frozen=True, kw_only=True)
class HubAccess:
    """How datasets from a hub are fetched. streams: read over the network while training, instead of downloading
    first.
    """

    token: str | None = None
    redownloads: bool = False
    streams: bool = False


def open_source(
    spec: DatasetSpec, access: HubAccess | None = None, *, splits: Sequence[str] = split.TRAINING
) -> Source:
    """The rows behind a dataset entry.

    splits: candidate splits of a folder: the first one present is read.

    Raises ValueError, with the remedy, if there is no such file, folder or hub dataset.
    """
    if spec.path is None:
        return _from_hub(spec, access or HubAccess())
    if spec.path.is_dir():
        wanted: list[Sequence[str]] = [(name,) for name in spec.splits] or [splits]
        return _joined([_from_folder(spec.path, spec.subsets, each) for each in wanted])
    if kind_of(spec.path) is None:
        raise ValueError(
            f"cannot read files of this kind; use one of {', '.join(READERS)} (or {', '.join(PACKED)} of it)"
        )
    if spec.subsets or spec.splits not in ((), split.TRAINING):
        raise ValueError("is a file, which has neither subsets nor splits; name its folder, or leave them out")
    check(spec.path)
    return FileSource(files=(spec.path,))


def _joined(parts: Sequence[FileSource | TableSource]) -> Source:
    """The rows of several splits of a folder; with all of them named, nothing is to be said about the others."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, FileSource):
        files = (file for part in parts if isinstance(part, FileSource) for file in part.files)
        return FileSource(files=tuple(files))
    tables = [part.table for part in parts if isinstance(part, TableSource)]
    return TableSource(name=first.name, table=datasets.concatenate_datasets(tables))


def _from_folder(folder: Path, subsets: Sequence[str], wanted: Sequence[str]) -> FileSource | TableSource:
    if found := hub_cache.snapshot(folder):
        raise ValueError(f"is the cache of a Hub repository, which may hold several revisions; use {found}")
    if _is_saved(folder):
        if subsets:
            raise ValueError(f"was saved by datasets, without configurations; name a split by its folder: {folder}/...")
        saved = _saved(folder)
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        table = split.choose(splits, wanted, str(folder))
        return TableSource(name=str(folder), table=table.content, note=table.note)
    chosen = split.choose(split.folder_splits(folder, subsets), wanted, str(folder))
    files, texts = split.without_notes(chosen.content)
    for file in files:
        check(file)
    remarks = (chosen.note, texts, split.lost_shards(files), split.unread(folder))
    return FileSource(files=files, note="; ".join(filter(None, remarks)))


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder: others have a dataset_info.json too (its cache, LLaMA-Factory)."""
    is_table = all((folder / name).is_file() for name in ("dataset_info.json", "state.json"))
    return is_table or (folder / "dataset_dict.json").is_file()


def _saved(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException) as err:
        raise ValueError(f"was saved by datasets and cannot be read ({err}); save or copy it again") from err


def _from_hub(spec: DatasetSpec, access: HubAccess) -> Source:
    if spec.hub == "ms":
        raise ValueError("datasets of the ModelScope hub are not supported; download it and use the local path")
    if "://" in spec.text:
        raise ValueError("is a URL, which is not read; download the data and give its local path")
    if spec.name.startswith((".", "/", "~")) or kind_of(Path(spec.name)) or spec.name.count("/") > 1:
        is_pattern = any(character in spec.name for character in "*?[")
        hint = "; patterns are not expanded: name the folder, or each file" if is_pattern else ""
        raise ValueError(f"no such file or folder{hint}")
    options = {
        "token": access.token,
        "streaming": access.streams,
        "download_mode": "force_redownload" if access.redownloads else "reuse_dataset_if_exists",
    }
    try:
        parts = [
            datasets.load_dataset(spec.name, subset, split=name, **options)
            for subset in spec.subsets or (None,)
            for name in spec.splits or split.TRAINING
        ]
    except (OSError, ValueError, ImportError) as err:
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise ValueError(
            f"neither a local path nor a dataset found on the Hub ({reason}); check the spelling, or download "
            "the dataset and give its local path"
        ) from err
    table = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return TableSource(name=spec.name, table=table)
