"""Which rows are items and in which order: drawn, copied, split off, mixed, shuffled, packed."""

import pickle

import numpy as np
import pytest

from megatron_trainer.data.ordering.interleave import interleave


def test_shuffling_is_decided_by_data_seed_alone(run, write, answers):
    path = write("a.jsonl", range(50))
    in_order = answers(run(dataset=[path], dataset_shuffle=False).train)
    assert in_order == list(range(50))
    seeds = [answers(run(dataset=[path], data_seed=seed, seed=seed + 1).train) for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert sorted(seeds[2]) == in_order != seeds[2]


def test_fewer_rows_are_drawn_and_more_are_copied(run, write, answers):
    path = write("a.jsonl", range(10))
    drawn = answers(run(dataset=[f"{path}#4"]).train)
    assert len(set(drawn)) == 4
    assert answers(run(dataset=[f"{path}#4"], dataset_shuffle=False).train) == [0, 1, 2, 3]
    more = answers(run(dataset=[f"{path}#25"]).train)
    assert sorted(more.count(n) for n in range(10)) == [2] * 5 + [3] * 5
    assert answers(run(dataset=[f"{path}#12"], dataset_shuffle=False).train) == [*range(10), 0, 1]


def test_a_split_is_written_and_can_be_given_again(run, write, answers, tmp_path):
    paths = [write("a.jsonl", range(20)), write("b.jsonl", range(100, 105))]
    prepared = run(dataset=paths, split_dataset_ratio=0.1)
    held_out = answers(prepared.validation)
    assert len(held_out) == 3  # int(20 * 0.1), and at least 1 of 5
    assert sorted(held_out + answers(prepared.train)) == [*range(20), *range(100, 105)]
    again = run(dataset=paths, val_dataset=[str(tmp_path / "save" / "val_dataset.jsonl")], split_dataset_ratio=0.1)
    assert answers(again.validation) == held_out
    assert len(again.train) == 25


def test_only_the_first_rank_writes_the_split(run, write, tmp_path):
    prepared = run(dataset=[write("a.jsonl", range(20))], split_dataset_ratio=0.1, is_first_rank=False)
    assert len(prepared.validation) == 2
    assert not (tmp_path / "save" / "val_dataset.jsonl").exists()


def test_validation_is_in_order_unless_shuffled(run, write, answers):
    train, path = write("t.jsonl", range(3)), write("v.jsonl", range(30))
    assert answers(run(dataset=[train], val_dataset=[path]).validation) == list(range(30))
    shuffled = answers(run(dataset=[train], val_dataset=[path], val_dataset_shuffle=True).validation)
    assert sorted(shuffled) == list(range(30)) != shuffled


def test_datasets_are_concatenated_or_interleaved(run, write, answers):
    paths = [write("a.jsonl", range(20)), write("b.jsonl", range(100, 110))]
    assert answers(run(dataset=paths, dataset_shuffle=False).train) == [*range(20), *range(100, 110)]
    mixed = answers(run(dataset=paths, dataset_shuffle=False, interleave_prob=[0.5, 0.5]).train)
    assert [n for n in mixed if n < 100] == list(range(20))[: sum(n < 100 for n in mixed)]
    assert max(sum(n < 100 for n in mixed) - 19, sum(n >= 100 for n in mixed) - 9) == 1
    longer = answers(
        run(dataset=paths, dataset_shuffle=False, interleave_prob=[0.5, 0.5], stopping_strategy="all_exhausted").train
    )
    assert set(longer) == {*range(20), *range(100, 110)}


def test_interleaving_follows_the_probabilities():
    which, place = interleave([10_000, 10_000], [3, 1], stopping="first_exhausted", generator=np.random.default_rng(0))
    assert abs((which == 0).mean() - 0.75) < 0.02
    assert place[which == 0].tolist() == list(range(10_000))
    with pytest.raises(ValueError, match="3 probabilities for 2 datasets"):
        interleave([1, 1], [1, 1, 1], stopping="first_exhausted", generator=np.random.default_rng(0))


def test_packed_rows_hold_every_item_once(run, write, answers):
    prepared = run(dataset=[write("a.jsonl", range(40))], packing=True, packing_length=300)
    assert sorted(answers(prepared.train)) == list(range(40))
    report = prepared.report
    assert report.packing.rows == len(prepared.train) == report.items < 10
    assert all(sum(sample.length for sample in row) <= 300 for row in prepared.train)
    assert report.packing.fill == pytest.approx(report.tokens_per_epoch / (300 * report.items))


def test_context_parallel_lengths_count_when_packing(run, write):
    """cp 4 pads each sample to a multiple of 8, so fewer fit into a row; max_length 205 leaves room for 200."""
    path = write("a.jsonl", range(40))
    prepared = run(dataset=[path], packing=True, context_parallel_size=4, max_length=205)
    assert all(sum(-(-sample.length // 8) * 8 for sample in row) <= 205 for row in prepared.train)


def test_items_can_be_sent_to_another_process(run, write, answers):
    prepared = run(dataset=[write("a.jsonl", range(300))], packing=True)
    content = pickle.dumps(prepared.train)
    assert len(content) < 300 * 40  # indices, not tokens
    assert answers(pickle.loads(content)) == answers(prepared.train)


def test_the_identity_of_data_changes_with_its_rows_its_order_and_its_packing(run, write):
    paths = [write("a.jsonl", range(30)), write("b.jsonl", range(29))]
    ways = [
        {"dataset": [paths[0]]},
        {"dataset": [paths[0]], "data_seed": 1},
        {"dataset": [paths[1]]},
        {"dataset": [paths[0]], "packing": True},
        {"dataset": [paths[0]], "packing": True, "packing_length": 400},
        {"dataset": [paths[0]], "lazy_tokenize": True},
        {"dataset": [paths[0]], "streaming": True},
        {"dataset": [paths[0]], "streaming": True, "shuffle_buffer_size": 3},
    ]
    once, again = ([run(**way).identity for way in ways] for _ in range(2))
    assert once == again
    assert len(set(once)) == len(ways)
