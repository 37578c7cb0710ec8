"""Streams: every row once an epoch, the same after any interruption, tightly packed, in bounded memory."""

import json
import random
import resource
from dataclasses import replace
from itertools import islice

import pytest

from megatron_trainer.data.collate import RowShape
from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.loader import micro_batches
from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import parse_spec
from megatron_trainer.data.streaming import journal
from megatron_trainer.data.streaming.items import Stream, StreamSampler, micro_batches_of
from megatron_trainer.data.streaming.journal import Note
from megatron_trainer.data.streaming.pack import Waiting, pack_window
from megatron_trainer.data.streaming.rows import Mixture, StreamSource
from megatron_trainer.failure import InvalidInput, TrainingError
from tests.support.models.text_models import chatml_tokenizer

TOKENIZER = chatml_tokenizer()


def write(path, numbers, bad=()):
    source = random.Random(0)
    lines = []
    for number in numbers:
        row = {"query": "x" * source.randrange(100), "response": f"r{number}"}
        lines += ["{"] if number in bad else []
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return open_source(parse_spec(str(path)))


@pytest.fixture
def make(tmp_path):
    def make(numbers=range(100), *, sources=None, bad=(), encoder=None, **fields):
        if sources is None:
            sources = (StreamSource(source=write(tmp_path / "a.jsonl", numbers, bad)),)
        mixing = {name: fields.pop(name) for name in ("probabilities", "stopping") if name in fields}
        defaults = {
            "mixture": Mixture(sources=sources, **mixing),
            "encoder": encoder or Encoder(TOKENIZER, EncodeSettings()),
            "window_rows": 8,
            "shuffle": False,
            "seed": 1,
            "packing_length": None,
            "sample_multiple": 1,
            "is_strict": False,
            "notes": tmp_path / "notes",
        }
        return Stream(**{**defaults, **fields})

    return make


def sampler(**fields):
    return StreamSampler(**{"micro_batch_size": 1, "data_parallel_rank": 0, "data_parallel_size": 1, **fields})


def answers(batches):
    """Micro-batches as lists of row numbers (lists of lists where rows are packed)."""

    def number(sample):
        return int(TOKENIZER.decode(sample.input_ids[sample.labels >= 0])[1:].removesuffix("<|im_end|>"))

    return [
        [[number(s) for s in item] if isinstance(item, list) else number(item) for item in batch] for batch in batches
    ]


def flat(batches):
    return [n for batch in batches for item in batch for n in (item if isinstance(item, list) else [item])]


def test_rows_are_dealt_to_the_ranks_in_turn(make):
    stream = make(range(10))
    ranks = [
        answers(micro_batches_of(stream, sampler(data_parallel_rank=rank, data_parallel_size=2, num_epochs=1)))
        for rank in (0, 1)
    ]
    assert ranks == [[[0], [2], [4], [6], [8]], [[1], [3], [5], [7], [9]]]


def test_an_epoch_has_every_good_row_once_and_shuffles_inside_windows(make):
    stream = make(range(20), bad={3, 9}, shuffle=True)
    read = flat(answers(micro_batches_of(stream, sampler(num_epochs=2))))
    assert sorted(read[:20]) == sorted(read[20:]) == list(range(20))
    assert read[:20] != read[20:]
    assert sorted(read[:7]) != read[:7]
    assert max(read[:7]) <= 7  # the first window of 8 rows holds one bad row


@pytest.mark.parametrize("packing_length", [None, 300], ids=["single", "packed"])
@pytest.mark.parametrize("with_journal", [True, False], ids=["journal", "no journal"])
@pytest.mark.parametrize(("micro", "rank", "ranks"), [(1, 0, 1), (2, 1, 3)])
def test_resuming_anywhere_gives_the_rest_of_the_uninterrupted_stream(
    make, tmp_path, packing_length, with_journal, micro, rank, ranks
):
    stream = make(range(100), bad={5, 50}, shuffle=True, packing_length=packing_length)
    place = sampler(micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=ranks)
    whole = answers(islice(micro_batches_of(stream, place), 60))
    for taken in range(0, 50, 7):
        if not with_journal:
            stream = replace(stream, notes=tmp_path / f"empty{taken}")
        resumed = replace(place, consumed_samples=taken * micro * ranks)
        assert answers(islice(micro_batches_of(stream, resumed), 8)) == whole[taken : taken + 8]


def test_the_journal_spares_tokenizing_again(make):
    class Counting:
        """An encoder that counts; a real one does the work."""

        def __init__(self):
            self.real, self.rows = Encoder(TOKENIZER, EncodeSettings()), 0

        def encode(self, records):
            self.rows += len(records)
            return self.real.encode(records)

    encoder = Counting()
    stream = make(range(400), encoder=encoder, packing_length=300, shuffle=True)
    whole = answers(micro_batches_of(stream, sampler(num_epochs=1)))
    assert encoder.rows == 400
    encoder.rows = 0
    resumed = answers(micro_batches_of(stream, sampler(num_epochs=1, consumed_samples=len(whole) - 2)))
    assert resumed == whole[-2:]
    assert encoder.rows < 60


