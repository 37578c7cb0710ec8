"""Reads custom_dataset_info: JSON files whose entries name data sets, their columns and their splits.

[{"dataset_name": "support", "dataset_path": "support/rows.jsonl", "columns": {"frage": "query"}},
 {"hf_dataset_id": "org/set", "subsets": ["small", "large"], "split": ["train", "validation"]}]

`dataset` names an entry by dataset_name, by the id of a hub, or by its path, which is relative to the folder of the
file. Every problem of every file is collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_trainer.data.reading.spec import DatasetSpec
from megatron_trainjob import input_file
from megatron_trainjob.violation import Violation

ARGUMENT = "custom_dataset_info"
PLACES = ("dataset_path", "hf_dataset_id", "ms_dataset_id")
NAMES = ("dataset_name", *PLACES)
TEXTS = (*NAMES, "help", "hf_revision", "ms_revision")
LISTS = ("subsets", "split", "tags")
DESCRIPTIONS = ("help", "tags", "huge_dataset")
"""Keys that say something to people, or how to read what is read the same way here."""
REMEDIES = {
    "messages": "roles and contents are found under all common names; rename other columns with columns",
    "preprocess_func": "a file runs no code; rename columns with columns, or rewrite the rows",
    "load_function": "a file runs no code; give dataset_path the files that it would load",
    "hf_revision": "the main revision is read; download another one and set dataset_path",
    "ms_revision": "data sets of ModelScope are not fetched; download it and set dataset_path",
}
EVERY_SUBSET = "all"
Report = Callable[[str, object, str], None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set of a file. path: absolute, or None for one from a hub, whose id is `name`.

    subsets, splits: () where the entry names none. columns: new names of its columns.
    """

    name: str
    path: Path | None
    hub: str
    subsets: tuple[str, ...]
    splits: tuple[str, ...]
    columns: Mapping[str, str]


Catalog = Mapping[str, Sequence[Entry]]
"""The different entries of each name: only one may be meant where the name is used."""


def read_catalog(files: Sequence[str], violations: list[Violation]) -> Catalog:
    """The entries of all files by each of their names; what is wrong with them is added to the violations."""
    found: dict[str, list[Entry]] = {}
    for number, file in enumerate(files):
        report = _reporter(f"{ARGUMENT}[{number}]", violations)
        for position, raw in _entries(Path(file), report):
            for name, entry in _named(raw, Path(file).resolve().parent, _within(report, f"[{position}]")):
                same = found.setdefault(name, [])
                same += [] if entry in same else [entry]
    return found


def looked_up(spec: DatasetSpec, catalog: Catalog) -> DatasetSpec:
    """The entry of `dataset` as the catalog describes it, or unchanged where the catalog does not have it.

    Raises ValueError where it must choose one of several subsets, or of several entries.
    """
    entries = catalog.get(spec.name) or (catalog.get(str(spec.path.resolve())) if spec.path else None)
    if not entries:
        return spec
    if len(entries) > 1:
        raise ValueError(f"{ARGUMENT} has {len(entries)} data sets of that name or place; use a dataset_name of one")
    entry = entries[0]
    subsets = _subsets(spec, entry)
    return replace(
        spec,
        name=entry.name,
        path=entry.path,
        hub=entry.hub,
        subsets=subsets,
        splits=entry.splits,
        columns=tuple(sorted(entry.columns.items())),
    )


def _subsets(spec: DatasetSpec, entry: Entry) -> tuple[str, ...]:
    if spec.subsets == (EVERY_SUBSET,) and entry.subsets:
        return entry.subsets
    if spec.subsets or len(entry.subsets) <= 1:
        return spec.subsets or entry.subsets
    if "default" in entry.subsets:
        return ("default",)
    raise ValueError(
        f"{ARGUMENT} lists the subsets {', '.join(entry.subsets)}; name some, as in {spec.name}:{entry.subsets[0]}, "
        f"or {spec.name}:{EVERY_SUBSET}"
    )


def _reporter(place: str, violations: list[Violation]) -> Report:
    def report(where: str, value: object, message: str) -> None:
        violations.append(Violation(path=f"{place}{where}", value=value, message=message))

    return report


def _within(report: Report, place: str) -> Report:
    return lambda where, value, message: report(f"{place}{where}", value, message)


def _entries(file: Path, report: Report) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a file, with their positions in it."""
    try:
        content = input_file.read_json(file)
    except (OSError, ValueError) as err:
        report("", str(file), f"the file cannot be read: {err}")
        return
    if not isinstance(content, list):
        report("", str(file), 'is not a list of objects such as [{"dataset_path": "rows.jsonl"}]')
        return
    for position, raw in enumerate(content):
        if isinstance(raw, Mapping):
            yield position, raw
        else:
            report(f"[{position}]", raw, 'is not an object such as {"dataset_path": "rows.jsonl"}')


def _named(raw: Mapping[str, Any], folder: Path, report: Report) -> Iterator[tuple[str, Entry]]:
    """The entry under each of its names; nothing if it is wrong."""
    if not _is_well_formed(raw, report):
        return
    place = next((key for key in PLACES if raw.get(key)), None)
    if place is None:
        report("", dict(raw), f"says nowhere where the data is; set one of {', '.join(PLACES)}")
        return
    path = (folder / Path(raw["dataset_path"]).expanduser()).resolve() if place == "dataset_path" else None
    entry = Entry(
        name=raw[place] if path is None else str(path),
        path=path,
        hub="ms" if place == "ms_dataset_id" else "hf",
        subsets=tuple(raw.get("subsets") or ()),
        splits=tuple(raw.get("split") or ()),
        columns=dict(raw.get("columns") or {}),
    )
    if path is not None and not path.exists():
        message = f"{path} does not exist; a path is relative to the folder of the file"
        report(".dataset_path", raw["dataset_path"], message)
        return
    yield from ((name, entry) for name in {*(raw[key] for key in NAMES if raw.get(key)), entry.name})


def _is_well_formed(raw: Mapping[str, Any], report: Report) -> bool:
    problems = [(f".{key}", value, message) for key, value in raw.items() if (message := _objection(key, value))]
    for problem in problems:
        report(*problem)
    return not problems


def _objection(key: str, value: object) -> str:
    """What is wrong with one field of an entry, "" if nothing is."""
    if key in REMEDIES:
        return "" if value in (None, "") else f"is not read here: {REMEDIES[key]}"
    if key in TEXTS:
        return "" if isinstance(value, str | None) else "must be a text"
    if key in LISTS:
        return "" if _is_texts(value) else 'must be a list of names such as ["train"]'
    if key == "columns":
        is_mapping = isinstance(value, Mapping) and all(isinstance(target, str) for target in value.values())
        return "" if is_mapping or value is None else 'must give columns new names, as in {"frage": "query"}'
    if key in DESCRIPTIONS:
        return ""
    return f"unknown field; it has {', '.join((*NAMES, 'subsets', 'split', 'columns'))}"


def _is_texts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))
