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


def test_ids_beyond_the_embedding_are_refused_unless_it_grows(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    assert "the model's embedding has 300 rows" in refusal(model)
    grown = TrainArgs(model=str(model), new_special_tokens=("<new>",))
    assert len(model_source.tokenizer(grown, model)) == 316
