"""Folders of tokenized data that users create and pass in cached_dataset: train/ and optionally val/.

Written as stores; read as stores, or as the datasets of input_ids and labels that ms-swift saves.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import batched
from pathlib import Path

import datasets
import numpy as np
import pyarrow  # type: ignore[import-untyped]
from numpy.typing import NDArray

from megatron_trainer.data.dataset import Items
from megatron_trainer.data.encoding.encode import Encoded
from megatron_trainer.data.storage.cache import built_once, opened
from megatron_trainer.data.storage.chunk import to_chunk
from megatron_trainer.data.storage.fingerprint import text_key
from megatron_trainer.data.storage.store import Store, StoreWriter, merge_dropped
from megatron_trainer.data.values import IGNORED, Pair, Sample
from megatron_trainjob import input_file, weight_files

ROWS_PER_CHUNK = 1000
STATE = "state.json"
"""Names of the files of a dataset written by `save_to_disk`."""
PART_FILES = ("store.json", "dataset_info.json")
"""The files that identify the two formats of tokenized data."""


def open_cached(folder: Path, cache: Path) -> tuple[Store, Store | None]:
    """The training and the validation part of a folder; converted data is written to `cache`.

    Raises ValueError if the folder has no tokenized data in a known format.
    """
    if not (folder / "train").exists() and any((folder / name).exists() for name in PART_FILES):
        return _open_part(folder, cache), None
    has_validation = (folder / "val").exists()
    return _open_part(folder / "train", cache), _open_part(folder / "val", cache) if has_validation else None


def open_validation(folder: Path, cache: Path) -> Store:
    """The validation data in a folder, or in val below it.

    Raises ValueError if the folder has no tokenized data in a known format.
    """
    return _open_part(folder / "val" if (folder / "val").exists() else folder, cache)


def write_store(items: Items, directory: Path) -> None:
    """Write the items in order as a new store, with the row counts of their source stores."""
    stores = [store for store in items.stores if isinstance(store, Store)]
    is_weighted = any(store.facts.weight_type == "float32" for store in stores)

    def build(aside: Path) -> None:
        facts = stores[0].facts
        writer = StoreWriter(
            aside, sequences_per_row=facts.sequences_per_row, is_weighted=is_weighted, is_grouped=facts.is_grouped
        )
        _append(writer, (_encoded(number, item) for number, item in enumerate(items)))
        writer.account(
            num_rows=sum(store.facts.num_rows for store in stores),
            num_truncated=sum(store.facts.num_truncated for store in stores),
            dropped=merge_dropped([store.facts.dropped for store in stores]),
        )
        writer.close()

    built_once(directory, build, renew=True)


def _open_part(folder: Path, cache: Path) -> Store:
    if (folder / "store.json").exists():
        return Store(folder)
    if not (folder / "dataset_info.json").exists():
        raise ValueError(
            f"{folder} has no tokenized data; create it with `python -m megatron_trainer data --write-cached DIR`"
        )
    table = _table(folder)
    missing = {"input_ids", "labels"} - set(table.column_names)
    if missing:
        raise ValueError(f"{folder} lacks the columns {', '.join(sorted(missing))} of tokenized data")
    target = cache / f"converted-{text_key(f'{folder.resolve()} {table._fingerprint}')}"
    return opened(target, lambda aside: _convert(table, aside), Store)


def _table(folder: Path) -> datasets.Dataset:
    """The dataset written by `save_to_disk`. Raises ValueError if it cannot be read or is stored elsewhere."""
    try:
        for entry in input_file.read_json(folder / STATE)["_data_files"]:
            if not weight_files.is_inside(entry["filename"]):
                raise ValueError(f"{STATE} names {entry['filename']!r}, which is not in this folder")
            input_file.check(folder / entry["filename"])
        return datasets.load_from_disk(str(folder))
    except Exception as err:  # a damaged folder makes the library raise any exception
        raise ValueError(f"{folder} cannot be read: {err}; save it again") from err


def _convert(table: datasets.Dataset, directory: Path) -> None:
    writer = StoreWriter(directory, sequences_per_row=1, is_weighted="loss_scale" in table.column_names)
    try:
        _append(writer, (_from_columns(number, row) for number, row in enumerate(table)))
    except (TypeError, OverflowError, pyarrow.ArrowException) as err:
        raise ValueError(f"a row of it holds no tokens and labels: {err}") from err
    writer.close()


def _append(writer: StoreWriter, rows: Iterable[Encoded]) -> None:
    for part in batched(rows, ROWS_PER_CHUNK):
        writer.append(to_chunk(part))


def _from_columns(number: int, row: dict[str, list[float]]) -> Encoded:
    weights = (np.asarray(row["labels"]) != IGNORED).astype(np.float32)
    if row.get("loss_scale") is not None:
        weights *= np.asarray(row["loss_scale"], dtype=np.float32)
    ids = np.asarray(row["input_ids"], dtype=np.int32)
    return Encoded(number=number, input_ids=(ids,), weights=(weights,), channel=None, is_truncated=False)


def _encoded(number: int, item: Sample | Pair) -> Encoded:
    samples = (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)
    return Encoded(
        number=number,
        input_ids=tuple(sample.input_ids for sample in samples),
        weights=tuple(_weights(sample) for sample in samples),
        channel=samples[0].channel,
        is_truncated=False,
        target=item.target,
        media=tuple(sample.media for sample in samples),
    )


def _weights(sample: Sample) -> NDArray[np.float32]:
    return (sample.labels != IGNORED).astype(np.float32) if sample.loss_scale is None else sample.loss_scale
