"""Tokenized folders: written, read again, combined, and those of ms-swift."""

import json
import tracemalloc

import datasets
import numpy as np
import pytest

from megatron_trainer.convert import command as export
from megatron_trainer.data.cached import write_store
from megatron_trainer.data.conversation.label import Label
from megatron_trainer.data.encoding.encode import Encoded
from megatron_trainer.data.prepare import prepare
from megatron_trainer.data.storage.chunk import to_chunk
from megatron_trainer.data.storage.store import Store, StoreWriter
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data import preference_data
from tests.support.models.text_models import chatml_tokenizer

TOKENIZER = chatml_tokenizer()


@pytest.fixture
def run(tmp_path):
    def run(task="sft", max_length=100, **fields):
        return prepare(
            TrainArgs(**fields), TOKENIZER, task=task, max_length=max_length, save=tmp_path, is_first_rank=True
        )

    return run


@pytest.fixture
def path(tmp_path):
    rows = [{"query": "q", "response": f"r{n}", "channel": "ab"[n % 2]} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    return str(tmp_path / "a.jsonl")


def content(items):
    return [(s.input_ids.tolist(), s.labels.tolist(), s.channel) for s in items]


def test_what_is_written_is_read_again_with_its_account(run, path, tmp_path):
    made = run(dataset=(path,), split_dataset_ratio=0.1)
    write_store(made.train, tmp_path / "cached" / "train")
    write_store(made.validation, tmp_path / "cached" / "val")
    read = run(cached_dataset=(str(tmp_path / "cached"),), dataset_shuffle=False)
    assert content(read.train) == content(made.train)
    assert content(read.validation) == content(made.validation)
    [source] = read.report.datasets
    assert (source.rows_read, [d.reason for d in source.dropped]) == (31, ["not JSON"])
    both = run(dataset=(path,), cached_dataset=(str(tmp_path / "cached"),), packing=True, packing_length=200)
    assert sum(len(row) for row in both.train) == 30 + 27


def test_weights_and_pairs_survive(run, tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"query": "q", "response": "Action: a\nThought: b"}) + "\n")
    made = run(dataset=(str(tmp_path / "r.jsonl"),), loss_scale="react")
    write_store(made.train, tmp_path / "weighted" / "train")
    [sample] = run(cached_dataset=(str(tmp_path / "weighted"),)).train
    assert sample.loss_scale.tolist() == made.train[0].loss_scale.tolist()
    assert {0.0, 1.0, 2.0} == set(sample.loss_scale.tolist())
    (tmp_path / "p.jsonl").write_text(json.dumps({"query": "q", "response": "a", "rejected_response": "b"}) + "\n")
    made = run(task="rlhf", dataset=(str(tmp_path / "p.jsonl"),))
    write_store(made.train, tmp_path / "pairs" / "train")
    [pair] = run(task="rlhf", cached_dataset=(str(tmp_path / "pairs"),)).train
    assert pair.rejected.input_ids.tolist() == made.train[0].rejected.input_ids.tolist()
    with pytest.raises(InvalidInput, match="it holds 2 sequences per row, but this task needs 1"):
        run(cached_dataset=(str(tmp_path / "pairs"),))


def test_a_folder_saved_by_datasets_is_converted(run, tmp_path):
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "length": 3},
        {"input_ids": [8, 9], "labels": [-100, 9], "length": 2},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "swift" / "train"))
    read = run(cached_dataset=(str(tmp_path / "swift"),), dataset_shuffle=False)
    assert content(read.train) == [([5, 6, 7], [-100, 6, 7], None), ([8, 9], [-100, 9], None)]
    assert read.validation is None
    assert read.train[0].loss_scale is None
    weighted = [{**rows[0], "loss_scale": [0.0, 1.0, 0.5]}]
    datasets.Dataset.from_list(weighted).save_to_disk(str(tmp_path / "weighted" / "train"))
    [sample] = run(cached_dataset=(str(tmp_path / "weighted"),)).train
    assert np.array_equal(sample.loss_scale, np.array([0, 1, 0.5], np.float32))


def test_what_cannot_be_used_says_why(run, path, tmp_path):
    with pytest.raises(InvalidInput, match="has no tokenized data; create it with"):
        run(cached_dataset=(str(tmp_path / "nothing"),))
    made = run(dataset=(path,))
    write_store(made.train, tmp_path / "long" / "train")
    with pytest.raises(InvalidInput, match="set max_length to at least that"):
        run(cached_dataset=(str(tmp_path / "long"),), max_length=10)
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(str(tmp_path / "text" / "train"))
    with pytest.raises(InvalidInput, match="lacks the columns input_ids, labels"):
        run(cached_dataset=(str(tmp_path / "text"),))


