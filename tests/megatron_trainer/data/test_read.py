"""Files of every kind, whole and damaged: each row is read or has a reason, and reading never stops early."""

import gzip
import json
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from megatron_trainer.data.conversation.formats import Recognition, recognize
from megatron_trainer.data.reading.packed import PACKED
from megatron_trainer.data.reading.read import READERS, read_file
from megatron_trainer.data.row import parse_row
from megatron_trainer.data.values import RowError
from megatron_trainjob import dataset_entry
from tests.support.data.row_files import ROWS, packed, read, rows, write

KINDS = (
    *("jsonl", "ndjson", "jsonl.gz", "jsonl.bz2", "jsonl.zst", "json", "json.gz", "json.zst"),
    *("csv", "tsv", "csv.zst", "parquet"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_gives_the_same_rows(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    write(path, kind)
    assert rows(path) == ROWS
    assert [record.number for record in read(path)] == [0, 1, 2, 3, 4]


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = tmp_path / "data.jsonl"
    write(path, "jsonl")
    assert [record.line for record in read(path)] == [1, 3, 5, 7, 9]


def test_text_lines(tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes("one\n\n zwölf\r\n".encode())
    assert rows(path) == [{"text": "one"}, {"text": " zwölf"}]


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode())
    assert rows(path) == ROWS[:1]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path):
    path = tmp_path / "data.json"
    write(path, "jsonl")
    assert rows(path) == ROWS


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["data.jsonl", "data.ndjson", "data.jsonl.gz"])
def test_an_array_in_a_file_of_lines_is_read_as_one(tmp_path, name, indent):
    path = tmp_path / name
    path.write_bytes(packed(b"\n" + json.dumps(ROWS, indent=indent).encode(), path.suffix))
    assert rows(path) == ROWS


@pytest.mark.parametrize("first", ["[1]", '[{"query": ', "[", '[{"text": "?"}]'])
def test_lines_of_which_the_first_begins_like_an_array_stay_lines(tmp_path, first):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([first, *map(json.dumps, ROWS)]))
    assert reasons(path)[1:] == [None] * len(ROWS)


def test_a_row_that_is_a_list_of_turns_is_a_conversation(tmp_path):
    turns = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": str(n)}] for n in range(3)]
    turns.append([{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}])
    for name, content in (
        ("a.jsonl", "\n".join(map(json.dumps, turns))),
        ("a.json", json.dumps(turns, indent=1)),
    ):
        (tmp_path / name).write_text(content)
        assert rows(tmp_path / name) == [{"messages": each} for each in turns]
    (tmp_path / "one.jsonl").write_text(json.dumps(turns[0]))
    assert rows(tmp_path / "one.jsonl") == [{"messages": turns[0]}]
    (tmp_path / "a.json").write_text('[[{"x": 1}], []]')
    assert reasons(tmp_path / "a.json") == [(1, "a row is not an object"), (2, "a row is not an object")]


def test_rows_within_one_object_are_read(tmp_path):
    path = tmp_path / "data.json"
    for content in ({"data": ROWS}, {"version": "1.1", "authors": ["a"], "rows": ROWS, "empty": []}):
        path.write_text(json.dumps(content, indent=1))
        assert rows(path) == ROWS
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(RowError, match="the file is one object") as caught:
        rows(path)
    assert caught.value.detail == "it has lists of rows in train, test; write one as an array"


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "a"}]},
        {"dialogue": [{"role": "user", "content": "a"}]},
        {"query": "a", "data": [{"x": 1}]},
        {"meta": {"data": [{"x": 1}]}},
    ],
)
def test_one_object_that_is_a_row_stays_one(tmp_path, row):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(row))
    assert rows(path) == [row]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_of_another_separator_is_read_by_its_header(tmp_path, separator):
    path = tmp_path / "data.csv"
    path.write_text(f'\ufeffquery{separator}response\n"a, b{separator}"{separator}"1,5"\n', encoding="utf-8")
    assert rows(path) == [{"query": f"a, b{separator}", "response": "1,5"}]
    path.write_text("query,a;b\n1,2;3\n")
    assert rows(path) == [{"query": "1", "a;b": "2;3"}]


