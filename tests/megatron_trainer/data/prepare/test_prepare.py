"""From dataset arguments to items: what a row becomes, the account of every row, the cache, and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from megatron_operator.cli import dropped_rows
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.checkpoint_folder import DATA_REPORT
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.progress import Progress
from tests.support.models.text_models import SMOL, chatml_tokenizer


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


def test_pre_training_takes_text_whole(run, tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("The quick fox\nThe lazy dog\n")
    prepared = run(task="pt", dataset=[str(tmp_path / "a.txt")], dataset_shuffle=False)
    assert [tokenizer.decode(s.input_ids) for s in prepared.train] == [
        "The quick fox<|endoftext|>",
        "The lazy dog<|endoftext|>",
    ]
    assert all((s.labels[1:] == s.input_ids[1:]).all() for s in prepared.train)


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
