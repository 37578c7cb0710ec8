"""Gemma-4's text decoder: what is refused, what its records say of the layers, and exports of the source's tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_trainjob import weight_files
from megatron_trainjob.args.model import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read
from megatron_trainjob.memory import adapter
from tests.support.models import tiny_model
from tests.support.ranks import conversion
from tests.support.ranks.pool import gloo_ranks

NAMES = ("gemma4_text", "gemma4_dense", "gemma4_unified_text")
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"expert_model_parallel_size": 2},
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}
ROTARY = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
}


def violations(given: dict[str, Any], name: str = "gemma4_text", **changes: Any) -> list[str]:
    raw = {**tiny_model.raw_config(name), **changes}
    return [f"{each.path} {each.message}" for each in check.check(raw, TrainArgs(model="m", **given)).violations]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"hidden_size_per_layer_input": 8},
            "config.json:hidden_size_per_layer_input embeddings that enter every layer",
        ),
        (
            {"num_kv_shared_layers": 2},
            "config.json:num_kv_shared_layers layers that take keys and values of earlier ones",
        ),
        ({"use_bidirectional_attention": "all"}, "config.json:use_bidirectional_attention lets every token attend"),
        ({"attention_bias": True}, "config.json:attention_bias biases of keys that are values too"),
        ({"layer_types": ["full_attention"]}, "config.json:layer_types must name"),
        (
            {"num_global_key_value_heads": 3},
            "config.json:num_global_key_value_heads 4 attention heads are not divisible",
        ),
        ({"num_experts": None}, "config.json:num_experts must be at least 1"),
        ({"moe_intermediate_size": None}, "config.json:moe_intermediate_size must be at least 1"),
        ({"top_k_experts": 5}, "config.json:top_k_experts must be from 1 to the 4 experts"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "config.json:rope_scaling layers of this model rotate",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}},
            "config.json:rope_parameters.sliding_attention must be an object",
        ),
        (
            {"rope_parameters": {**ROTARY, "full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}},
            "config.json:rope_parameters.full_attention.rope_type must be default or proportional",
        ),
        (
            {"rope_parameters": {**ROTARY, "full_attention": {**ROTARY["full_attention"], "rope_theta": "x"}}},
            "config.json:rope_parameters.full_attention.rope_theta must be a number",
        ),
        ({"per_layer_config": {"1": {"head_dim": "x"}}}, "config.json:per_layer_config must be an object of layers"),
        ({"per_layer_config": [1.5]}, "config.json:per_layer_config must be an object of layers"),
        ({"per_layer_config": {"1": {"head_dim": 32}}}, "config.json:per_layer_config may say head_dim"),
        (
            {"per_layer_config": {"1": {"hidden_size": 32}, "3": {"hidden_size": 32}}},
            "config.json:per_layer_config may",
        ),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(changes: dict[str, Any], said: str):
    assert [each for each in violations({}, **changes) if each.startswith(said)]


def test_rotary_arguments_that_mean_one_kind_of_layer_are_refused():
    (found,) = violations({"rotary_base": 500})
    assert found.startswith("spec.args.rotary_base layers of this model rotate by their kind")


def test_tensor_ranks_must_fit_the_heads_of_every_kind_of_layer():
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12, "num_global_key_value_heads": 2}
    assert violations({"tensor_model_parallel_size": 2, "sequence_parallel": True}, **heads) == []
    (found,) = violations({"tensor_model_parallel_size": 3, "sequence_parallel": True}, **heads)
    assert found.startswith("spec.args.tensor_model_parallel_size 2 key-value heads neither divide")


@pytest.mark.parametrize("name", NAMES)
def test_the_record_counts_the_parameters_that_transformers_has(name: str):
    model = AutoModelForCausalLM.from_config(tiny_model.config_of(name))
    scalars = sum(buffer.numel() for key, buffer in model.named_buffers() if key.endswith("layer_scalar"))
    assert read(tiny_model.raw_config(name)).num_parameters == model.num_parameters() + scalars


@pytest.mark.parametrize("name", [*NAMES, "gemma4", "gemma4_causal"])
def test_a_folder_of_transformers_is_found_complete(name: str, model_root):
    directory = tiny_model.make(name, model_root)
    config = json.loads((directory / "config.json").read_text())
    assert check.check(config, TrainArgs(model="m")).violations == ()
    assert list(weight_files.problems(directory, config, read(config))) == []


def test_adapters_are_counted_by_the_layers_own_sizes():
    model, args = read(tiny_model.raw_config("gemma4_text")), TrainArgs(model="m", target_modules=("linear_qkv",))
    narrow, wide = (adapter.adapter_parameters(args, model, layer).tensor for layer in (0, 1))
    assert narrow == args.lora_rank * (64 + 4 * 16 + 2 * 4 * 16)
    assert wide == args.lora_rank * (64 + 4 * 32 + 2 * 32), "no values of its own"


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "layout"), [("gemma4_text", layout) for layout in LAYOUTS] + [("gemma4_dense", "tp2")]
)
def test_an_export_has_the_tensors_of_the_source_bit_by_bit(name, layout, model_root, tmp_path):
    source = tiny_model.make(name, model_root, dtype="bfloat16")
    gloo_ranks(2).run(conversion.convert, source, tmp_path / "out", LAYOUTS[layout])
    before = load_file(source / "model.safetensors")
    after = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
