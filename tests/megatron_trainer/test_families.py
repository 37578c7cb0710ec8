"""Every family is one whole record: read like transformers reads it, weighed, counted, ruled, built and documented."""

from __future__ import annotations

import inspect
import re
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from megatron_trainer.models.settings import ACTIVATIONS
from megatron_trainer.report.flops import flops_per_near_pair, flops_per_pair, flops_per_token
from megatron_trainjob import memory, violation
from megatron_trainjob.args import rules
from megatron_trainjob.args.model import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES, document, read
from megatron_trainjob.families.config import Optional
from megatron_trainjob.families.weights import TABLES
from tests.support.matrix import mostly_slow
from tests.support.models import odd_models, tiny_model
from tests.support.models.tiny_text_models import DECODER

ROOT = Path(__file__).parents[2]
ARGS = TrainArgs(model="m", dataset=("d",), train_iters=1, max_length=64)

NOT_OF_THE_MATHS = {
    *("_attn_implementation", "pad_token_id", "rope_parameters", "text_config", "vision_config", "get_text_config"),
    # Balancing is the arguments' business.
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    # Derived from keys that the records read.
    *("per_layer_config", "kv_sharing_modes"),
    # Dropout of hidden states is the arguments' business.
    *("resid_pdrop", "residual_dropout"),
    # transformers sets it from qk_rope_head_dim.
    "head_dim",
}
"""Keys that modeling code reads and that change no logits in evaluation, or are read by other names."""

READ_ELSEWHERE = {
    *("initializer_range", "rope_theta", "partial_rotary_factor", "tie_word_embeddings"),
    *("num_nextn_predict_layers", "num_mtp_layers"),
    *("vision_feature_layer", "vision_feature_select_strategy"),
    *(
        *("full_attention_interval", "global_head_dim", "num_global_key_value_heads"),
        "use_sliding_window",
        "max_window_layers",
        "no_rope_layer_interval",
        "attention_chunk_size",
        "interleave_moe_layer_step",
        "original_max_position_embeddings",
    ),
}
"""Keys that transformers reads in its base classes or in the configuration itself, and the layers of prediction."""

ONLY_KEPT = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), {"layer_types"}),
    **{name: {"chunk_size_feed_forward"} for name, family in FAMILIES.items() if family.stored_type},
}
"""Keys that a family's code stores and does not use."""

OF_THE_TOWER = {
    "llama4": {"output_attentions", "output_hidden_states", "return_dict"},
    "llama4_text": {
        *("image_token_id", "image_size", "num_channels", "patch_size", "pixel_shuffle_ratio", "projector_dropout"),
        *("projector_input_dim", "projector_output_dim", "output_attentions", "output_hidden_states", "return_dict"),
    },
    "gemma4_text": {
        *("audio_config", "audio_token_id", "image_token_id", "video_token_id", "patch_size", "hidden_act"),
        *("attention_chunk_size", "attention_context_left", "attention_context_right", "attention_logit_cap"),
        *("attention_invalid_logits_value", "conv_kernel_size", "gradient_clipping", "output_proj_dims"),
        *("pooling_kernel_size", "position_embedding_size", "residual_weight", "standardize"),
        *("subsampling_conv_channels", "use_clipped_linears", "vocab_size_per_layer_input"),
    },
    "gemma4": {
        *("audio_config", "audio_token_id", "hidden_act", "output_proj_dims", "residual_weight"),
        *("attention_chunk_size", "attention_context_left", "attention_context_right", "attention_logit_cap"),
        *("attention_invalid_logits_value", "conv_kernel_size", "gradient_clipping", "subsampling_conv_channels"),
        "vocab_size_per_layer_input",
    },
    "gemma4_unified_text": {
        *("audio_config", "audio_token_id", "image_token_id", "video_token_id"),
        *("mm_embed_dim", "mm_posemb_size", "model_patch_size", "output_proj_dims"),
    },
    **dict.fromkeys(
        ("qwen3_5_text", "qwen3_5_moe_text"),
        {*FAMILIES["qwen3_5"].vision_keys, "image_token_id", "video_token_id"},
    ),
}
"""Keys that a file of modeling code reads for the vision tower that it holds too."""

