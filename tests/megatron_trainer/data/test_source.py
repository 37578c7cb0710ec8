"""Where rows come from: how an entry is written, what its folder holds, which split is read, and what is not there."""

import json
from pathlib import Path

import datasets
import pytest

from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import DatasetSpec, parse_spec
from megatron_trainer.data.reading.split import VALIDATION
from megatron_trainer.data.row import parse_row
from tests.support.data.row_files import ROWS, read, rows, write


def test_a_folder_is_all_its_data_files_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "b" / "1.jsonl", "jsonl")
    write(tmp_path / "a.csv", "csv")
    write(tmp_path / ".hidden" / "x.jsonl", "jsonl")
    (tmp_path / "README.md").write_text("not data")
    assert rows(tmp_path) == ROWS + ROWS
    assert [record.number for record in read(tmp_path)] == list(range(10))


SPLIT_FOLDERS = {
    "shards": ["train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl"],
    "shards in data/": ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
    "file names": ["train.jsonl", "test.jsonl", "dev.jsonl"],
    "words in file names": ["my_train_file.jsonl", "my_test_file.jsonl"],
    "folders": ["train/a.jsonl", "test/b.jsonl", "validation/c.jsonl"],
    "a file of another split's name": ["train.jsonl", "test.py"],
}


def write_splits(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"query": name, "response": "!"}))


@pytest.mark.parametrize("names", SPLIT_FOLDERS.values(), ids=SPLIT_FOLDERS.keys())
def test_of_a_folder_with_splits_only_the_training_split_is_read(tmp_path, names):
    write_splits(tmp_path, names)
    assert rows(tmp_path) == [{"query": names[0], "response": "!"}]
    saved = datasets.load_dataset(str(tmp_path), split="train") if names[-1] != "test.py" else None
    assert saved is None or saved["query"] == [names[0]]


@pytest.mark.parametrize(
    ("names", "read", "note"),
    [
        (["train.jsonl", "test.jsonl", "dev.jsonl"], "dev.jsonl", "read split validation, not train, test"),
        (["train.jsonl", "test.jsonl"], "test.jsonl", "read split test, not train"),
        (["a.jsonl"], "a.jsonl", ""),
    ],
)
def test_of_a_folder_given_as_val_dataset_the_validation_split_is_read(tmp_path, names, read, note):
    write_splits(tmp_path, names)
    source = open_source(parse_spec(str(tmp_path)), splits=VALIDATION)
    assert [parse_row(record.payload)["query"] for record in source.records()] == [read]
    assert source.note == note


def test_files_of_a_folder_that_nothing_reads_are_named(tmp_path):
    write_splits(tmp_path, ["train-1.jsonl", "train-2.jsonl.xz", "b/train-3.ARROW", "picture.png", ".cache/x.zst"])
    source = open_source(parse_spec(str(tmp_path)))
    assert [Path(record.file).name for record in source.records()] == ["train-1.jsonl"]
    assert source.note.startswith("did not read 2 of its files, whose kind is not supported (the first is b/train-3.A")


README = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: "one/*"}
  - {split: held_out, path: "two/*"}
- config_name: large
  data_files: "*/*.jsonl"
