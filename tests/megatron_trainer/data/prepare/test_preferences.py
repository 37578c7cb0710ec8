"""Rows of preferences as items: pairs of answers, answers with a label, and what is dropped of both."""

import json

import pytest

from megatron_trainer.data.cached import write_store
from megatron_trainer.failure import InvalidInput


def test_preference_training_gives_pairs(run, tmp_path, tokenizer):
    row = {"query": "2+2?", "response": "4", "rejected_response": "5"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "rejected_response": None}))
    prepared = run(task="rlhf", dataset=[str(tmp_path / "a.jsonl")], loss_scale="last_round")
    [pair] = prepared.train
    texts = [tokenizer.decode(s.input_ids[s.labels >= 0]) for s in (pair.chosen, pair.rejected)]
    assert texts == ["4<|im_end|>", "5<|im_end|>"]
    assert prepared.report.datasets[0].dropped[0].reason == "no rejected answer"
    assert prepared.report.length_max == pair.length


def test_pairs_that_cannot_be_trained_on_are_dropped_with_their_reasons(run, tmp_path):
    row = {"query": "2+2?", "response": "4", "rejected_response": "5"}
    long = "word " * 60
    rows = [
        row,
        {**row, "rejected_response": "4"},
        {**row, "rejected_response": None},
        {**row, "response": long + "yes", "rejected_response": long + "no"},
        {**row, "query": long},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    common = {"task": "rlhf", "dataset": [str(tmp_path / "a.jsonl")], "loss_scale": "last_round", "max_length": 40}
    deleted, cut = (run(**common, truncation_strategy=name).report.datasets[0] for name in ("delete", "right"))
    assert deleted.rows_kept == cut.rows_kept == 1
    same = {"the rejected answer equals the chosen one": 1, "no rejected answer": 1}
    assert {entry.reason: entry.rows for entry in deleted.dropped} == {**same, "longer than max_length": 2}
    assert {entry.reason: entry.rows for entry in cut.dropped} == {
        **same,
        "chosen and rejected are the same tokens": 1,
        "no trained token is left after truncation": 1,
    }


def test_answers_have_labels_and_rows_of_two_become_two(run, tmp_path, tokenizer):
    """Chosen answers come before the rejected ones of their rows, so that neighbors answer different prompts."""
    row = {"query": "2+2?", "response": "4"}
    rows = [
        {**row, "label": True},
        {**row, "response": "7", "label": False},
        {**row, "rejected_response": "5"},
        {"prompt": "3+3?", "chosen": "6", "rejected": "9"},
        {**row, "rejected_response": "8", "label": False},
        row,
        {**row, "label": "good"},
        {**row, "rejected_response": "4"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    given = {"dataset": [str(tmp_path / "a.jsonl")], "loss_scale": "last_round", "dataset_shuffle": False}
    prepared = run(task="rlhf", rlhf_type="kto", **given)
    found = [(tokenizer.decode(s.input_ids[s.labels >= 0])[0], s.target) for s in prepared.train]
    good, bad = (1.0,), (0.0,)
    assert found == [("4", good), ("7", bad), ("4", good), ("6", good), ("8", bad), ("5", bad), ("9", bad)]
    assert {entry.reason: entry.rows for entry in prepared.report.datasets[0].dropped} == {
        "no label": 1,
        "the label is neither true nor false": 1,
        "the rejected answer equals the chosen one": 2,
    }
    lazy = run(task="rlhf", rlhf_type="kto", lazy_tokenize=True, **given)
    assert lazy.train[1].target == bad


def test_cached_answers_keep_their_labels(run, tmp_path):
    row = {"query": "2+2?", "response": "4", "rejected_response": "5"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    given = {"task": "rlhf", "rlhf_type": "kto", "dataset_shuffle": False}
    made = run(**given, dataset=[str(tmp_path / "a.jsonl")])
    write_store(made.train, tmp_path / "cached" / "train")
    again = run(**given, cached_dataset=[str(tmp_path / "cached")])
    assert [sample.target for sample in again.train] == [(1.0,), (0.0,)]
    plain = run(dataset=[str(tmp_path / "a.jsonl")])
    write_store(plain.train, tmp_path / "plain" / "train")
    with pytest.raises(InvalidInput, match="its rows have no labels"):
        run(**given, cached_dataset=[str(tmp_path / "plain")])
