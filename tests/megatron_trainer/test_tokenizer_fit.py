"""A tokenizer as transformers loads it: refused where it is empty, broken or has ids that the model has no rows for."""

import json
import shutil

import pytest

from megatron_trainer import model_source
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.tree import TrainArgs

EMPTY = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def model(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "model")


def refusal(model, **given):
    with pytest.raises(InvalidInput) as refused:
        model_source.tokenizer(TrainArgs(model=str(model), **given), model)
    return str(refused.value)


def test_a_tokenizer_that_fits_is_loaded(model):
    assert model_source.tokenizer(TrainArgs(model=str(model)), model)("Hello").input_ids


@pytest.mark.parametrize("beside", [{}, {"vocab.json": "{}", "merges.txt": ""}], ids=["missing", "empty"])
def test_an_empty_tokenizer_is_refused(model, beside):
    """transformers makes one of nothing but the settings; every row was then a few special tokens."""
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps(EMPTY))
    for name, content in beside.items():
        (model / name).write_text(content)
    assert ("tokenizer.json is missing" if not beside else "tokenizer") in refusal(model)


def test_a_file_that_is_no_tokenizer_is_refused(model):
    content = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**content, "model": {"type": "BPE", "vocab": {"a": 0}, "x": 1}}))
    assert "its tokenizer cannot be loaded" in refusal(model)


@pytest.mark.parametrize("has_vocabulary", [True, False])
def test_a_tokenizer_of_code_is_neither_run_nor_asked_about(model, monkeypatch, has_vocabulary):
    """transformers asks on the terminal whether to run it, where it is not told."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (model / "tokenization_own.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    code = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, **code}))
    if not has_vocabulary:
        (model / "tokenizer.json").rename(model / "own.tiktoken")
    said = refusal(model)
    assert "is Python code of its repository (auto_map), which is never run" in said
    assert ("to use its tokenizer.json" if has_vocabulary else "use a tokenizer.json made from it") in said
    assert not (model / "ran").exists()


def test_the_tokenizer_beside_code_is_used_once_the_code_is_taken_out(model):
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "OwnTokenizer"}))
    assert model_source.tokenizer(TrainArgs(model=str(model)), model)("Hello").input_ids


def test_ids_beyond_the_embedding_are_refused_unless_it_grows(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    assert "the model's embedding has 300 rows" in refusal(model)
    grown = TrainArgs(model=str(model), new_special_tokens=("<new>",))
    assert len(model_source.tokenizer(grown, model)) == 316