def test_packed_rows_hold_every_row_once_an_epoch_and_are_full(make):
    stream = make(range(1200), packing_length=1024, window_rows=200, shuffle=True)
    rows = [item for [item] in micro_batches_of(stream, sampler(num_epochs=1))]
    assert sorted(flat(answers([rows]))) == list(range(1200))
    lengths = [sum(sample.length for sample in row) for row in rows]
    assert max(lengths) <= 1024
    assert -(-sum(lengths) // 1024) / len(rows) >= 0.995


def test_waiting_is_bounded_and_ends():
    """Items of 600 fit no second time into 1000: a quarter of the rows waits, three windows at most."""
    waiting, given = [], []
    for window in range(6):
        entries = [Waiting(item=(window, n), length=600) for n in range(8)]
        rows, waiting = pack_window([*waiting, *entries], 1000, is_last=window == 5)
        given += rows
        assert len(waiting) <= 4
        assert all(entry.rounds <= 3 for entry in waiting)
    assert waiting == []
    assert sorted(item for row in given for item in row) == [(w, n) for w in range(6) for n in range(8)]


def test_datasets_are_chained_or_interleaved_as_prepared_ones_are(make, tmp_path):
    sources = (
        StreamSource(source=write(tmp_path / "b.jsonl", range(20))),
        StreamSource(source=write(tmp_path / "c.jsonl", range(100, 150)), num_rows=30),
    )
    chained = flat(answers(micro_batches_of(make(sources=sources), sampler(num_epochs=1))))
    assert chained == [*range(20), *range(100, 130)]
    first = make(sources=sources, probabilities=(0.5, 0.5), notes=tmp_path / "1")
    read = flat(answers(micro_batches_of(first, sampler(num_epochs=1))))
    assert [n for n in read if n < 100] == list(range(20))[: sum(n < 100 for n in read)]
    assert 19 in read
    assert read[-1] in (19, 129)
    every = make(sources=sources, probabilities=(0.5, 0.5), stopping="all_exhausted", notes=tmp_path / "2")
    assert set(flat(answers(micro_batches_of(every, sampler(num_epochs=1))))) == {*range(20), *range(100, 130)}


def test_micro_batches_are_the_same_in_this_and_in_another_process(make):
    stream = make(range(40), shuffle=True, packing_length=300)
    shape = RowShape(pad_id=0)
    here, there = (
        [b.tokens_BT.tolist() for b in islice(micro_batches(stream, sampler(), shape=shape, num_workers=workers), 12)]
        for workers in (0, 1)
    )
    assert here == there


def test_dropped_rows_are_reported_once_by_kind_and_counted_at_the_end_of_a_pass(make, caplog):
    list(micro_batches_of(make(range(20), bad={3, 9}), sampler(num_epochs=2)))
    first, *counts = [record.message for record in caplog.records]
    assert first.startswith("dropped a row, and will drop all others like it: ")
    assert counts == [f"rows dropped so far epoch={n} lane=0: {2 * n + 2} x not JSON" for n in (0, 1)]


def test_a_bad_row_stops_a_strict_stream(make):
    batches = micro_batches_of(make(range(10), bad={4}, is_strict=True), sampler())
    with pytest.raises(InvalidInput, match=r"a.jsonl:5: not JSON"):
        list(batches)


def test_a_pass_without_a_usable_row_says_why(make):
    with pytest.raises(TrainingError, match="fewer rows than data-parallel ranks"):
        list(islice(micro_batches_of(make(range(2)), sampler(data_parallel_rank=2, data_parallel_size=3)), 1))
    short = Encoder(TOKENIZER, EncodeSettings(max_length=5))
    with pytest.raises(TrainingError, match="longer than max_length"):
        list(islice(micro_batches_of(make(range(2), encoder=short), sampler()), 1))


def test_a_journal_survives_broken_lines(tmp_path):
    path = tmp_path / "notes.jsonl"
    assert journal.latest(path, 5) == journal.START
    notes = [Note(items=n, epoch=0, window=n // 10, waiting=((n, 1),)) for n in (10, 20, 30)]
    for note in notes:
        journal.add(path, note)
    with path.open("ab") as stream:
        stream.write(b'{"items": 25, "ep')
    assert journal.latest(path, 9) == journal.START
    assert journal.latest(path, 20) == notes[1]
    assert journal.latest(path, 99) == notes[2]


@pytest.mark.slow
def test_memory_stays_flat_over_a_large_file(make, tmp_path):
    """100 MB of text: the growth while reading is far below the file's size."""
    path = tmp_path / "large.jsonl"
    line = json.dumps({"query": "x " * 2000, "response": "y"}) + "\n"
    with path.open("w") as stream:
        for _ in range(25_000):
            stream.write(line)
    encoder = Encoder(TOKENIZER, EncodeSettings(max_length=100))
    source = StreamSource(source=open_source(parse_spec(str(path))))
    stream = make(sources=(source,), encoder=encoder, window_rows=200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TrainingError):
        next(micro_batches_of(stream, sampler()))
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert path.stat().st_size > 100e6
    assert grown_mb < 60