def test_text_that_a_table_does_not_mark_as_text_is_read(tmp_path):
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"query": [b"2+2?"], "response": ["zwölf".encode()]}), path)
    found = recognize(rows(path)[0], Recognition())
    assert [message.content for message in found.messages] == ["2+2?", "zwölf"]
    with pytest.raises(RowError, match="a field is not text"):
        recognize({"query": b"\xff", "response": "a"}, Recognition())


def test_turns_as_maps_are_turns(tmp_path):
    """As Spark writes a list of map<string, string>."""
    path = tmp_path / "data.parquet"
    turn = pyarrow.map_(pyarrow.string(), pyarrow.string())
    messages = [[("role", "user"), ("content", "2+2?")], [("role", "assistant"), ("content", "4")]]
    pyarrow.parquet.write_table(pyarrow.table({"messages": pyarrow.array([messages], pyarrow.list_(turn))}), path)
    assert [message.content for message in recognize(rows(path)[0], Recognition()).messages] == ["2+2?", "4"]
    messages[0].append(("role", "system"))
    pyarrow.parquet.write_table(pyarrow.table({"messages": pyarrow.array([messages], pyarrow.list_(turn))}), path)
    assert reasons(path) == [(1, "the file is damaged")]


def test_nulls_by_which_arrow_fills_structs_are_left_out(tmp_path):
    rows_given = [
        {"query": "a", "response": "b", "meta": {"city": "Paris", "stock": None}, "list": [{"x": 1, "y": None}, None]},
        {"query": "c", "response": None, "meta": {"city": None, "stock": "X"}, "list": []},
    ]
    expected = [
        {"query": "a", "response": "b", "meta": {"city": "Paris"}, "list": [{"x": 1}, None]},
        {"query": "c", "meta": {"stock": "X"}, "list": []},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_given), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows_given).save_to_disk(str(tmp_path / "saved"))
    assert rows(tmp_path / "a.parquet") == rows(tmp_path / "saved") == expected


def test_a_dataset_saved_by_datasets(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "splits"))
    assert rows(tmp_path / "plain") == rows(tmp_path / "splits") == ROWS


def reasons(path):
    """What is wrong with each row: None for a good one."""
    found = []
    for record in read(path):
        try:
            parse_row(record.payload)
            found.append(None)
        except RowError as err:
            found.append((record.line, err.reason))
    return found


def test_bad_lines_do_not_stop_the_reading(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n{broken\n\xff\xfe\n[1]\n3\n{"a": 2}')
    assert reasons(path) == [
        None,
        (2, "not JSON"),
        (3, "not UTF-8"),
        (4, "a row is not an object"),
        (5, "a row is not an object"),
        None,
    ]


def test_a_truncated_gzip_file_gives_what_can_be_read_and_a_reason(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    lines = "".join(json.dumps({"text": random.Random(n).random()}) + "\n" for n in range(5000))
    path.write_bytes(gzip.compress(lines.encode())[:-40])
    found = reasons(path)
    assert found[:-1] == [None] * (len(found) - 1)
    assert len(found) > 100
    assert found[-1] == (len(found), "the file is damaged")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b"[{", [(1, "not JSON")]),
        ("a.json", b"\xff", [(1, "not UTF-8")]),
        ("a.json", b'[1, {"a": 1}]', [(1, "a row is not an object"), None]),
        ("a.json", b"[" * 100_000, [(1, "not JSON")]),
        ("a.jsonl", b"[" * 100_000, [(1, "not JSON")]),
        ("a.parquet", b"PAR1 no", [(1, "the file is damaged")]),
        ("a.jsonl.gz", b"no gzip", [(1, "the file is damaged")]),
        (
            "a.csv",
            b"a,b\n1\n1,2\n1,2,3\n\xff,2\n",
            [(2, "not a row of the table"), None, (4, "not a row of the table"), (5, "not UTF-8")],
        ),
        ("a.jsonl", b"", []),
        ("a.csv", b"", []),
    ],
)
def test_damaged_files(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert reasons(tmp_path / name) == expected


def damaged(source, content):
    """The bytes cut off, with some changed, or with a piece missing or twice."""
    place = source.randrange(len(content))
    match source.randrange(4):
        case 0:
            return content[:place]
        case 1:
            changed = bytearray(content)
            for _ in range(source.randrange(1, 8)):
                changed[source.randrange(len(changed))] = source.randrange(256)
            return bytes(changed)
        case 2:
            return content[:place] + content[place + source.randrange(1, 30) :]
        case _:
            return content[:place] + content[max(0, place - source.randrange(1, 30)) :]


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.zst", "json", "json.gz", "json.zst", "csv", "tsv", "parquet"]
)
def test_files_damaged_at_random_are_read_as_far_as_they_go(tmp_path, kind, count):
    source = random.Random(f"{kind} {count}")
    whole = tmp_path / f"whole.{kind}"
    write(whole, kind)
    found = []
    for number in range(count):
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(damaged(source, whole.read_bytes()))
        found += reasons(path)
    assert all(reason is None or (reason[0] >= 1 and reason[1]) for reason in found)
    assert len({reason[1] for reason in found if reason}) > 0


