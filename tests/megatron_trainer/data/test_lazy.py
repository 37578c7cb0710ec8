"""Items tokenized at access: the same as prepared ones, with bad rows replaced."""

import json
import pickle

import pytest

from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.prepare import prepare
from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import parse_spec
from megatron_trainer.data.storage.lazy import LazyStore, write_rows
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainjob.args.tree import TrainArgs
from tests.support.models.text_models import chatml_tokenizer

TOKENIZER = chatml_tokenizer()


def write(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def good(number):
    return json.dumps({"query": "q", "response": f"r{number}"}).encode()


def answer(sample):
    return TOKENIZER.decode(sample.input_ids[sample.labels >= 0]).removesuffix("<|im_end|>")


@pytest.fixture
def store(tmp_path):
    def store(lines, **options):
        source = open_source(parse_spec(write(tmp_path / "a.jsonl", lines)))
        write_rows(source.records(), tmp_path / "rows")
        return LazyStore(tmp_path / "rows", Encoder(TOKENIZER, EncodeSettings()), **options)

    return store


def test_rows_are_tokenized_at_access_and_bad_ones_replaced_by_the_next(store):
    rows = store([good(0), b"{", b"\xff", good(3)])
    assert len(rows) == 4
    assert [answer(rows[n]) for n in range(4)] == ["r0", "r3", "r3", "r3"]
    copy = pickle.loads(pickle.dumps(rows))
    assert answer(copy[0]) == "r0"


def test_the_last_row_is_replaced_by_the_first(store):
    assert answer(store([good(0), b"{"])[1]) == "r0"


def test_too_many_bad_rows_stop_the_run_and_strict_stops_at_the_first(store):
    with pytest.raises(TrainingError, match="11 rows in succession cannot be used"):
        store([b"{"] * 20)[0]
    with pytest.raises(InvalidInput, match=r"a.jsonl:2: not JSON"):
        store([good(0), b"{"], is_strict=True)[1]


def test_lazy_items_equal_prepared_ones(tmp_path):
    path = write(tmp_path / "b.jsonl", [good(n) for n in range(30)])
    options = {"task": "sft", "max_length": 100, "save": tmp_path, "is_first_rank": True}
    args = {"dataset": (path,), "split_dataset_ratio": 0.1}
    lazy = prepare(TrainArgs(**args, lazy_tokenize=True), TOKENIZER, **options)
    held_out = (tmp_path / "val_dataset.jsonl").read_text()
    prepared = prepare(TrainArgs(**args), TOKENIZER, **options)
    assert [answer(s) for s in lazy.train] == [answer(s) for s in prepared.train]
    assert [answer(s) for s in lazy.validation] == [answer(s) for s in prepared.validation]
    assert (tmp_path / "val_dataset.jsonl").read_text() == held_out
    assert lazy.num_items == 27
    assert "tokens_per_epoch" not in lazy.report.to_json()
    assert lazy.report.to_json()["datasets"][0]["rows_read"] == 30
