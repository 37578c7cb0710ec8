"""Files of every kind, whole and damaged: each row is read or has a reason, and reading never stops early."""

import gzip
import json
import random
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from megatron_trainer.data.conversation.formats import Recognition, recognize
from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings
from megatron_trainer.data.reading.read import read_file
from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import DatasetSpec, parse_spec
from megatron_trainer.data.reading.split import VALIDATION
from megatron_trainer.data.row import Record, parse_row
from megatron_trainer.data.values import Rejection, RowError
from tests.support.models.text_models import chatml_tokenizer

ROWS = [{"query": f"{n}+1?", "response": str(n + 1)} for n in range(5)]


def write(path, kind):
    match kind:
        case "jsonl" | "ndjson" | "jsonl.gz":
            content = "".join(json.dumps(row) + "\n\n" for row in ROWS).encode()
        case "json" | "json.gz":
            content = json.dumps(ROWS, indent=1).encode()
        case "csv" | "tsv":
            separator = "," if kind == "csv" else "\t"
            lines = [separator.join(row.values()) for row in ROWS]
            content = "\n".join([separator.join(ROWS[0]), *lines]).encode()
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
            return
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)


def read(path):
    return list(open_source(parse_spec(str(path))).records())


def rows(path):
    return [dict(parse_row(record.payload)) for record in read(path)]


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "jsonl.gz", "json", "json.gz", "csv", "tsv", "parquet"])
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


def test_a_folder_is_all_its_data_files_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "b" / "1.jsonl", "jsonl")
    write(tmp_path / "a.csv", "csv")
    write(tmp_path / ".hidden" / "x.jsonl", "jsonl")
    (tmp_path / "README.md").write_text("not data")
    assert rows(tmp_path) == ROWS + ROWS
    assert [record.number for record in read(tmp_path)] == list(range(10))


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
    write_splits(tmp_path, ["train-1.jsonl", "train-2.jsonl.zst", "b/train-3.ARROW", "picture.png", ".cache/x.zst"])
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
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "tsv", "parquet"])
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


JUNK = [
    None,
    True,
    0,
    -1.5,
    1e400,
    "",
    " ",
    "\x00",
    "\ud83d",
    "<|im_end|>",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
]
KEYS = ["messages", "conversations", "query", "response", "text", "instruction", "input", "output", "history", "system"]
KEYS += ["tools", "channel", "rejected_response", "rejected_messages", "images", "role", "content", "from", "value"]
KEYS += ["loss", "tool_calls", "name", "arguments", "function", "reasoning_content", "chosen", "rejected", "prompt"]
ROLES = ["user", "assistant", "system", "tool", "tool_call", "human", "gpt", "king", 3, None]


def junk(source, depth=0):
    kind = source.random()
    if depth > 3 or kind < 0.4:
        return source.choice(JUNK)
    if kind < 0.6:
        return [junk(source, depth + 1) for _ in range(source.randrange(4))]
    if kind < 0.75:
        turns = [
            {"role": source.choice(ROLES), "content": source.choice(["hi", junk(source, depth + 1)])} for _ in range(3)
        ]
        return turns + [{"role": "assistant", "content": "yes"}]
    return {source.choice(KEYS): junk(source, depth + 1) for _ in range(source.randrange(5))}


def junk_line(source):
    row = {source.choice(KEYS): junk(source) for _ in range(source.randrange(1, 6))}
    line = json.dumps(row).encode()
    if source.random() < 0.2:
        place = source.randrange(len(line))
        line = line[:place] + bytes([source.randrange(256)]) + line[place + 1 :]
    return line.replace(b"\n", b" ")


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_rows_of_junk_are_encoded_or_have_a_reason(count, chat):
    source = random.Random(count)
    records = [Record(n, "junk.jsonl", n + 1, junk_line(source)) for n in range(count)]
    settings = EncodeSettings(use_chat_template=chat, loss_scale="default" if chat else "all", max_length=2000)
    results = Encoder(chatml_tokenizer(), settings).encode(records)
    assert len(results) == count
    rejections = [result for result in results if isinstance(result, Rejection)]
    assert all(result.reason and result.location.file == "junk.jsonl" for result in rejections)
    kept = [result for result in results if isinstance(result, Encoded)]
    assert all(result.weights[0].any() and len(result.input_ids[0]) == len(result.weights[0]) for result in kept)
    assert 0 < len(kept) < count
    assert len({result.reason for result in rejections}) > 10


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
