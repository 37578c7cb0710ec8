"""From dataset arguments to items: accounting, cache, sampling, splitting, mixing, shuffling, packing."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from megatron_operator.cli import dropped_rows
from megatron_trainer.data.cached import write_store
from megatron_trainer.data.ordering.interleave import interleave
from megatron_trainer.data.prepare import prepare
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import DATA_REPORT
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.progress import Progress
from tests.support.models.text_models import SMOL, chatml_tokenizer


@pytest.fixture
def tokenizer():
    return chatml_tokenizer()


@pytest.fixture
def write(tmp_path):
    """write(name, numbers) makes a file in which row n asks for n and answers n."""

    def write(name, numbers, extra=()):
        rows = [{"query": f"q{n}", "response": f"r{n}", "channel": name[0]} for n in numbers]
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in [*map(json.dumps, rows), *extra]))
        return str(path)

    return write


@pytest.fixture
def run(tmp_path, tokenizer):
    """run(dataset=..., ...) prepares with these arguments; tests read the answers that come out."""

    def run(task="sft", max_length=200, progress=None, tokenizer=tokenizer, is_first_rank=True, **fields):
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return prepare(
            TrainArgs(**fields),
            tokenizer,
            task=task,
            max_length=max_length,
            save=tmp_path / "save",
            is_first_rank=is_first_rank,
            progress=progress,
        )

    return run


@pytest.fixture
def answers(tokenizer):
    """The numbers of the rows of a dataset, in order."""

    def answers(dataset):
        flat = [s for item in dataset for s in (item if isinstance(item, list) else [item])]
        return [int(tokenizer.decode(s.input_ids[s.labels >= 0])[1:].removesuffix("<|im_end|>")) for s in flat]

    return answers


def test_items_are_the_rows_with_labels_and_channel(run, write, tokenizer):
    [sample] = run(dataset=[write("math.jsonl", [7])]).train
    assert tokenizer.decode(sample.input_ids).endswith("user\nq7<|im_end|>\n<|im_start|>assistant\nr7<|im_end|>\n")
    assert tokenizer.decode(sample.labels[sample.labels >= 0]) == "r7<|im_end|>"
    assert (sample.channel, sample.loss_scale) == ("m", None)
    assert sample.input_ids.dtype == sample.labels.dtype == np.int32


def test_dropped_rows_are_told_as_lines_to_whoever_runs_the_job_here(run, write, tmp_path):
    extra = ["{", '{"a": 1}', "{", json.dumps({"query": "x" * 999, "response": "y"})]
    path, whole = write("a.jsonl", range(10), extra=extra), write("b.jsonl", range(3))
    progress = Progress(phase="training", attempt=0, report_path=str(tmp_path / "report.html"))
    assert dropped_rows.lines(progress) == []
    (tmp_path / DATA_REPORT).write_text(json.dumps(run(dataset=[path, whole]).report.to_json()))
    (line,) = dropped_rows.lines(progress)
    assert line.startswith(f"{path}: 4 of 14 rows dropped: 2 x not JSON (first at {path}:11); 1 x ")
    assert line.endswith("; 1 more reason in data_report.json")


def test_the_report_accounts_for_every_row(run, write):
    path = write("a.jsonl", range(10), extra=["{", '{"a": 1}', "{", json.dumps({"query": "x" * 999, "response": "y"})])
    report = run(dataset=[path], val_dataset=[write("v.jsonl", range(3))]).report
    [source] = report.datasets
    assert (source.rows_read, source.rows_kept, source.rows_truncated) == (14, 10, 0)
    assert [(d.reason, d.rows, d.example_location) for d in source.dropped] == [
        ("not JSON", 2, f"{path}:11"),
        ("longer than max_length", 1, f"{path}:14"),
        ("no known columns", 1, f"{path}:12"),
    ]
    assert (report.items, report.samples, report.validation_items) == (10, 10, 3)
    assert report.tokens_per_epoch == source.tokens == sum(report.histogram.rows) * report.length_mean
    assert json.loads(json.dumps(report.to_json()))["datasets"][0]["dropped"][0]["rows"] == 2


def test_truncated_rows_are_counted(run, write):
    report = run(dataset=[write("a.jsonl", range(5))], truncation_strategy="left", max_length=20).report
    assert (report.datasets[0].rows_truncated, report.length_max) == (5, 20)


def test_a_second_run_reads_the_cache_and_a_change_does_not(run, write, tmp_path):
    rows = []
    common = {"progress": lambda name, done: rows.append(done)}
    path = write("a.jsonl", range(10))
    assert not run(dataset=[path], **common).report.from_cache
    assert run(dataset=[path], **common).report.from_cache
    assert rows == [10]
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "b.jsonl"
    copy.write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert run(dataset=[str(copy)], **common).report.from_cache
    assert not run(dataset=[path], system="Be brief.", **common).report.from_cache
    assert not run(dataset=[path], max_length=199, **common).report.from_cache
    other = chatml_tokenizer(SMOL.replace("test", "other"))
    assert not run(dataset=[path], tokenizer=other, **common).report.from_cache
    write("a.jsonl", range(11))
    assert not run(dataset=[path], **common).report.from_cache
    assert not run(dataset=[path], load_from_cache_file=False, **common).report.from_cache


def test_several_processes_give_what_one_gives(run, write):
    path = write("a.jsonl", range(1000), extra=["{"])
    one = run(dataset=[path])
    two = run(dataset=[path], dataset_num_proc=2, load_from_cache_file=False)
    assert [s.input_ids.tolist() for s in one.train] == [s.input_ids.tolist() for s in two.train]
    assert one.report.datasets == two.report.datasets


def test_a_process_that_encodes_imports_no_torch():
    """Eight seconds of imports otherwise, in each of dataset_num_proc processes."""
    heavy = {"torch", "torchvision", "megatron.core"}
    program = f"import megatron_trainer.data.storage.worker, sys; print(sys.modules.keys() & {heavy})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


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


def test_pre_training_takes_text_whole(run, tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("The quick fox\nThe lazy dog\n")
    prepared = run(task="pt", dataset=[str(tmp_path / "a.txt")], dataset_shuffle=False)
    assert [tokenizer.decode(s.input_ids) for s in prepared.train] == [
        "The quick fox<|endoftext|>",
        "The lazy dog<|endoftext|>",
    ]
    assert all((s.labels[1:] == s.input_ids[1:]).all() for s in prepared.train)


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


def test_strict_stops_with_file_line_and_reason(run, write):
    path = write("a.jsonl", range(3), extra=["{", json.dumps({"query": "x" * 999, "response": "y"})])
    run(dataset=[path])  # what was cached without strict does not pass either
    with pytest.raises(InvalidInput) as caught:
        run(dataset=[path], strict=True)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(caught.value).startswith(f"{path}:4: not JSON; correct or remove the row")
    assert len(run(dataset=[write("b.jsonl", range(3))], strict=True).train) == 3


def test_all_missing_datasets_are_named_at_once(run, write):
    with pytest.raises(InvalidInput) as caught:
        run(dataset=["no/file.jsonl", write("a.jsonl", [1]), "none.csv"])
    assert [violation.path for violation in caught.value.violations] == ["dataset[0]", "dataset[2]"]
    assert caught.value.exit_code == ExitCode.MISSING_INPUT


def test_a_dataset_without_usable_rows_says_why(run, write):
    path = write("a.jsonl", [], extra=["{", "["])
    with pytest.raises(InvalidInput, match=f"none of its 2 rows can be trained on: 2 x not JSON, first at {path}:1"):
        run(dataset=[path])


def test_what_cannot_be_arranged_is_refused(run, write):
    path = write("a.jsonl", [1])
    for fields, message in [
        ({"split_dataset_ratio": 0.5}, "leaves no row for training"),
        ({"val_dataset": [f"{path}#5"]}, "the dataset has only 1 rows"),
        ({"interleave_prob": [0.5, 0.5]}, "2 probabilities for 1 datasets"),
        ({"columns": {"a": 3}}, "must be the new name of the column"),
        ({"system": "/no/file.txt"}, "the file cannot be read"),
        ({"dataset": [f"{path}#x"]}, "must be a number of rows"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            run(**{"dataset": [path], **fields})


def test_the_system_prompt_may_be_a_file_and_has_line_ends(run, write, tmp_path, tokenizer):
    (tmp_path / "system.txt").write_text("From a file.")
    path = write("a.jsonl", [1])
    for system, expected in [("One\\ntwo", "One\ntwo"), (str(tmp_path / "system.txt"), "From a file.")]:
        [sample] = run(dataset=[path], system=system).train
        assert f"system\n{expected}<|im_end|>" in tokenizer.decode(sample.input_ids)


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


def test_weights_that_come_late_are_kept_for_every_row(run, write):
    half = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r", "loss": 0.5}]}
    path = write("a.jsonl", range(300), extra=[json.dumps(half)])
    train = run(dataset=[path], dataset_shuffle=False).train
    assert set(train[0].loss_scale.tolist()) == {0, 1}
    assert set(train[300].loss_scale.tolist()) == {0, 0.5}
    lazy = run(dataset=[path], dataset_shuffle=False, lazy_tokenize=True).train
    assert set(lazy[300].loss_scale.tolist()) == {0, 0.5}


def test_what_is_said_of_rows_is_counted_and_loud_when_it_is_about_most_of_them(run, tmp_path, caplog):
    rows = [{"query": "q", "response": "r", "passage": "p", **({"mood": "m"} if n == 0 else {})} for n in range(5)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(dataset=[str(path)]).report
    task = "nothing reads the column passage, which looks like part of the task; name it with columns"
    assert report.datasets[0].notes == (f"5 rows: {task}", "1 row: nothing reads the column mood")
    assert [record.getMessage() for record in caplog.records if "passage" in record.getMessage()] == [
        f"most rows of {path}: {task}"
    ]
    assert "mood" not in caplog.text


def test_rows_tokenized_while_training_say_once_what_nothing_reads(run, tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"query": "q", "response": "r", "mood": "m"}) + "\n")
    train = run(dataset=[str(path)], lazy_tokenize=True).train
    _ = train[0], train[0]
    assert caplog.text.count("nothing reads the column mood") == 1


def test_the_report_names_what_answers_end_with_and_shows_the_first_rows(run, write):
    report = run(dataset=[write("a.jsonl", range(5))], dataset_shuffle=False).report
    assert report.stop_words == ("<|im_end|>",)
    assert [piece for piece in report.examples[1] if piece[1] > 0] == [("r1<|im_end|>", 1.0)]


def test_another_stop_token_of_the_model_folder_is_another_dataset_in_the_cache(run, write, tmp_path):
    tokenizer = chatml_tokenizer(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|><|endoftext|>' }}{% endfor %}"
    )
    tokenizer.name_or_path = str(tmp_path)
    path = write("a.jsonl", range(5))
    for tokens, ends in ((None, "<|im_end|><|endoftext|>"), ([2], "<|im_end|>")):
        if tokens:
            (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens}))
            tokenizer.eos_token = "<|im_end|>"
        sample = run(dataset=[path], tokenizer=tokenizer).train[0]
        assert tokenizer.decode(sample.input_ids[sample.labels >= 0]).endswith(ends)
