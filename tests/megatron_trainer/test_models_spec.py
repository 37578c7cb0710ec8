"""Reading a model directory: families, sizes, overrides by arguments, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_trainer.failure import InvalidInput
from megatron_trainer.models.spec import read_model
from megatron_trainjob.args import rules
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.families import FAMILIES
from megatron_trainjob.families.expression import moe_layers
from tests.support.models.tiny_model import MODELS


def write_config(folder: Path, name: str = "llama", **settings: Any) -> Path:
    """A directory with config.json alone, as transformers would write it."""
    from tests.support.models.tiny_model import config_of

    content = {**config_of(name).to_dict(), "model_type": MODELS[name][0], **settings}
    (folder / "config.json").write_text(json.dumps(content, default=str))
    return folder


def violations(folder: Path, **settings: Any) -> dict[str, str]:
    """Message by path."""
    with pytest.raises(InvalidInput) as refused:
        read_model(folder, TrainArgs(**settings))
    return {violation.path: violation.message for violation in refused.value.violations}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_tiny_model_is_read(tmp_path: Path, name: str):
    spec = read_model(write_config(tmp_path, name), TrainArgs())
    assert spec.model.family == MODELS[name][0]
    assert spec.vocab_size == spec.hf_config.vocab_size


def test_the_vocabulary_is_padded_to_a_multiple_of_the_tensor_parallel_size(tmp_path: Path):
    spec = read_model(write_config(tmp_path, vocab_size=251), TrainArgs(tensor_model_parallel_size=4))
    assert (spec.vocab_size, spec.padded_vocab_size) == (251, 252)


def test_a_larger_tokenizer_grows_the_vocabulary(tmp_path: Path):
    spec = read_model(write_config(tmp_path, vocab_size=250), TrainArgs(), num_tokens=260)
    assert (spec.vocab_size, spec.padded_vocab_size, spec.config["vocab_size"]) == (260, 260, 260)


def test_a_padded_vocabulary_that_is_too_small_is_refused(tmp_path: Path):
    found = violations(write_config(tmp_path, vocab_size=250), padded_vocab_size=249)
    assert "at least the vocabulary of 250 tokens" in found["spec.args.padded_vocab_size"]


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({}, torch.bfloat16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"fp16": True}, torch.float16),
        ({"fp16": False, "bf16": False}, torch.float32),
    ],
    ids=["as stored", "torch_dtype", "fp16", "neither"],
)
def test_parameters_have_the_type_that_is_asked_for(tmp_path: Path, given: dict[str, Any], dtype: torch.dtype):
    assert read_model(write_config(tmp_path, dtype="bfloat16"), TrainArgs(**given)).dtype == dtype


def test_arguments_change_the_configuration_that_is_exported(tmp_path: Path):
    given = {"num_layers": 2, "untie_embeddings_and_output_weights": False, "no_initialization": False}
    spec = read_model(write_config(tmp_path), TrainArgs(rotary_base=500000, norm_epsilon=1e-6, **given))
    assert spec.hf_config.num_hidden_layers == spec.config["num_hidden_layers"] == 2
    assert spec.hf_config.rope_parameters["rope_theta"] == spec.config["rope_theta"] == 500000
    assert spec.hf_config.rms_norm_eps == 1e-6
    assert spec.tied
    assert "rope_parameters" not in spec.config


def test_rope_scaling_by_name_takes_its_factor_from_the_length_to_reach(tmp_path: Path):
    spec = read_model(write_config(tmp_path), TrainArgs(rope_scaling="yarn", max_model_len=2048))
    parameters = spec.hf_config.rope_parameters
    assert (parameters["rope_type"], parameters["factor"]) == ("yarn", 4.0)
    assert parameters["original_max_position_embeddings"] == 512


def test_rope_scaling_as_an_object_is_taken_as_it_is(tmp_path: Path):
    given = {"type": "linear", "factor": 2.0}
    spec = read_model(write_config(tmp_path), TrainArgs(rope_scaling=given))
    assert spec.hf_config.rope_parameters["rope_type"] == "linear"


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "qwen3_moe"])
def test_what_is_exported_with_scaling_is_a_model_of_transformers(tmp_path: Path, name: str, kind: str):
    """Mixtral's configuration has no size of heads of its own, by which transformers computes some types."""
    given = {"rope_type": kind, "factor": 2.0}
    spec = read_model(write_config(tmp_path, name), TrainArgs(rope_scaling=given, max_length=16))
    (tmp_path / "config.json").write_text(json.dumps(spec.stored_config, default=str))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert model.config.rope_parameters["rope_type"] == kind


