"""Files that are no data files: refused or dropped with a reason, within bounded memory."""

import codecs
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from megatron_trainer.data.reading.read import MAX_GROWTH, read_file
from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import parse_spec
from megatron_trainer.data.values import RowError
from tests.support.data.no_files import LFS_POINTER, NO_FILES, lay
from tests.support.data.row_files import packed

READ = "megatron_trainer.data.reading.read"
"""Holds the limits that tests lower, so that what exceeds them is made in a moment."""


def repeated(text, count):
    """A column with the text in every row, of which the file holds one."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "a folder"])
@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv", "train.parquet", "train.jsonl.gz"])
def test_what_would_hang_is_refused_at_once(tmp_path, kind, name):
    path = tmp_path / name
    lay(kind, path)
    with pytest.raises(ValueError, match=f"is {kind}; pass a file"):
        open_source(parse_spec(str(path)))


@pytest.mark.parametrize("size", [1000, 10 * 2**40])
def test_a_file_that_was_never_written_is_refused_at_once(tmp_path, size):
    path = tmp_path / "train.jsonl"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match="starts with zeros: it was never fully written"):
        open_source(parse_spec(str(path)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "prompt,response\na,b\n".encode("utf-16"), "is UTF-16 text; convert it: iconv"),
        ("rows.jsonl", codecs.BOM_UTF16_BE + '{"text": "a"}'.encode("utf-16-be"), "is UTF-16 text"),
        ("rows.jsonl", gzip.compress(b'{"text": "a"}', mtime=0), "compressed by gzip; add .gz to its name"),
        ("rows.csv", b"PK\x03\x04...", "a zip archive or a spreadsheet"),
        ("rows.json", b"PAR1....", "its name must end with .parquet"),
        *((name, LFS_POINTER, "is a pointer of Git LFS") for name in ("rows.jsonl", "a.parquet", "a.jsonl.gz")),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_with_what_it_is(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        open_source(parse_spec(str(tmp_path / name)))


def test_one_giant_text_in_every_row_of_a_small_table_is_no_giant(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{READ}.MAX_LINE_BYTES", 2**22)
    monkeypatch.setattr(f"{READ}.BATCH_BYTES", 2**24)
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": repeated("a" * (3 * 2**20), 1000)}), path, compression="zstd")
    assert path.stat().st_size < 2**17
    found = read_file(path)
    before = pyarrow.total_allocated_bytes()
    _, row = next(found)
    assert len(row["text"]) == 3 * 2**20
    assert pyarrow.total_allocated_bytes() - before < 2**25


def test_a_text_beyond_measure_is_dropped_by_its_row(tmp_path):
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * (65 * 2**20), "b"]}), path, compression="none")
    first, second = [row for _, row in read_file(path)]
    assert isinstance(first, RowError)
    assert first.reason == "the row is too long"
    assert second == {"text": "b"}


def test_a_table_that_grows_as_no_text_does_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{READ}.FREE_GROWTH_BYTES", 2**20)
    path = tmp_path / "train.parquet"
    texts = repeated("a" * (2 * 2**20), 10)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd")
    (row,) = [payload for _, payload in read_file(path)]
    assert f"more than {MAX_GROWTH} times its size" in row.detail


def in_list(values):
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, len(values)], pyarrow.int32()), values)


def in_struct(values):
    return in_list(pyarrow.StructArray.from_arrays([values], names=["content"]))


def in_map(values):
    keys = pyarrow.array([f"{n}" for n in range(len(values))])
    return pyarrow.MapArray.from_arrays(pyarrow.array([0, len(values)], pyarrow.int32()), keys, values)


@pytest.mark.parametrize("nest", [in_list, in_struct, in_map, lambda values: in_list(in_list(values))])
@pytest.mark.parametrize("with_types", [True, False])
def test_one_giant_text_many_times_within_a_row_is_dropped_by_its_row(tmp_path, nest, with_types):
    """A hundred references to 5 MiB: a few hundred bytes of a file, and 500 MiB of a row."""
    path = tmp_path / "train.parquet"
    shared = repeated("a" * (5 * 2**20), 100)
    plain = pyarrow.array(["b"])
    for values, expected in ((shared, None), (plain, ["b"])):
        table = pyarrow.table({"messages": nest(values)})
        pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=with_types)
        before = pyarrow.total_allocated_bytes()
        peak = pyarrow.default_memory_pool().max_memory()
        (row,) = [payload for _, payload in read_file(path)]
        assert pyarrow.total_allocated_bytes() - before < 2**20
        assert max(peak, 2**28) >= pyarrow.default_memory_pool().max_memory()
        if expected is None:
            assert row.reason == "the row is too long"
        else:
            assert "b" in str(row)


def varint(number, length):
    """As Thrift writes a whole number, in so many bytes."""
    zigzag = 2 * number
    parts = [(zigzag >> (7 * place)) & 127 | 128 for place in range(length)]
    return bytes([*parts[:-1], parts[-1] & 127])


@pytest.fixture
def frees_at_once():
    """Arrow allocates from the system: other pools keep what was freed, and reading takes from there beyond a limit."""
    usual = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    yield
    pyarrow.set_memory_pool(usual)


def test_sizes_in_a_table_that_are_lies_are_bounded_by_memory(tmp_path, monkeypatch, frees_at_once):
    monkeypatch.setattr(f"{READ}.FREE_TABLE_BYTES", 2**26)
    path = tmp_path / "train.parquet"
    table = pyarrow.table({"text": ["a" * (150 * 2**20)]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    del table
    content = path.read_bytes()
    size = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).total_byte_size
    for length in (4, 5):
        content = content.replace(varint(size, length), varint(1000, length))
    path.write_bytes(content)
    assert pyarrow.parquet.ParquetFile(path).metadata.row_group(0).total_byte_size == 1000
    (row,) = [payload for _, payload in read_file(path)]
    assert row.reason == "the file is damaged"
    assert row.detail == f"malloc of size {150 * 2**20} failed"


def test_long_texts_that_many_rows_share_are_read_a_few_at_a_time(tmp_path):
    path = tmp_path / "train.parquet"
    table = pyarrow.table({"text": repeated("a" * 2**20, 300), "n": list(range(300))})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert [(row["n"], len(row["text"])) for _, row in read_file(path)] == [(n, 2**20) for n in range(300)]


@pytest.mark.parametrize(
    "name", ["train.jsonl.gz", "train.json.gz", "train.csv.gz", "train.txt.gz", "train.jsonl.zst", "a.json.bz2"]
)
@pytest.mark.parametrize("content", [b"\n", b"a", b"[", b" "])
def test_a_bomb_ends_with_a_reason(tmp_path, monkeypatch, name, content):
    monkeypatch.setattr(f"{READ}.FREE_GROWTH_BYTES", 2**18)
    monkeypatch.setattr(f"{READ}.MAX_LINE_BYTES", 2**17)
    path = tmp_path / name
    path.write_bytes(packed(content * 2**22, path.suffix))
    *_, last = [payload for _, payload in read_file(path)]
    assert isinstance(last, RowError)
    assert last.reason in ("the file is damaged", "not a row of the table", "not JSON")


def test_an_array_longer_than_memory_is_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_trainer.data.reading.json_rows.CHUNK_BYTES", 7)
    rows = [{"text": f"zwölf {n}", "list": [{"a": "]"}, n, None]} for n in range(50)]
    path = tmp_path / "train.json"
    for text in (json.dumps(rows, ensure_ascii=False), json.dumps(rows, indent=2), "\ufeff \n" + json.dumps(rows)):
        path.write_text(text)
        assert [row for _, row in read_file(path)] == rows
    path.write_text("[]")
    assert list(read_file(path)) == []


@pytest.mark.parametrize("rest", ["", ",", "}", ", {", "] ", ', {"a": '])
def test_the_rows_before_a_damaged_place_are_read(tmp_path, rest):
    path = tmp_path / "train.json"
    path.write_text('[{"a": 1}, 7, {"b": 2}' + rest)
    (first, second, third, *last) = [row for _, row in read_file(path)]
    assert (first, third) == ({"a": 1}, {"b": 2})
    assert second.reason == "a row is not an object"
    assert [row.reason for row in last] == ([] if rest == "] " else ["not JSON"])


def test_a_row_of_an_array_may_be_as_long_as_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{READ}.MAX_LINE_BYTES", 2**21)
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"text": "a" * 2**20}, {"text": "a" * 2**23}, {"text": "b"}]))
    first, second = [row for _, row in read_file(path)]
    assert len(first["text"]) == 2**20
    assert "more than 2097152 characters" in second.detail