---
# Cards
"""


def test_readme_says_which_files_are_which_split(tmp_path):
    write_splits(tmp_path, ["one/a.jsonl", "two/b.jsonl"])
    (tmp_path / "README.md").write_text(README)
    with pytest.raises(ValueError, match=r"several configurations \(small, large\); add one"):
        open_source(parse_spec(str(tmp_path)))
    small = open_source(parse_spec(f"{tmp_path}:small"))
    assert [record.file for record in small.records()] == [str(tmp_path / "one" / "a.jsonl")]
    assert small.note == "read split train, not held_out"
    assert len(list(open_source(parse_spec(f"{tmp_path}:large#5")).records())) == 2
    with pytest.raises(ValueError, match="no configuration huge, only small, large"):
        open_source(parse_spec(f"{tmp_path}:huge"))


@pytest.mark.parametrize("names", [["a.jsonl", "LICENSE.txt"], ["data/train.csv", "train.txt", "train-notes.txt"]])
def test_texts_beside_rows_of_other_kinds_are_not_trained(tmp_path, names):
    write_splits(tmp_path, names)
    (tmp_path / names[0]).write_text("text\nhello\n" if names[0].endswith("csv") else '{"text": "hello"}')
    source = open_source(parse_spec(str(tmp_path)))
    assert [parse_row(record.payload) for record in source.records()] == [{"text": "hello"}]
    texts = len(names) - 1
    assert source.note.startswith(f"did not read {texts} .txt files beside rows of other kinds (the first is")
    (tmp_path / names[0]).unlink()
    assert len(rows(tmp_path)) == texts


def test_shards_of_which_others_are_missing_are_named(tmp_path):
    write_splits(tmp_path, ["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl", "data/train-0-of-1.jsonl"])
    source = open_source(parse_spec(str(tmp_path)))
    assert len(list(source.records())) == 3
    assert source.note == "only 2 of the 3 shards of train.jsonl are there"


@pytest.mark.parametrize("names", [["dataset_info.json"], ["dataset_info.json", "json-train.arrow"]])
def test_a_dataset_info_that_another_program_wrote_does_not_make_a_saved_table(tmp_path, names):
    """LLaMA-Factory describes the files of a folder in one; the cache of `datasets` has one without a state.json."""
    write_splits(tmp_path, [*names, "alpaca.jsonl"])
    assert rows(tmp_path) == [{"query": "alpaca.jsonl", "response": "!"}]
    (tmp_path / "alpaca.jsonl").unlink()
    said = "no data files .*json-train.arrow" if len(names) > 1 else "no data files"
    with pytest.raises(ValueError, match=said):
        open_source(parse_spec(str(tmp_path)))


@pytest.mark.parametrize("damage", ["state.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_table_is_refused_with_the_reason(tmp_path, damage):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / damage).write_text("{")
    with pytest.raises(ValueError, match=r"was saved by datasets and cannot be read \(.+\); save or copy it again"):
        open_source(parse_spec(str(tmp_path / "saved")))


def test_the_cache_of_a_repository_is_not_read_with_all_its_revisions(tmp_path):
    write_splits(tmp_path, ["snapshots/new/train.jsonl", "snapshots/old/train.jsonl"])
    (tmp_path / "refs").mkdir()
    for main, named in (("old\n", "old"), ("new", "new"), ("gone", "new")):
        (tmp_path / "refs" / "main").write_text(main)
        with pytest.raises(ValueError, match=f"is the cache of a Hub repository.*use .*/snapshots/{named}$"):
            open_source(parse_spec(str(tmp_path)))
    assert len(rows(tmp_path / "snapshots" / "new")) == 1


def test_a_subset_that_a_folder_cannot_have_is_refused_and_not_left_aside(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="without configurations; name a split by its folder: .*saved/..."):
        open_source(parse_spec(f"{tmp_path}/saved:train"))
    write_splits(tmp_path / "plain", ["en/train.jsonl", "de/train.jsonl"])
    with pytest.raises(ValueError, match="names no configurations, so there is no en; use .*plain/en"):
        open_source(parse_spec(f"{tmp_path}/plain:en"))


def test_a_file_with_subsets_is_refused_as_a_file(tmp_path):
    write_splits(tmp_path, ["a.jsonl"])
    with pytest.raises(ValueError, match="is a file, which has neither subsets nor splits"):
        open_source(parse_spec(f"{tmp_path}/a.jsonl:train"))


def test_a_folder_without_a_training_split_is_refused_with_those_it_has(tmp_path):
    write_splits(tmp_path, ["test.jsonl", "validation.jsonl"])
    with pytest.raises(ValueError, match="no split named train, only validation, test"):
        open_source(parse_spec(str(tmp_path)))
    datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="no split named train, only test"):
        open_source(parse_spec(str(tmp_path / "saved")))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("/no/such/file.jsonl", "no such file or folder"),
        ("missing.jsonl", "no such file or folder"),
        ("/no/such/*.jsonl", "patterns are not expanded"),
        ("s3://bucket/data.jsonl#500", "is a URL"),
        ("https://example.org/data.jsonl", "is a URL"),
        ("ms::org/name", "ModelScope"),
        ("org/name", "neither a local path nor a dataset found on the Hub"),
    ],
)
def test_what_is_not_there_says_what_to_do(monkeypatch, entry, message):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        open_source(parse_spec(entry))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.xlsx").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot read files of this kind"):
        open_source(parse_spec(str(tmp_path / "data.xlsx")))
    with pytest.raises(ValueError, match="the folder holds no data files"):
        open_source(parse_spec(str(tmp_path)))


def test_how_entries_are_written(tmp_path):
    path = tmp_path / "a#1.jsonl"
    path.write_text("{}")
    assert parse_spec(str(path)) == DatasetSpec(text=str(path), name=str(path), path=path)
    assert parse_spec(f"{path}#20") == DatasetSpec(text=f"{path}#20", name=str(path), path=path, num_rows=20)
    assert parse_spec("hf::org/set:a/b#7") == DatasetSpec(
        text="hf::org/set:a/b#7", name="org/set", hub="hf", subsets=("a", "b"), num_rows=7
    )
    with pytest.raises(ValueError, match="number of rows"):
        parse_spec("org/set#all")


def test_equal_content_has_an_equal_fingerprint_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / f"{name}.jsonl", "jsonl")
    sources = [open_source(parse_spec(str(tmp_path / name))) for name in ("a", "b")]
    assert sources[0].fingerprint() == sources[1].fingerprint()
    (tmp_path / "b" / "b.jsonl").write_text("{}")
    assert sources[0].fingerprint() != sources[1].fingerprint()