def test_an_unknown_family_names_the_known_ones_and_where_to_add_one(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InvalidInput) as refused:
        read_model(tmp_path, TrainArgs())
    assert refused.value.exit_code == ExitCode.UNSUPPORTED
    assert all(name in str(refused.value) for name in FAMILIES)
    assert "docs/adding-a-family.md" in str(refused.value)


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["absent", "broken", "a list"])
def test_a_directory_without_a_readable_config_is_a_missing_input(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InvalidInput) as refused:
        read_model(tmp_path, TrainArgs())
    assert refused.value.exit_code == ExitCode.MISSING_INPUT
    assert str(tmp_path) in str(refused.value)


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    # model, its settings, arguments, path and words of the violation
    "activation": ("llama", {"hidden_act": "tanh"}, {}, "config.json:hidden_act", "silu"),
    "quantized": ("llama", {"quantization_config": {"bits": 4}}, {}, "config.json:quantization_config", "bfloat16"),
    "heads": ("llama", {}, {"tensor_model_parallel_size": 3}, "spec.args.tensor_model_parallel_size", "4 attention"),
    "experts and no sequence parallelism": (
        "mixtral",
        {},
        {"tensor_model_parallel_size": 2},
        "spec.args.sequence_parallel",
        "mixture of experts",
    ),
    "latent attention and no sequence parallelism": (
        "deepseek_v3",
        {"first_k_dense_replace": 4},
        {"tensor_model_parallel_size": 2},
        "spec.args.sequence_parallel",
        "latent attention",
    ),
    "experts that do not divide": (
        "mixtral",
        {},
        {"expert_model_parallel_size": 3},
        "spec.args.expert_model_parallel_size",
        "4 experts",
    ),
    "no experts": (
        "llama",
        {},
        {"expert_model_parallel_size": 2},
        "spec.args.expert_model_parallel_size",
        "no experts",
    ),
    "allgather over stages": (
        "mixtral",
        {},
        {"pipeline_model_parallel_size": 2, "moe_token_dispatcher_type": "allgather"},
        "spec.args.moe_token_dispatcher_type",
        "alltoall",
    ),
    "groups that hold too few experts": (
        "deepseek_v3",
        {"num_experts_per_tok": 5},
        {},
        "config.json:topk_group",
        "hold 4 experts",
    ),
    "groups of two sizes": ("deepseek_v3", {"n_group": 3}, {}, "config.json:n_group", "8 experts"),
    "no number of experts": ("dots1", {"n_routed_experts": None}, {}, "config.json:n_routed_experts", "at least 1"),
    "more experts for a token than there are": (
        "mixtral",
        {"num_experts_per_tok": 5},
        {},
        "config.json:num_experts_per_tok",
        "4 experts",
    ),
    "a choice of experts that no one knows": (
        "deepseek_v2",
        {"topk_method": "x"},
        {},
        "config.json:topk_method",
        "greedy",
    ),
    "a number in quotes": ("llama", {"hidden_size": "64"}, {}, "config.json:hidden_size", "a whole number"),
    "half a rotation of latent attention": (
        "glm4_moe_lite",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {},
        "config.json:partial_rotary_factor",
        "all of qk_rope_head_dim",
    ),
    "scaling without its factor": (
        "deepseek_v3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {},
        "config.json:rope_parameters",
        "yarn scaling needs factor",
    ),
    "a kind of scaling that no one knows, in latent attention": (
        "deepseek_v3",
        {"rope_parameters": {"rope_type": "cubic", "rope_theta": 1e4}},
        {},
        "config.json:rope_parameters.rope_type",
        "supported are default",
    ),
    "a kind of scaling of another family": (
        "phi3",
        {"partial_rotary_factor": 1.0, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {},
        "config.json:rope_scaling",
        "longrope only",
    ),
    "scaled frequencies of a part of the head": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5}},
        {},
        "config.json:partial_rotary_factor",
        "whole heads",
    ),
    "rotation that differs by layer": (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        {},
        "config.json:rope_parameters",
        "differ by layer",
    ),
    "sliding layers without a window": (
        "qwen2",
        {"layer_types": ["sliding_attention"] * 4},
        {},
        "config.json:layer_types",
        "no window",
    ),
    "kinds of layers that no one knows": (
        "qwen3",
        {"layer_types": ["linear_attention"] * 4},
        {},
        "config.json:layer_types",
        "each of the 4 layers",
    ),
    "key-value heads in latent attention": (
        "deepseek_v3",
        {"num_key_value_heads": 2},
        {},
        "config.json:num_key_value_heads",
        "set it to 4",
    ),
    "rotated pairs of halves": ("deepseek_v3", {"rope_interleave": False}, {}, "config.json:rope_interleave", "pairs"),
    "one bias of two": ("internlm3", {"attention_bias": False}, {}, "config.json:attention_bias", "same as"),
    "biases of latent attention": ("deepseek_v3", {"attention_bias": True}, {}, "config.json:attention_bias", "biases"),
    "a setting of other families": ("llama", {}, {"num_experts": 4}, "spec.args.num_experts", "no such setting"),
    "another shape than stored": ("llama", {}, {"num_layers": 2}, "spec.args.num_layers", "num_hidden_layers 4"),
    "other heads than stored": (
        "deepseek_v3",
        {},
        {"num_attention_heads": 8},
        "spec.args.num_attention_heads",
        "num_attention_heads 4",
    ),
    "shared heads of latent attention": (
        "deepseek_v3",
        {},
        {"num_query_groups": 2, "no_initialization": False},
        "spec.args.num_query_groups",
        "each of the 4 attention heads",
    ),
    "heads that do not share evenly": (
        "qwen3",
        {},
        {"num_query_groups": 3, "no_initialization": False},
        "config.json:num_key_value_heads",
        "a divisor of 4",
    ),
    "heads that do not divide the hidden size": (
        "qwen2",
        {},
        {"hidden_size": 66, "no_initialization": False},
        "config.json:hidden_size",
        "not divisible by 4 heads",
    ),
    "heads with a size of their own that do not divide it": (
        "llama",
        {},
        {"hidden_size": 66, "no_initialization": False},
        "config.json:hidden_size",
        "not divisible by 4 heads",
    ),
    "a share of the rotation in a family without": (
        "llama",
        {},
        {"rotary_percent": 0.5},
        "spec.args.rotary_percent",
        "llama",
    ),
    "a contradiction": ("llama", {}, {"qk_layernorm": True}, "spec.args.qk_layernorm", "false"),
    "scaling without a length": ("llama", {}, {"rope_scaling": "yarn"}, "spec.args.rope_scaling", "max_model_len"),
    "scaling that is no object": ("llama", {}, {"rope_scaling": "{x"}, "spec.args.rope_scaling", "JSON"),
    "frequencies that change with the length": (
        "llama",
        {},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_length": 1024},
        "spec.args.max_length",
        "at most 512",
    ),
    "a tower under muon": ("qwen2_5_vl", {}, {"optimizer": "muon", "freeze_vit": False}, "spec.args.optimizer", "adam"),
    "part of a tower under muon": (
        "qwen2_5_vl",
        {},
        {"optimizer": "muon", "trainable_parameters": ["visual.blocks.0."]},
        "spec.args.optimizer",
        "take the tower out of trainable_parameters",
    ),
    "deep features for another stage": (
        "qwen3_vl",
        {},
        {"pipeline_model_parallel_size": 4},
        "spec.args.pipeline_model_parallel_size",
        "begins with 1 layers",
    ),
    "scaled sections": (
        "qwen2_vl",
        {},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "spec.args.rope_scaling",
        "cannot be scaled",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_right_is_refused(tmp_path: Path, case: tuple[str, dict[str, Any], dict[str, Any], str, str]):
    model, settings, given, path, words = case
    assert words in violations(write_config(tmp_path, model, **settings), **given)[path]


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_validation_without_a_tensor_says_the_same(
    tmp_path: Path, case: tuple[str, dict[str, Any], dict[str, Any], str, str]
):
    """But for what transformers itself refuses, and arguments that a rule has blamed in its own words."""
    model, settings, given, _, _ = case
    folder = write_config(tmp_path, model, **settings)
    args = TrainArgs(model="m", dataset=("d",), train_iters=1, **given)
    raw = json.loads((folder / "config.json").read_text())
    found = {each.path: each.message for each in rules.check(args, frozenset(given), task="sft", hf_config=raw)}
    said = {path: message for path, message in violations(folder, **given).items() if path != "config.json"}
    assert said.keys() <= found.keys()
    assert {path: message for path, message in said.items() if path.startswith("config.json")}.items() <= found.items()


def test_all_problems_are_reported_at_once(tmp_path: Path):
    folder = write_config(tmp_path, hidden_act="tanh")
    found = violations(folder, tensor_model_parallel_size=3, qk_layernorm=True, padded_vocab_size=7)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (None, None),
        ("1", [1, 1, 1, 1]),
        ("2", [1, 0, 1, 0]),
        ("[0]*1+[1]*3", [0, 1, 1, 1]),
        ("[0,1,0,1]", [0, 1, 0, 1]),
    ],
)
def test_moe_layer_freq_is_a_period_or_a_list(text: str | None, layers: list[int] | None):
    assert moe_layers(text, 4) == layers


@pytest.mark.parametrize("text", ["[0]*3", "0", "x", "__import__('os')", "[0]*1+[2]*3"])
def test_moe_layer_freq_that_does_not_fit_is_refused(text: str):
    with pytest.raises(ValueError, match="4 zeros and ones"):
        moe_layers(text, 4)


@pytest.mark.parametrize("name", sorted(name for name, (kind, _) in MODELS.items() if FAMILIES[kind].text_type))
def test_an_export_keeps_what_stands_outside_of_the_text_model_and_in_it(tmp_path: Path, name: str):
    write_config(tmp_path, name, eos_token_id=[1, 106], use_cache=False, a_key_of_ours={"x": 1})
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["text_config"]["eos_token_id"] = 1
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read_model(tmp_path, TrainArgs()).stored_config == stored
    larger = read_model(tmp_path, TrainArgs(), num_tokens=stored["text_config"]["vocab_size"] + 8).stored_config
    assert larger["text_config"] == {**stored["text_config"], "vocab_size": stored["text_config"]["vocab_size"] + 8}
    assert {**larger, "text_config": stored["text_config"]} == stored
