"""custom_dataset_info: names of data sets, their columns, subsets and splits, and everything that can be wrong."""

import json
import re

import datasets
import pytest

from megatron_trainer.data.load import open_all
from megatron_trainer.data.reading.catalog import looked_up, read_catalog
from megatron_trainer.data.reading.source import HubAccess
from megatron_trainer.data.reading.spec import parse_spec
from megatron_trainer.data.row import parse_row
from megatron_trainer.data.settings import data_settings
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.tree import TrainArgs


@pytest.fixture
def file(tmp_path):
    """Writes entries to a file in a folder of its own, beside rows.jsonl and a folder of splits; returns its path."""
    folder = tmp_path / "known"
    (folder / "splits").mkdir(parents=True)
    (folder / "rows.jsonl").write_text('{"Frage": "1+1?", "antwort": "2"}\n{"Frage": "2+2?", "antwort": "4"}\n')
    for name in ("train", "validation", "test"):
        (folder / "splits" / f"{name}.jsonl").write_text(json.dumps({"query": name, "response": "x"}) + "\n")
    datasets.Dataset.from_list([{"query": "saved", "response": "x"}]).save_to_disk(str(folder / "saved"))

    def write(*entries: object) -> str:
        path = folder / "dataset_info.json"
        path.write_text(json.dumps(list(entries)))
        return str(path)

    return write


def rows(text, path):
    violations = []
    spec = looked_up(parse_spec(text), read_catalog([path], violations))
    assert violations == []
    (source,) = open_all("dataset", [spec], HubAccess())
    return [dict(parse_row(record.payload)) for record in source.records()]


def problems(*files):
    violations = []
    read_catalog(files, violations)
    return [str(each) for each in violations]


@pytest.mark.parametrize("name", ["math", "rows.jsonl", "PATH", "math#1"])
def test_an_entry_is_found_by_each_of_its_names_and_renames_its_columns(file, tmp_path, name):
    path = file(
        {"dataset_name": "math", "dataset_path": "rows.jsonl", "columns": {"frage": "query", "antwort": "response"}}
    )
    name = name.replace("PATH", str(tmp_path / "known" / "rows.jsonl"))
    assert rows(name, path) == [{"query": "1+1?", "response": "2"}, {"query": "2+2?", "response": "4"}]


def test_what_no_file_names_is_read_as_ever(file, tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"Frage": "a"}\n')
    assert rows(str(plain), file({"dataset_path": "rows.jsonl", "columns": {"Frage": "query"}})) == [{"Frage": "a"}]


@pytest.mark.parametrize(
    ("split", "found"),
    [(None, ["train"]), (["test"], ["test"]), (["train", "validation"], ["train", "validation"])],
    ids=str,
)
def test_the_splits_of_an_entry_are_read_one_after_the_other(file, split, found):
    path = file({"dataset_name": "split", "dataset_path": "splits", **({"split": split} if split else {})})
    assert [row["query"] for row in rows("split", path)] == found


@pytest.mark.parametrize(
    ("place", "said"),
    [("rows.jsonl", "is a file, which has neither"), ("saved", "has no split named test")],
    ids=["file", "saved"],
)
def test_a_split_that_is_not_there_is_refused(file, place, said):
    with pytest.raises(InvalidInput, match=said):
        rows("x", file({"dataset_name": "x", "dataset_path": place, "split": ["test"]}))


@pytest.mark.parametrize(
    ("text", "subsets", "chosen"),
    [
        ("org/set", ["a"], ("a",)),
        ("org/set", ["default", "b"], ("default",)),
        ("org/set:b", ["a", "b"], ("b",)),
        ("org/set:all", ["a", "b"], ("a", "b")),
        ("hf::org/set:all#5", ["a", "b"], ("a", "b")),
    ],
)
def test_the_subsets_are_those_of_the_entry_unless_some_are_named(file, text, subsets, chosen):
    spec = looked_up(parse_spec(text), read_catalog([file({"hf_dataset_id": "org/set", "subsets": subsets})], []))
    assert (spec.name, spec.path, spec.subsets) == ("org/set", None, chosen)
    assert spec.num_rows == (5 if "#" in text else None)


def test_one_of_several_subsets_must_be_named(file):
    catalog = read_catalog([file({"hf_dataset_id": "org/set", "subsets": ["a", "b"]})], [])
    with pytest.raises(ValueError, match="lists the subsets a, b; name some, as in org/set:a, or org/set:all"):
        looked_up(parse_spec("org/set"), catalog)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dataset_path": "none.jsonl"}, r"\[0\]\.dataset_path: .*none.jsonl does not exist; a path is relative"),
        ({"dataset_name": "x"}, "says nowhere where the data is; set one of dataset_path"),
        ({"dataset_path": "rows.jsonl", "colums": {}}, r"\[0\]\.colums: unknown field; it has dataset_name"),
        ({"dataset_path": 7}, r"\[0\]\.dataset_path: must be a text"),
        ({"dataset_path": "rows.jsonl", "split": "train"}, "must be a list of names"),
        ({"dataset_path": "rows.jsonl", "columns": {"a": 1}}, "must give columns new names"),
        ({"dataset_path": "rows.jsonl", "subsets": [{"name": "a"}]}, "must be a list of names"),
        ({"dataset_path": "rows.jsonl", "messages": {"role_key": "r"}}, "is not read here: roles and contents"),
        ("rows.jsonl", "is not an object"),
    ],
    ids=str,
)
def test_every_problem_names_file_entry_and_field(file, entry, said):
    (found,) = problems(file(entry))
    assert found.startswith("custom_dataset_info[0]")
    assert re.search(said, found), found


def test_a_name_of_two_different_entries_is_refused_where_it_is_used(file):
    same = {"dataset_name": "x", "dataset_path": "rows.jsonl"}
    assert len(rows("x", file(same, same))) == 2
    path = file(same, {"dataset_name": "x", "dataset_path": "splits"}, {**same, "dataset_name": "y", "tags": ["z"]})
    assert len(rows("y", path)) == 2
    with pytest.raises(ValueError, match="has 2 data sets of that name or place; use a dataset_name of one"):
        rows("x", path)
    other = file(same, {**same, "dataset_name": "y", "columns": {"Frage": "query"}})
    assert "query" in rows("y", other)[0]
    with pytest.raises(ValueError, match="of that name or place"):
        rows("rows.jsonl", other)


@pytest.mark.parametrize("content", ["{", "{}", "[" * 100_000], ids=["cut", "an object", "deep"])
def test_a_file_that_is_no_such_list_is_refused(tmp_path, content):
    path = tmp_path / "dataset_info.json"
    path.write_text(content)
    (found,) = problems(str(path))
    assert "custom_dataset_info[0]" in found


def test_the_problems_of_files_and_entries_are_reported_together(tmp_path):
    args = TrainArgs(dataset=("x#none",), custom_dataset_info=(str(tmp_path / "missing.json"),))
    with pytest.raises(InvalidInput) as refused:
        data_settings(args, task="sft", max_length=16)
    assert [each.path for each in refused.value.violations] == ["custom_dataset_info[0]", "dataset[0]"]


def test_rows_that_the_names_make_ambiguous_are_dropped_with_the_reason(file):
    columns = {"frage": "query", "antwort": "query"}
    path = file({"dataset_name": "x", "dataset_path": "rows.jsonl", "columns": columns})
    with pytest.raises(Exception, match="two columns mean query"):
        rows("x", path)