OF_THE_WHOLE = (
    *("image_token_id", "image_token_index", "video_token_id", "tie_word_embeddings"),
    *("downsample_ratio", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy"),
)
"""Keys that belong to no text model inside."""

OWN_DEFAULTS = {
    "full_attention_interval",
    "rope_theta",
    "partial_rotary_factor",
    "head_dim",
    "global_head_dim",
    "num_nextn_predict_layers",
}
"""Keys whose default transformers derives from others, or from what it knows under another name."""


def config_class(family: Any) -> Any:
    """Of the text model, where there is one inside."""
    return CONFIG_MAPPING[family.text_type or family.transformers_type or family.model_type]


def outer_class(family: Any) -> Any:
    """Of the whole model around a text model."""
    return CONFIG_MAPPING[family.stored_type or family.model_type]


def keys_of_the_code(family: Any) -> set[str]:
    kind = config_class(family)
    module = kind.__module__.replace("configuration_", "modeling_")
    if not family.text_type:
        module = MODEL_FOR_CAUSAL_LM_MAPPING[kind].__module__
    source = inspect.getsource(import_module(module))
    if family.stored_type:
        source += inspect.getsource(import_module(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[outer_class(family)].__module__))
    found = set(re.findall(r"config\.([a-z_0-9]+)", source))
    found |= set(re.findall(r'getattr\((?:self\.)?config, "([a-z_0-9]+)"', source))
    return {family.aliases.get(name, name) for name in found}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_reads_the_keys_that_its_code_reads(name: str):
    family = FAMILIES[name]
    used = keys_of_the_code(family)
    elsewhere = NOT_OF_THE_MATHS | ONLY_KEPT.get(name, set()) | OF_THE_TOWER.get(name, set())
    assert used - set(family.keys) - set(family.vision_keys) <= elsewhere
    assert set(family.keys) - used <= READ_ELSEWHERE


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_keys_mean_what_they_mean_to_transformers(name: str):
    family, kind = FAMILIES[name], config_class(FAMILIES[name])
    declared = {
        key: default.default if isinstance(default, Optional) else default
        for key, default in family.keys.items()
        if key not in OWN_DEFAULTS
    }
    whole = {**kind().to_dict(), "model_type": name, "dtype": "float32"}
    if family.text_type:
        outer = outer_class(family)(**({"text_config": {"model_type": family.text_type}} if family.stored_type else {}))
        whole = {**outer.to_dict(), "dtype": "float32"}
        of_the_whole = {key: declared.pop(key) for key in OF_THE_WHOLE if key in declared}
        assert {key: getattr(outer, key) for key in of_the_whole} == of_the_whole
        inner = outer.vision_config or type(outer).sub_configs_defaults["vision_config"].config_class()
        whole["vision_config"] = inner.to_dict()
        theirs = {key: getattr(inner, key) for key in family.vision_keys}
        assert theirs == dict(family.vision_keys)
    theirs = {key: getattr(kind, key, getattr(kind, kind.attribute_map.get(key, key), None)) for key in declared}
    assert declared == theirs
    assert family.keys["rope_theta"] == kind.default_theta
    assert read({"model_type": name}) == read(whole)


QUICK = ("llama", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text", "qwen3_5_moe", "internvl")
"""Whose keys `make test` gives every wrong value; of each kind of record one."""
WRONG = (None, "8", 1.5, True, 0, -1, [1], ["x"], {})


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, QUICK))
def test_what_transformers_does_not_accept_is_refused_from_the_file_alone(name: str):
    family = FAMILIES[name]
    tiny = next(each for each, (kind, _) in tiny_model.MODELS.items() if kind == name)
    base = {**family.flat({**tiny_model.config_of(tiny).to_dict(), "model_type": name})}
    assert check.check(base, ARGS).violations == ()
    missed = []
    for key in family.keys:
        for value in WRONG:
            inside = key in ("rope_theta", "partial_rotary_factor")
            raw = {
                **base,
                key: value,
                **({"rope_parameters": {**base["rope_parameters"], key: value}} if inside else {}),
            }
            if not check.check(raw, ARGS).violations and not accepted(family, raw):
                missed.append((key, value))
    assert missed == []


