"""Effects of the arguments that describe the network, on the tiny Llama (4 layers, hidden size 64, 4 heads of 16 over 2
key-value heads, MLP of 128, vocabulary of 320) and on families that have what it lacks.

A model is built under each argument alone. Values that decide which weights there are start from random ones; with
stored weights they are refused, which the last tests show.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_trainjob.args.tree import TrainArgs
from tests.effects.registry import effect
from tests.support.models import tiny_model
from tests.support.ranks import model_probe, parity
from tests.support.ranks.model_probe import Built
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist

FROM_RANDOM = {"no_initialization": False}
SHAPES: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 96,
    "num_attention_heads": 8,
    "group_query_attention": False,
    "num_query_groups": 1,
    "kv_channels": 8,
    "untie_embeddings_and_output_weights": False,
}
VALUES: dict[str, Any] = {
    "max_position_embeddings": 64,
    "position_embedding_type": "rope",
    "rotary_base": 500,
    "rotary_interleaved": False,
    "normalization": "RMSNorm",
    "norm_epsilon": 0.1,
    "swiglu": True,
    "disable_bias_linear": True,
    "add_qkv_bias": False,
    "attention_dropout": 0.5,
    "hidden_dropout": 0.5,
    "qk_layernorm": False,
    "padded_vocab_size": 384,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}
OTHERWISE: dict[str, Any] = {
    "rotary_interleaved": True,
    "swiglu": False,
    "disable_bias_linear": False,
    "add_qkv_bias": True,
    "qk_layernorm": True,
    "normalization": "LayerNorm",
    "position_embedding_type": "mrope",
}


@pytest.fixture(scope="module")
def llama_models(four_layers) -> dict[str, Built]:
    """Under one argument each, by its name: "random" and "stored" have none, "otherwise NAME" another value."""
    variants = {
        "random": FROM_RANDOM,
        **{name: {name: value, **FROM_RANDOM} for name, value in SHAPES.items()},
        "stored": {},
        **{name: {name: value} for name, value in VALUES.items()},
        **{f"otherwise {name}": {name: value} for name, value in (SHAPES | OTHERWISE).items()},
        "rope_scaling by name": {"rope_scaling": "yarn", "max_model_len": 2048},
        "heads of their own": {"group_query_attention": True, "num_query_groups": 4, **FROM_RANDOM},
        "shared heads": {"group_query_attention": True},
    }
    return build_all(four_layers, variants)


def build_all(directory: Path, variants: dict[str, dict[str, Any]]) -> dict[str, Built]:
    return gloo_ranks(1).run(model_probe.build_all, directory, variants)[0]


QKV = "decoder.layers.0.self_attention.linear_qkv.weight"
PROJ = "decoder.layers.0.self_attention.linear_proj.weight"
FC1 = "decoder.layers.0.mlp.linear_fc1.weight"


@effect("num_layers")
def test_num_layers_is_how_many_layers_are_built(llama_models):
    built = llama_models["num_layers"]
    assert {name.split(".")[2] for name in built.shapes if name.startswith("decoder.layers.")} == {"0", "1"}
    assert built.exported["num_hidden_layers"] == 2


@effect("hidden_size", "ffn_hidden_size")
def test_hidden_and_feed_forward_size_are_the_widths_of_the_matrices(llama_models):
    assert llama_models["random"].shapes[FC1] == (2 * 128, 64)
    assert llama_models["hidden_size"].shapes[FC1] == (2 * 128, 32)
    assert llama_models["ffn_hidden_size"].shapes[FC1] == (2 * 96, 64)


@effect("num_attention_heads", "num_query_groups", "group_query_attention", "kv_channels")
@pytest.mark.parametrize(
    ("name", "queries", "keys_and_values"),
    [
        ("random", 4 * 16, 2 * 2 * 16),
        ("num_attention_heads", 8 * 16, 2 * 2 * 16),
        ("num_query_groups", 4 * 16, 2 * 1 * 16),
        ("group_query_attention", 4 * 16, 2 * 4 * 16),
        ("kv_channels", 4 * 8, 2 * 2 * 8),
    ],
)
def test_heads_their_sharing_and_their_width_shape_the_attention(llama_models, name, queries, keys_and_values):
    built = llama_models[name]
    assert built.shapes[QKV] == (queries + keys_and_values, 64)
    assert built.shapes[PROJ] == (64, queries)


def test_group_query_attention_has_to_be_possible(llama_models):
    assert llama_models["shared heads"].losses == llama_models["stored"].losses
    assert "a key-value head for each of its 4 attention heads" in llama_models["heads of their own"].refusal


@effect("untie_embeddings_and_output_weights")
def test_tied_embeddings_are_one_matrix(llama_models):
    assert "output_layer.weight" in llama_models["random"].shapes
    built = llama_models["untie_embeddings_and_output_weights"]
    assert "output_layer.weight" not in built.shapes
    assert built.exported["tie_word_embeddings"] is True


@effect("max_position_embeddings")
def test_max_position_embeddings_is_exported_and_bounds_the_rows(llama_models, train):
    """A conversation of the tiny data has between 30 and 90 tokens; without max_length this is the longest row."""
    assert llama_models["max_position_embeddings"].exported["max_position_embeddings"] == 64
    run = train(max_length=None, max_position_embeddings=64, train_iters=1)
    assert run.exit_code == 0, run.message
    bounded = train(max_length=None, max_position_embeddings=48, train_iters=1)
    assert bounded.exit_code == 0, bounded.message
    assert rows_kept(bounded) < rows_kept(run)


def rows_kept(run) -> int:
    report = json.loads((run.folder / "data_report.json").read_text())
    return report["items"]


@effect("rotary_base", "norm_epsilon", "rope_scaling", "max_model_len")
@pytest.mark.parametrize("name", ["rotary_base", "norm_epsilon", "rope_scaling", "rope_scaling by name"])
def test_positions_and_norms_compute_with_the_given_constants(llama_models, name):
    assert llama_models[name].losses[0] != llama_models["stored"].losses[0]


def test_constants_that_were_given_are_exported(llama_models):
    assert llama_models["rotary_base"].exported["rope_theta"] == 500
    assert llama_models["norm_epsilon"].exported["rms_norm_eps"] == 0.1
    assert llama_models["rope_scaling"].exported["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    by_name = llama_models["rope_scaling by name"].exported["rope_scaling"]
    assert by_name == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@effect("attention_dropout", "hidden_dropout")
@pytest.mark.parametrize("name", ["attention_dropout", "hidden_dropout"])
def test_dropout_draws_a_new_mask_in_every_pass(llama_models, name):
    first, second = llama_models["stored"].losses
    assert first == second
    first, second = llama_models[name].losses
    assert first != second


@effect("padded_vocab_size")
def test_padded_vocab_size_is_the_height_of_the_embedding_and_changes_no_number(llama_models):
    built = llama_models["padded_vocab_size"]
    assert built.shapes["embedding.word_embeddings.weight"] == (384, 64)
    assert built.losses == pytest.approx(llama_models["stored"].losses, abs=1e-6)


@effect("position_embedding_type", "rotary_interleaved", "normalization", "swiglu")
@effect("disable_bias_linear", "add_qkv_bias", "qk_layernorm")
@pytest.mark.parametrize("name", OTHERWISE)
def test_what_the_family_fixes_is_accepted_when_it_agrees_and_refused_when_not(llama_models, name):
    assert llama_models[name].losses == llama_models["stored"].losses
    refusal = llama_models[f"otherwise {name}"].refusal
    assert name in refusal
    assert f"this model has {name}: {str(VALUES[name]).lower()}" in refusal or "every supported family has" in refusal


@pytest.mark.parametrize("name", SHAPES)
def test_stored_weights_of_another_shape_are_refused_with_both_values(llama_models, name):
    refusal = llama_models[f"otherwise {name}"].refusal
    assert f"spec.args.{name}: the stored weights are of a model with" in refusal
    assert "no_initialization: false" in refusal
    assert f"(got {SHAPES[name]})" in refusal


@effect("rotary_percent")
def test_rotary_percent_is_the_share_of_each_head_that_turns(model_root, llama):
    """GLM knows shares; the module of Llama in transformers does not, so its export would be another model."""
    glm = build_all(tiny_model.make("glm", model_root), {"half": {}, "whole": {"rotary_percent": 1.0}})
    assert glm["whole"].losses[0] != glm["half"].losses[0]
    assert glm["whole"].exported["partial_rotary_factor"] == 1.0
    refused = build_all(llama, {"llama": {"rotary_percent": 0.5}})["llama"].refusal
    assert "a model of type llama has no such setting" in refused


@effect("transformer_impl")
def test_transformer_impl_local_has_megatrons_own_layers_where_others_exist():
    """A machine with TransformerEngine, as far as the choice is concerned."""
    from megatron_trainer.backend import CpuBackend
    from megatron_trainer.models.settings import implementation

    machine = replace(CpuBackend(), layer_impl="transformer_engine")
    assert implementation(TrainArgs(), machine) == "transformer_engine"
    assert implementation(TrainArgs(transformer_impl="local"), machine) == "local"
    assert implementation(TrainArgs(), CpuBackend()) == "local"


def test_a_model_of_another_shape_is_exported_as_transformers_reads_it(train):
    """Several arguments at once: what comes out has in transformers the logits that it has here."""
    run = train(
        **FROM_RANDOM,
        num_layers=3,
        hidden_size=96,
        num_attention_heads=6,
        num_query_groups=3,
        kv_channels=8,
        ffn_hidden_size=160,
        rotary_base=777,
        norm_epsilon=1e-3,
        untie_embeddings_and_output_weights=False,
        to_hf=True,
        train_iters=1,
    )
    assert run.exit_code == 0, run.message
    parity.make_reference(run.folder / "hf", packed=False)
    (found,) = gloo_ranks(1).run(parity.compare, run.folder / "hf", {})
    assert found.changed == ()
    assert found.logits <= 1e-4
    assert found.gradients <= 1e-4, found.worst