def test_a_line_without_end_is_passed_over_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_trainer.data.reading.read.MAX_LINE_BYTES", 100)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 1000 + b'\n{"a": 2}\n')
    assert reasons(path) == [None, (2, "the line is too long"), None]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused_because_one_would_be_lost(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text("query,response,query\na,b,c\n")
    else:
        columns = [pyarrow.array([text]) for text in "abc"]
        table = pyarrow.Table.from_arrays(columns, names=["query", "response", "query"])
        pyarrow.parquet.write_table(table, path)
    [(_, payload)] = read_file(path)
    assert "two columns have the name query" in str(payload)


def test_a_name_that_stands_twice_is_refused_where_one_value_would_be_lost():
    with pytest.raises(RowError, match="a name is used twice in an object") as refused:
        parse_row(b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}')
    assert refused.value.detail == "content"
    assert parse_row(b'{"id": 1, "query": "a", "id": 1}') == {"id": 1, "query": "a"}


@pytest.mark.parametrize("named_before", [True, False], ids=["of a spreadsheet", "and an index"])
def test_unnamed_columns_are_read_and_reported_unless_empty(tmp_path, named_before):
    path = tmp_path / "rows.csv"
    index = "" if named_before else ","
    path.write_text(f"{index}query,response,, \n{index}a,b,,\n{index}c,d,x,y\n")
    first, second = (payload for _, payload in read_file(path))
    assert first == {"query": "a", "response": "b"}
    found = recognize(second, Recognition())
    number = 3 if named_before else 4
    assert found.notes == tuple(f"nothing reads the column {n} (without a name)" for n in (number, number + 1))


@pytest.mark.parametrize("size", [1, 3 * 2**20])
def test_a_name_that_stands_twice_in_a_row_of_a_json_file_refuses_that_row(tmp_path, size):
    good, text = json.dumps({"query": "a"}), "x" * size
    twice = f'{{"messages": [{{"content": "a", "content": "b"}}], "more": "{text}"}}'
    (tmp_path / "a.json").write_text(f"[{good}, {twice}, {good}]")
    (tmp_path / "b.json").write_text(twice)
    (tmp_path / "c.json").write_text(f"{twice}\n{good}\n")
    (first, _), (second, refused), (third, row) = read_file(tmp_path / "a.json")
    assert (first, second, third, row) == (1, 2, 3, {"query": "a"})
    [(_, alone)] = read_file(tmp_path / "b.json")
    assert str(refused) == str(alone) == "a name is used twice in an object (content)"
    (_, line), (_, last) = read_file(tmp_path / "c.json")
    with pytest.raises(RowError, match="a name is used twice in an object"):
        parse_row(line)
    assert parse_row(last) == {"query": "a"}


def test_the_contract_knows_the_files_that_are_read():
    """By these names `mtj validate` and `mtj from-args` tell files from names of data sets."""
    assert (set(READERS), set(PACKED)) == (set(dataset_entry.FILES), set(dataset_entry.PACKED))