def accepted(family: Any, raw: dict[str, Any]) -> bool:
    try:
        if family.text_type:
            raw, kind = family.nested(raw), outer_class(family)
        else:
            kind = config_class(family)
        kind(**{key: deepcopy(value) for key, value in raw.items() if key != "model_type"})
    except Exception:  # noqa: BLE001 - whatever transformers raises
        return False
    return True


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, QUICK))
def test_a_null_that_transformers_cannot_run_is_refused(name: str):
    family = FAMILIES[name]
    if family.text_type:
        base = {**family.flat({**tiny_model.config_of(name).to_dict(), "model_type": name})}
    else:
        base = odd_models.model(name).config
    accepted_nulls = [key for key in family.keys if not check.check({**base, key: None}, ARGS).violations]
    assert [key for key in accepted_nulls if not runs(family, {**base, key: None})] == []


def runs(family: Any, raw: dict[str, Any]) -> bool:
    """Whether transformers builds the model and computes logits, without values."""
    whole = family.nested(raw) if family.text_type else raw
    fields = {key: deepcopy(value) for key, value in whole.items() if key != "model_type"}
    kind = outer_class(family) if family.text_type else config_class(family)
    try:
        with torch.device("cpu" if family.scales_images else "meta"):  # whose masks look at values of positions
            made = tiny_model.auto_class(family.model_type).from_config(kind(**fields))
            made(torch.zeros(1, 8, dtype=torch.long))
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", sorted(tiny_model.MODELS))
def test_a_file_says_the_same_before_and_after_transformers_has_filled_it(name: str):
    kind, own = tiny_model.MODELS[name]
    short = {**DECODER, **own, "model_type": kind, "dtype": "float32"}
    whole = {**tiny_model.config_of(name).to_dict(), "model_type": kind, "dtype": "float32"}
    assert _without_parameters(read(short)) == _without_parameters(read(whole))


def _without_parameters(model: Any) -> Any:
    """Scaling parameters are transformers' business; it fills in those that are absent."""
    return replace(model, rotary=replace(model.rotary, parameters={}))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_complete(name: str):
    """A memory shape, FLOPs, rules that accept it, weights, a tiny model and a row in the docs."""
    sizes = {**DECODER, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}
    raw = {**sizes, "model_type": name, "num_key_value_heads": 4, "norm_topk_prob": True, "n_group": 1, "topk_group": 1}
    raw |= tiny_model.MODELS[name][1] if FAMILIES[name].text_type or name.startswith(("llama4", "gemma4")) else {}
    model = read(raw)
    assert memory.estimate(ARGS, model, 1).num_parameters > 0
    assert flops_per_token(model, ARGS) > 0
    assert flops_per_pair(model) + flops_per_near_pair(model) > 0
    assert violation.errors(rules.check(ARGS, frozenset(), task="sft", world_size=1, hf_config=raw)) == ()
    assert name in {kind for kind, _ in tiny_model.MODELS.values()}
    assert f"| `{name}` |" in document.document()
    assert name in TABLES


def test_there_is_nothing_for_families_that_are_not_there():
    assert TABLES.keys() == FAMILIES.keys()
    assert {kind for kind, _ in tiny_model.MODELS.values()} == FAMILIES.keys()
    assert tuple(ACTIVATIONS) == check.ACTIVATIONS


def test_the_page_about_families_is_the_generated_one():
    assert (ROOT / "docs" / "families.md").read_text() == document.document()
