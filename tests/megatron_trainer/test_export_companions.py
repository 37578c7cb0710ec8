"""What stands beside exported weights: stop tokens as trained, templates, tokenizers of every kind, no missing code."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.support.models import tiny_model
from tests.support.ranks import conversion
from tests.support.ranks.exporting import export
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, train, write_data

pytestmark = pytest.mark.dist
END, START = 2, 1  # <|im_end|> and <s> of the tiny tokenizer


@pytest.fixture
def base(llama, tmp_path):
    """A base model: it ends texts with <s> and knows no end of a turn."""
    folder = shutil.copytree(llama, tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": START}))
    return folder


def stops(folder):
    """(ids that generation stops at, the tokenizer's end, texts that generation stops at)."""
    generation = GenerationConfig.from_pretrained(folder)
    return generation.eos_token_id, AutoTokenizer.from_pretrained(folder).eos_token, generation.stop_strings


def test_an_export_stops_where_trained_answers_end(base, tmp_path):
    """From the run itself, and from its checkpoint afterwards."""
    data = write_data(tmp_path / "train.jsonl")
    run = train(arguments(base, data, tmp_path / "run", train_iters=1, to_hf=True))
    assert run.exit_code == 0, run.message
    assert stops(run.folder / "hf") == ([END, START], "<|im_end|>", None)
    done = export(to_hf=True, mcore_model=run.folder, output_dir=tmp_path / "later")
    assert done.exit_code == 0, done.message
    assert stops(tmp_path / "later") == ([END, START], "<|im_end|>", None)
    assert AutoTokenizer.from_pretrained(tmp_path / "later").chat_template == tiny_model.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "given",
    [
        {"train_type": "lora", "merge_lora": True},
        pytest.param({"new_special_tokens": ["<new>"]}, marks=pytest.mark.slow),
    ],
)
def test_a_merged_adapter_and_a_grown_tokenizer_stop_there_too(base, tmp_path, given):
    data = write_data(tmp_path / "train.jsonl")
    run = train(arguments(base, data, tmp_path / "run", train_iters=1, to_hf=True, **given))
    assert run.exit_code == 0, run.message
    assert stops(run.folder / "hf") == ([END, START], "<|im_end|>", None)
    tokens = AutoTokenizer.from_pretrained(run.folder / "hf").get_vocab()
    assert ("<new>" in tokens) == ("new_special_tokens" in given)


def test_an_adapter_alone_says_where_answers_end_and_keeps_it_when_merged_elsewhere(base, tmp_path):
    data = write_data(tmp_path / "train.jsonl")
    run = train(arguments(base, data, tmp_path / "run", train_iters=1, train_type="lora", lora_rank=4))
    assert run.exit_code == 0, run.message
    assert stops(run.folder / "adapter") == ([END, START], "<|im_end|>", None)
    assert AutoTokenizer.from_pretrained(run.folder / "adapter").chat_template == tiny_model.CHAT_TEMPLATE
    alone = shutil.copytree(run.folder / "adapter", tmp_path / "elsewhere" / "adapter")
    done = export(to_hf=True, mcore_adapters=[str(alone)], model=str(base), output_dir=tmp_path / "merged")
    assert done.exit_code == 0, done.message
    assert stops(tmp_path / "merged") == ([END, START], "<|im_end|>", None)


@pytest.mark.slow
def test_an_adapter_of_a_model_that_stops_there_already_has_no_tokenizer_of_its_own(llama, tmp_path):
    data = write_data(tmp_path / "train.jsonl")
    run = train(arguments(llama, data, tmp_path / "run", train_iters=1, train_type="lora", lora_rank=4))
    assert run.exit_code == 0, run.message
    files = {path.name for path in (run.folder / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_model_that_stops_there_already_keeps_its_files(llama, tmp_path):
    gloo_ranks(1).run(conversion.convert_for, llama, tmp_path / "hf", ["<|im_end|>"])
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert (tmp_path / "hf" / name).read_text() == (llama / name).read_text()


def test_an_end_in_plain_text_is_a_stop_string(base, tmp_path):
    (base / "generation_config.json").unlink()
    gloo_ranks(1).run(conversion.convert_for, base, tmp_path / "hf", ["\n\nHuman:"])
    assert stops(tmp_path / "hf") == (2, "<s>", ["\n\nHuman:"])


def test_templates_and_tokenizers_of_all_kinds_come_along_and_code_does_not(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (folder / "tekken.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"AutoTokenizer": [None, "tokenization_x.XTokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": named}))
    gloo_ranks(1).run(conversion.convert, folder, tmp_path / "without", {})
    assert "auto_map" not in (tmp_path / "without" / "config.json").read_text()
    assert "auto_map" not in (tmp_path / "without" / "tokenizer_config.json").read_text()
    assert (tmp_path / "without" / "tekken.json").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "without").chat_template["tool_use"] == "{{ tools }}"
    AutoModelForCausalLM.from_pretrained(tmp_path / "without")
    (folder / "tokenization_x.py").write_text("class XTokenizer: ...")
    for _ in range(2):  # also into the folder of an earlier export
        gloo_ranks(1).run(conversion.convert, folder, tmp_path / "with", {}, keeps_others=True)
    assert (tmp_path / "with" / "tokenization_x.py").is_file()
    assert "tokenization_x" in (tmp_path / "with" / "tokenizer_config.json").read_text()
    assert torch.equal(
        *(load_file(tmp_path / way / "model.safetensors")["lm_head.weight"] for way in ("with", "without"))
    )
