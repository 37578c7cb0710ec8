"""The data command: a report without training, as text and JSON, and tokenized data for later."""

import json
from pathlib import Path

import pytest

from megatron_trainer.data import command
from megatron_trainjob.exit_codes import ExitCode
from tests.support.models.text_models import chatml_tokenizer


@pytest.fixture
def model(tmp_path):
    chatml_tokenizer().save_pretrained(str(tmp_path / "model"))
    config = {"model_type": "llama", "max_position_embeddings": 120, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    rows = [{"query": "q", "response": f"r{n}"} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    return str(tmp_path / "a.jsonl")


@pytest.fixture
def run(model, tmp_path):
    def run(*flags):
        common = ["--model", model, "--save", str(tmp_path / "save"), "--add_version", "false", "--train_iters", "1"]
        return command.main([*flags, *common])

    return run


def test_the_report_is_printed_and_written(run, data, tmp_path, capsys):
    assert run("--dataset", data, "--packing", "true", "--report", str(tmp_path / "report.json")) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"Training: {data}: 30 of 31 rows" in out
    assert f"Dropped: 1 row: not JSON; the first is {data}:31" in out
    assert "33 -        64 tokens" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["samples"], report["packing"]["length"]) == (30, 120)
    assert not (tmp_path / "save" / "val_dataset.jsonl").exists()


def test_a_stream_is_read_whole_to_account_for_it(run, data, capsys):
    assert run("--dataset", data, "--lazy_tokenize", "true") == ExitCode.OK
    assert "30 of 31 rows" in capsys.readouterr().out


def test_tokenized_data_is_written_to_be_given_again(run, data, tmp_path, capsys):
    folder = tmp_path / "cached"
    assert run("--dataset", data, "--split_dataset_ratio", "0.1", "--write-cached", str(folder)) == ExitCode.OK
    assert run("--cached_dataset", str(folder)) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"Training: {folder}: 27 of 31 rows" in out


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--dataset", "no/file.jsonl"], ExitCode.MISSING_INPUT, "dataset[0]: no such file or folder"),
        (["--dataset", "a.jsonl", "--max_lenght", "3"], ExitCode.BAD_ARGUMENTS, "max_length"),
    ],
)
def test_what_is_wrong_is_said_with_the_code_of_training(run, capsys, flags, code, message):
    assert run(*flags) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        ({"model_type": "kimi_k2", "max_position_embeddings": 120}, ExitCode.OK, "30 of 31 rows"),
        ({"model_type": "unheard_of", "max_position_embeddings": 120}, ExitCode.OK, "30 of 31 rows"),
        ({"model_type": "unheard_of"}, ExitCode.BAD_ARGUMENTS, "config.json has no max_position_embeddings"),
        (None, ExitCode.MISSING_INPUT, "has no config.json"),
        ([], ExitCode.MISSING_INPUT, "config.json is not a JSON object"),
    ],
)
def test_the_data_is_that_of_any_model_as_training_reads_it(run, data, model, capsys, config, code, message):
    """transformers does not know every family, and makes up what a config.json does not say."""
    path = Path(model) / "config.json"
    path.unlink()
    if config is not None:
        path.write_text(json.dumps(config))
    assert run("--dataset", data) == code
    assert message in "".join(capsys.readouterr())


def test_rows_are_shown_as_they_are_trained(run, data, capsys):
    assert run("--dataset", data, "--dataset_shuffle", "false", "--show", "2") == ExitCode.OK
    out = capsys.readouterr().out
    assert "--- 1: " in out
    assert "<|im_start|>assistant\n⟦r0<|im_end|>⟧\n" in out
    assert "⟦r1<|im_end|>⟧" in out
    assert "⟦r2" not in out


def test_tokens_are_shown_with_their_ids_and_weights(run, data, capsys):
    assert run("--dataset", data, "--dataset_shuffle", "false", "--show", "1", "--tokens") == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[1:] == ["1", "⟦'<|im_end|>'⟧"] for line in lines)
    assert any(line.split()[1:] == ["0", "'<|im_start|>'"] for line in lines)
