"""What `mtj validate` says of models and data sets on this machine: read as the trainer reads them."""

from __future__ import annotations

import json

import pytest
import yaml

from megatron_operator.cli import main
from tests.support.operator.job_values import TINY, raw, write_model_header, write_tokenizer


@pytest.fixture
def validate(tmp_path, monkeypatch, capsys):
    """Validates a job with these arguments: (exit code, what was printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(TINY))
    write_model_header(tmp_path / "model", TINY)
    write_tokenizer(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("")

    def run(**arguments):
        given = {"model": "./model", "dataset": ["./train.jsonl"], "train_iters": 10, **arguments}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw({"args": given})))
        code = main(["validate", "job.yaml"])
        return code, " ".join("".join(capsys.readouterr()).split())

    return run


def test_the_cache_of_a_repository_is_named_with_the_folder_in_it(validate, tmp_path):
    (tmp_path / "cached" / "refs").mkdir(parents=True)
    (tmp_path / "cached" / "refs" / "main").write_text("5c1f")
    (tmp_path / "cached" / "snapshots" / "5c1f").mkdir(parents=True)
    code, text = validate(model="./cached")
    assert code == 2
    assert "It is the cache of a Hub repository: pass cached/snapshots/5c1f" in text


@pytest.mark.parametrize(
    ("name", "entry", "is_list"),
    [
        ("system", "./prompt.txt", False),
        ("template", "./own.jinja", False),
        ("template", "/no/such/own.yaml", False),
        ("new_special_tokens", "./words.txt", True),
    ],
)
def test_texts_in_files_are_looked_for(validate, tmp_path, name, entry, is_list):
    code, text = validate(**{name: [entry] if is_list else entry})
    assert code == 2
    assert f"spec.args.{name}: file {entry.removeprefix('./')} does not exist" in text
    (tmp_path / entry).write_text("{}") if entry.startswith(".") else None
    assert validate(system="You are brief.", template="chatml", new_special_tokens=["<new>"])[0] == 0
    assert not entry.startswith(".") or validate(**{name: [entry] if is_list else entry})[0] == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("./train.jsonl#5", ""),
        ("./set", ""),
        ("./set:small", ""),
        ("./set:small/large#5", ""),
        ("./a#b", ""),
        ("org/set:small#5", ""),
        ("./train.jsonl#0", "the part after # must be a number of rows, 1 or more"),
        ("./lost.jsonl#5", "lost.jsonl does not exist"),
        ("./lost:small", "lost does not exist"),
    ],
)
def test_data_sets_are_looked_for_as_the_trainer_reads_their_entries(validate, tmp_path, entry, message):
    (tmp_path / "set").mkdir()
    (tmp_path / "a#b").mkdir()
    code, text = validate(dataset=[entry])
    assert code == (2 if message else 0), text
    assert message in text
