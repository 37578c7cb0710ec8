"""Cached data that somebody else has changed: made again where it is ours, else refused; no code is run."""

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from megatron_trainer.data.cached import write_store
from megatron_trainer.data.prepare import prepare
from megatron_trainer.data.reading.read import read_file
from megatron_trainer.data.storage.cache import LENGTHS
from megatron_trainer.data.streaming import journal
from megatron_trainer.data.streaming.journal import START, Note
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.tree import TrainArgs
from tests.support.checkpoint.forged_pickles import Command
from tests.support.data.no_files import lay
from tests.support.models.text_models import chatml_tokenizer

TOKENIZER = chatml_tokenizer()
STORE = ["store.json", "offsets.npy", "numbers.npy", "channels.npy", "input_ids.bin", "weights.bin"]
LAZY = ["ends.npy", "places.npy", "files.json", "rows.bin"]
MAY_HOLD_ANYTHING = {"input_ids.bin", "weights.bin", "rows.bin"}
"""Any bytes are tokens, weights or rows; of these, only the length tells."""


def content(items):
    return [(items[n].input_ids.tolist(), items[n].labels.tolist(), items[n].channel) for n in range(len(items))]


def prepared(folder, **fields):
    """The training set of a run in this folder, from its cache where there is one."""
    return prepare(
        TrainArgs(**fields), TOKENIZER, task="sft", max_length=100, save=folder / "run", is_first_rank=True
    ).train


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Data, and what a run has cached of it, tokenized and lazily; tests damage copies."""

    folder: Path
    data: tuple[str, ...]
    content: list


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    rows = [{"query": "q", "response": f"r{n}", "channel": "ab"[n % 2]} for n in range(30)]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = (str(path),)
    before = content(prepared(folder, dataset=data))
    assert content(prepared(folder, dataset=data, lazy_tokenize=True)) == before
    write_store(prepared(folder, dataset=data), folder / "cached" / "train")
    assert sorted(content(prepared(folder, cached_dataset=(str(folder / "cached"),)))) == sorted(before)
    return Whole(folder=folder, data=data, content=before)


@pytest.fixture
def run(whole, tmp_path):
    """run(**fields): the training set, in a folder that holds a copy of the whole cache."""
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    return lambda **fields: prepared(tmp_path, **(fields or {"dataset": whole.data}))


def of_length(content, length):
    return content[:length].ljust(length, b"\0")


def harmed(path, way, marker):
    """The file in its old length, so that the list of lengths does not tell."""
    whole = path.read_bytes()
    match way:
        case "a pickle":
            path.write_bytes(of_length(pickle.dumps(Command(marker)), len(whole)))
        case "zeros":
            path.write_bytes(b"\0" * len(whole))
        case "other numbers":
            path.write_bytes(whole[:-8] + b"\xff\xff\xff\xff\xff\xff\xff\x7f")
        case "cut off, and the list of lengths too":
            path.write_bytes(whole[: len(whole) // 2])
            lengths = json.loads((path.parent / LENGTHS).read_text())
            (path.parent / LENGTHS).write_text(json.dumps({**lengths, path.name: len(whole) // 2}))
        case _:
            path.unlink()
            lay(way, path)


WAYS = ["a pickle", "zeros", "other numbers", "cut off, and the list of lengths too", "a named pipe", "a device"]


def cases(names):
    return [
        (name, way)
        for name in names
        for way in WAYS
        if not (name in MAY_HOLD_ANYTHING and way in WAYS[:3])
        and (name, way) != ("numbers.npy", "other numbers")  # any number may be that of a row
    ]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("name", "way"), cases(STORE))
def test_tokenized_data_that_is_damaged_is_made_again(run, whole, tmp_path, name, way):
    marker = tmp_path / "it-was-run"
    [path] = (tmp_path / "run" / "data_cache").glob(f"*/{name}")
    harmed(path, way, marker)
    assert content(run()) == whole.content
    assert not marker.exists()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("name", "way"), cases(LAZY))
def test_rows_for_lazy_tokenization_that_are_damaged_are_written_again(run, whole, tmp_path, name, way):
    marker = tmp_path / "it-was-run"
    [path] = (tmp_path / "run" / "data_cache").glob(f"rows-*/{name}")
    harmed(path, way, marker)
    assert content(run(dataset=whole.data, lazy_tokenize=True)) == whole.content
    assert not marker.exists()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("name", "way"), cases(STORE))
def test_a_cached_dataset_that_is_damaged_is_refused(run, tmp_path, name, way):
    folder, marker = tmp_path / "cached" / "train", tmp_path / "it-was-run"
    harmed(folder / name, way, marker)
    with pytest.raises(InvalidInput, match=r"cached_dataset\[0\]"):
        run(cached_dataset=(str(folder.parent),))
    assert not marker.exists()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "way", ["a pickle", "cut off", "../other.arrow", "/dev/zero", "a named pipe", "words", "lengths"]
)
def test_a_folder_of_datasets_that_is_damaged_is_refused(run, tmp_path, way):
    folder, marker = tmp_path / "saved" / "train", tmp_path / "it-was-run"
    tokens = {"words": [["a"]], "lengths": [[1, 2, 3]]}.get(way, [[1, 2]])
    datasets.Dataset.from_dict({"input_ids": tokens, "labels": [[1, 2]]}).save_to_disk(folder)
    [arrow], state = folder.glob("*.arrow"), json.loads((folder / "state.json").read_text())
    match way:
        case "a pickle":
            arrow.write_bytes(pickle.dumps(Command(marker)))
        case "cut off":
            arrow.write_bytes(arrow.read_bytes()[:100])
        case "a named pipe":
            arrow.unlink()
            os.mkfifo(arrow)
        case "../other.arrow" | "/dev/zero":
            state["_data_files"] = [{"filename": way}]
            (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(InvalidInput, match=r"cached_dataset\[0\]"):
        run(cached_dataset=(str(folder.parent),))
    assert not marker.exists()


def test_types_of_arrow_that_are_pickles_run_no_code(tmp_path):
    """Earlier releases of pyarrow unpickled the type of a column that bears this name."""
    marker = tmp_path / "it-was-run"
    forged = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Command(marker)),
    }
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=forged)])
    table = pyarrow.table({"text": ["a"]}, schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert [row for _, row in read_file(tmp_path / "rows.parquet")] == [{"text": "a"}]
    assert not marker.exists()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("way", ["a named pipe", "a device", "words", "depth", "another type"])
def test_invalid_notes_of_a_stream_are_skipped(tmp_path, way):
    path, honest = tmp_path / "notes", Note(items=3, epoch=0, window=1)
    lines = {
        "words": b'{"items": "x", "epoch": 0, "window": 2, "waiting": []}',
        "depth": b"[" * 100_000,
        "another type": b'{"items": 1e999, "epoch": 0, "window": 2, "waiting": []}\n7\n{"waiting": 7}',
    }
    if way in lines:
        path.write_bytes(lines[way] + b"\n")
        journal.add(path, honest)
    else:
        lay(way, path)
    assert journal.latest(path, 5) == (honest if way in lines else START)
