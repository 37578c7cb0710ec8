"""Assigns the files of a folder to splits, as the `datasets` library does. Reads no rows.

README.md's configurations decide, else the names of folders, else those of files; everything is training data if no
name says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.data_files import FILES_TO_IGNORE, DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns
from huggingface_hub import DatasetCard
from yaml import YAMLError

from megatron_trainer.data.reading.packed import PACKED
from megatron_trainer.data.reading.read import READERS, kind_of
from megatron_trainjob.args import yaml_file

TRAINING = ("train",)
VALIDATION = ("validation", "test", "train")
"""The splits that `dataset` and `val_dataset` read of a folder: the first one present is used."""


@dataclass(frozen=True, kw_only=True)
class Chosen[Content]:
    """One split of several. note: a remark about the others for the user, empty if there are none."""

    name: str
    content: Content
    note: str


OTHER_DATA = frozenset(
    {
        *(*PACKED, ".xz", ".lz4", ".7z", ".zip", ".tar", ".tgz"),
        *(".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".xml", ".pkl", ".h5", ".npy", ".npz", ".msgpack"),
    }
)
"""Endings of files that may hold rows and that nothing here reads."""
_SHARD = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)(\..+)", re.DOTALL)


def choose[Content](splits: Mapping[str, Content], wanted: Sequence[str], place: str) -> Chosen[Content]:
    """The first split of `wanted` that is present.

    Raises ValueError, with the names of the splits, if there is none.
    """
    found = next((name for name in wanted if name in splits), None)
    if found is None:
        raise ValueError(
            f"has no split named {wanted[0]}, only {', '.join(splits)}; name the files of one: {place}/..."
        )
    others = [name for name in splits if name != found]
    if not others:
        return Chosen(name=found, content=splits[found], note="")
    hint = f"; set val_dataset: {place} to evaluate on it" if found == "train" and "validation" in others else ""
    return Chosen(name=found, content=splits[found], note=f"read split {found}, not {', '.join(others)}{hint}")


def folder_splits(folder: Path, subsets: Sequence[str] = ()) -> dict[str, tuple[Path, ...]]:
    """The data files of each split of a folder, in order; splits without data files are left out.

    subsets: configurations named in README.md; without any, the default one.

    Raises ValueError when there are no data files, or no such configuration.
    """
    configurations = _configurations(folder)
    if not configurations:
        if subsets:
            hint = f"; use {folder / subsets[0]}" if (folder / subsets[0]).is_dir() else ""
            raise ValueError(f"its README.md names no configurations, so there is no {', '.join(subsets)}{hint}")
        return _or_all(folder, _resolved(folder, {}))
    splits: dict[str, tuple[Path, ...]] = {}
    for name in subsets or (_default(configurations),):
        if name not in configurations:
            raise ValueError(f"has no configuration {name}, only {', '.join(configurations)}")
        for split, files in _resolved(folder, configurations[name]).items():
            splits[split] = (*splits.get(split, ()), *files)
    if not splits:
        raise ValueError("the files that README.md names are missing")
    return splits


def unread(folder: Path) -> str:
    """A note about data files of a kind that nothing reads, empty if there are none: what they hold is not trained."""
    root = folder.resolve()
    others = (path for path in root.rglob("*") if path.suffix.lower() in OTHER_DATA and not kind_of(path))
    names = sorted(str(path.relative_to(root)) for path in _visible(folder, others))
    if not names:
        return ""
    return (
        f"did not read {len(names)} of its files, whose kind is not supported (the first is {names[0]}); convert them"
    )


def lost_shards(files: Sequence[Path]) -> str:
    """A note about shards (`train-00000-of-00002`) of which others are missing, empty if there are none."""
    present: dict[tuple[str, int], set[int]] = {}
    for found in filter(None, (_SHARD.fullmatch(str(file)) for file in files)):
        present.setdefault((found[1] + found[4], int(found[3])), set()).add(int(found[2]))
    short = [
        (Path(name).name, count, len(numbers)) for (name, count), numbers in present.items() if len(numbers) < count
    ]
    return "; ".join(f"only {there} of the {count} shards of {name} are there" for name, count, there in short)


def without_notes(files: Sequence[Path]) -> tuple[tuple[Path, ...], str]:
    """The files without texts (a licence, requirements.txt) beside rows of other kinds, and a note about them."""
    texts = [file for file in files if kind_of(file) == ".txt"]
    if len(texts) in (0, len(files)):
        return tuple(files), ""
    note = f"did not read {len(texts)} .txt files beside rows of other kinds (the first is {texts[0].name})"
    return tuple(file for file in files if file not in texts), note


def _configurations(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The file patterns in README.md (and .huggingface.yaml), by configuration."""
    readme, own = folder / "README.md", folder / ".huggingface.yaml"
    try:
        facts = DatasetCard.load(readme, ignore_metadata_errors=True).data.to_dict() if readme.is_file() else {}
        if own.is_file():
            facts |= yaml_file.load(own) or {}
    except (ValueError, TypeError, YAMLError) as err:
        raise ValueError(f"the head of README.md cannot be read ({err}); correct it, or name the files") from err
    entries = facts.get("configs") or []
    if not isinstance(entries, list) or not all(
        isinstance(entry, Mapping) and "config_name" in entry for entry in entries
    ):
        raise ValueError("configs in README.md is not a list of {config_name, data_files}; correct it")
    return {str(entry["config_name"]): entry for entry in entries if "data_files" in entry or "data_dir" in entry}


def _default(configurations: Mapping[str, Mapping[str, Any]]) -> str:
    marked = [name for name, entry in configurations.items() if entry.get("default") or name == "default"]
    if marked:
        return marked[0]
    if len(configurations) > 1:
        names = ", ".join(configurations)
        raise ValueError(f"README.md names several configurations ({names}); add one to the entry, as in FOLDER:NAME")
    return next(iter(configurations))


def _resolved(folder: Path, entry: Mapping[str, Any]) -> dict[str, tuple[Path, ...]]:
    base = str((folder / str(entry.get("data_dir") or "")).resolve())
    try:
        given = entry.get("data_files")
        patterns = get_data_patterns(base) if given is None else sanitize_patterns(given)
        found = DataFilesDict.from_patterns(patterns, base_path=base)
    except (EmptyDatasetError, FileNotFoundError) as err:
        raise _no_data(folder) from err
    splits = {str(split): _data_files(folder, map(Path, files)) for split, files in found.items()}
    return {split: files for split, files in splits.items() if files}


def _or_all(folder: Path, splits: dict[str, tuple[Path, ...]]) -> dict[str, tuple[Path, ...]]:
    """The splits, or all data files as training data if only other files have names like those of splits."""
    if splits:
        return splits
    files = _data_files(folder, folder.resolve().rglob("*"))
    if not files:
        raise _no_data(folder)
    return {"train": files}


def _no_data(folder: Path) -> ValueError:
    others = unread(folder)
    return ValueError(f"the folder holds no data files ({', '.join(READERS)}){others and f'; {others}'}")


def _data_files(folder: Path, files: Iterable[Path]) -> tuple[Path, ...]:
    root = folder.resolve()
    kept = {path for path in _visible(folder, files) if kind_of(path) and path.name not in FILES_TO_IGNORE}
    return tuple(folder / path.relative_to(root) for path in sorted(kept))


def _visible(folder: Path, files: Iterable[Path]) -> Iterator[Path]:
    """Files inside the folder that are not hidden."""
    root = folder.resolve()
    for path in files:
        is_inside = path.is_relative_to(root) and path.is_file()
        if is_inside and not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path
