"""Odd rows under real chat templates: each word is trained, given or masked as the row says, or the report names it."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import parse_spec
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Rejection
from tests.support.data.odd_rows import OddRows, traced, wrong
from tests.support.data.template_matrix import MODELS
from tests.support.matrix import mostly_slow

MODELS_BY_NAME = {model.name.partition(": ")[2]: model for model in MODELS}
SETTINGS = EncodeSettings(recognition=Recognition(needs_question=True))
ROWS_EACH = 20


def judged(name, rows, records):
    """(what is wrong, by row; how many rows are trained)."""
    tokenizer = MODELS_BY_NAME[name].tokenizer()
    results = Encoder(tokenizer, SETTINGS).encode(records)
    assert len(results) == len(rows)
    trained = [(row, result) for row, result in zip(rows, results, strict=True) if not isinstance(result, Rejection)]
    faults = [
        (found, row.fields)
        for row, result in trained
        if (found := wrong(row, *traced(tokenizer, result.input_ids[0], result.weights[0]), result.notes))
    ]
    return faults, len(trained)


SEEDS = range(len(MODELS))


@pytest.mark.parametrize(
    ("seed", "num_rows"),
    mostly_slow(
        [(seed, num_rows) for seed in SEEDS for num_rows in (ROWS_EACH, 200)],
        [(seed, ROWS_EACH) for seed in SEEDS if seed % 3 == 0],
    ),
)
def test_every_word_of_an_odd_row_is_where_it_belongs_or_reported(seed, num_rows):
    name = list(MODELS_BY_NAME)[seed]
    maker = OddRows(seed)
    rows = [maker.row() for _ in range(num_rows)]
    faults, trained = judged(name, rows, [Record(n, "f", n + 1, row.fields) for n, row in enumerate(rows)])
    assert not faults
    assert trained > num_rows * 0.3


def _as_lines(folder, rows):
    path = folder / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=bool(n % 2)) for n, row in enumerate(rows)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n")
    return path


def _as_packed_lines(folder, rows):
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def _as_array(folder, rows):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8-sig")
    return path


def _as_table(folder, rows):
    path = folder / "rows.csv"
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        table = csv.DictWriter(stream, names)
        table.writeheader()
        table.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return path


def _as_parquet(folder, rows):
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_filled(rows)), path)
    return path


def _as_saved(folder, rows):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(_filled(rows)).save_to_disk(folder / "saved")
    return folder / "saved"


def _filled(rows):
    """Every row with all columns, as tables have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


@pytest.mark.parametrize("write", [_as_lines, _as_packed_lines, _as_array, _as_table, _as_parquet, _as_saved])
@pytest.mark.parametrize("name", ["qwen3", "llama3_1"])
def test_every_kind_of_file_gives_the_same(tmp_path, write, name):
    maker = OddRows(40, is_flat=write is _as_table, is_uniform=write in (_as_parquet, _as_saved))
    rows = [maker.row() for _ in range(ROWS_EACH)]
    path = write(tmp_path, [row.fields for row in rows])
    records = list(open_source(parse_spec(str(path))).records())
    faults, trained = judged(name, rows, records)
    assert not faults
    assert trained > ROWS_EACH * 0.3