@pytest.fixture(scope="module")
def purposes(tmp_path_factory):
    """One folder of tokenized rows for each purpose, and the arguments with which they were made."""
    folder = tmp_path_factory.mktemp("purposes")
    rows = {"query": "q", "response": "a", "label": 1}
    two_classes = Label(problem="single_label_classification", count=2)
    (folder / "rows.jsonl").write_text("".join(json.dumps({**rows, "query": f"q{n}"}) + "\n" for n in range(3)))
    made = {
        "sft": {},
        "kto": {"task": "rlhf", "rlhf_type": "kto"},
        "classifier": {"task_type": "seq_cls", "num_labels": 2, "label": two_classes},
        "infonce": {"task_type": "embedding"},
        "reranker": {"task_type": "reranker"},
    }
    for name, fields in made.items():
        write_store(prepared(folder, dataset=(str(folder / "rows.jsonl"),), **fields).train, folder / name / "train")
    return folder, made


def prepared(folder, task="sft", label=None, **fields):
    return prepare(
        TrainArgs(**fields), TOKENIZER, task=task, max_length=99, save=folder / "save", is_first_rank=True, label=label
    )


PURPOSES = ("sft", "kto", "classifier", "infonce", "reranker")
INDISTINGUISHABLE = {("classifier", "kto")}
"""Answers of one token, labeled 0 and 1, look the same."""


@pytest.mark.parametrize("wanted", PURPOSES)
@pytest.mark.parametrize("held", PURPOSES)
def test_rows_made_for_another_task_are_refused(purposes, held, wanted):
    folder, made = purposes
    given = {"cached_dataset": (str(folder / held),), **made[wanted]}
    if held == wanted or (held, wanted) in INDISTINGUISHABLE:
        assert len(prepared(folder, **given).train) == 3
    else:
        with pytest.raises(InvalidInput, match=r"but this task .*; create it again with the task_type"):
            prepared(folder, **given)


def test_the_validation_part_is_checked_too(purposes, tmp_path):
    folder, made = purposes
    (tmp_path / "train").symlink_to(folder / "reranker" / "train")
    (tmp_path / "val").symlink_to(folder / "sft" / "train")
    with pytest.raises(InvalidInput, match="its rows are single texts, but this task needs groups of them"):
        prepared(folder, cached_dataset=(str(tmp_path),), **made["reranker"])


def test_lengths_of_groups_take_no_memory_by_the_token(tmp_path):
    writer = StoreWriter(tmp_path, sequences_per_row=1, is_weighted=False, is_grouped=True)
    ends = np.zeros(10**6, np.float32)
    ends[[9, -1]] = 1
    for ids in (np.arange(10**6), np.arange(0), np.arange(10)):
        row = Encoded(
            number=0, input_ids=(ids.astype(np.int32),), weights=(ends[: len(ids)],), channel=None, is_truncated=False
        )
        writer.append(to_chunk([row]))
    writer.close()
    store = Store(tmp_path)
    tracemalloc.start()
    assert store.padded_lengths(4).tolist() == [10**6 + 2 * 3, 0, 10 + 3]
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("given", "rows", "sequences"),
    [
        ({}, preference_data.rows(6), 1),
        ({"rlhf_type": "dpo"}, preference_data.rows(6), 2),
        ({"rlhf_type": "rm"}, preference_data.rows(6), 2),
        ({"rlhf_type": "kto"}, preference_data.single_rows(6), 1),
    ],
    ids=["conversations", "preference", "rewards", "single answers"],
)
def test_an_export_tokenizes_for_the_task_that_it_names(tmp_path, given, rows, sequences):
    """Pairs would otherwise be stored without their rejected answers."""
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 200}')
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {"model": tmp_path / "model", "dataset": tmp_path / "rows.jsonl", "output_dir": tmp_path / "cached"}
    flags = [f"--{name}={value}" for name, value in {**named, **given}.items()]
    assert export.main(["--to_cached_dataset=true", *flags]) == 0
    stored = json.loads((tmp_path / "cached" / "train" / "store.json").read_text())
    assert (stored["num_rows"], stored["sequences_per_row"]) == (6, sequences)
