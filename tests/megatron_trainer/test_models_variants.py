"""Variants of config.json within a family: what transformers reads is obeyed, what it does not read changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.models import tiny_model
from tests.support.models.tiny_text_models import LLAMA3
from tests.support.ranks import model_logits
from tests.support.ranks.pool import gloo_ranks

BOUND = 1e-4

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_ONE_EXPERT = {"num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}
_GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}

# name -> (tiny model, settings of its configuration)
OBEYED: dict[str, tuple[str, dict[str, Any]]] = {
    "latent norms have an epsilon of their own": ("deepseek_v3", {"rms_norm_eps": 0.05}),
    "so have those of GLM-4.7-Flash": ("glm4_moe_lite", {"rms_norm_eps": 0.05}),
    "so have those of V2": ("deepseek_v2_lite", {"rms_norm_eps": 0.05}),
    "one expert is normalized": ("deepseek_v3", _ONE_EXPERT),
    "one expert is normalized in GLM": ("glm4_moe", _ONE_EXPERT),
    "one expert is not normalized": ("dots1", {**_ONE_EXPERT, "norm_topk_prob": False}),
    "two experts are not normalized": ("glm4_moe", {"norm_topk_prob": False}),
    "groups rank by their two best of more experts": ("deepseek_v3", {"num_experts_per_tok": 4}),
    "groups rank by their two best of fewer": ("deepseek_v3", {"n_group": 4, "topk_group": 2}),
    "groups of V2 rank by their best": ("deepseek_v2", _GROUPS),
    "yarn with mscale_all_dim alone": ("deepseek_v3", {"rope_parameters": {**_YARN, "mscale_all_dim": 0.7}}),
    "yarn with mscale alone": ("deepseek_v3", {"rope_parameters": {**_YARN, "mscale": 0.7}}),
    "yarn with both": ("deepseek_v2", {"rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 1.3}}),
    "yarn with attention_factor": ("deepseek_v3", {"rope_parameters": {**_YARN, "attention_factor": 1.4}}),
    "yarn with neither": ("glm4_moe_lite", {"rope_parameters": _YARN}),
    "yarn that is not truncated": ("deepseek_v3", {"rope_parameters": {**_YARN, "truncate": False}}),
    "yarn with other betas": ("deepseek_v3", {"rope_parameters": {**_YARN, "beta_fast": 16, "beta_slow": 2}}),
    "latent attention scaled linearly": (
        "deepseek_v3",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0, "mscale_all_dim": 0.5}},
    ),
    "latent attention scaled as Llama 3": (
        "deepseek_v3",
        {"rope_parameters": LLAMA3},
    ),
    "a window in the later layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "a window in every layer of a mixture": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 5}),
    "layers of an explicit kind": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "layers without positions by list": ("smollm3", {"no_rope_layers": [1, 0, 0, 1], "use_sliding_window": False}),
    "a head wider than its share": ("qwen2", {"head_dim": 32}),
    "part of a head": ("glm4_moe", {"partial_rotary_factor": 0.25}),
}

# name -> (tiny model, keys that its family does not read)
STRAY: dict[str, tuple[str, dict[str, Any]]] = {
    "a window in a llama": ("llama", {"sliding_window": 3, "use_sliding_window": True}),
    "a share of rotation in a llama": ("llama", {"partial_rotary_factor": 0.5}),
    "kinds of layers in a llama": ("llama", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 3}),
    "a switch of windows in a mistral": ("mistral_window", {"use_sliding_window": False}),
    "kinds of layers in a mistral": ("mistral_window", {"layer_types": ["full_attention"] * 4}),
    "kinds of layers in a qwen3_moe": ("qwen3_moe", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 3}),
    "the first layer of windows in a qwen3_moe": ("qwen3_moe", {"max_window_layers": 0, "sliding_window": 3}),
    "experts of another family in a llama": ("llama", {"num_experts": 4, "num_experts_per_tok": 2}),
    "norms of heads in a llama": ("llama", {"use_qk_norm": True}),
    "another score of a router": ("deepseek_v3", {"scoring_func": "softmax", "topk_method": "greedy"}),
    "normalized probabilities in V2": ("deepseek_v2", {"norm_topk_prob": True}),
    "dense layers first in GLM-4.7-Flash": ("glm4_moe_lite", {"first_k_dense_replace": 3}),
    "biases in a qwen2": ("qwen2", {"attention_bias": False, "qkv_bias": False}),
    "a bias of the MLP in a qwen3": ("qwen3", {"mlp_bias": True}),
    "latent attention in a llama": ("llama", {"kv_lora_rank": 8, "q_lora_rank": 8}),
    "dropout in an ernie4_5": ("ernie4_5", {"attention_dropout": 0.5}),
}


@pytest.fixture(scope="module")
def models(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directory of every variant."""
    obeyed = {name: tiny_model.make(kind, model_root, **settings) for name, (kind, settings) in OBEYED.items()}
    root = tmp_path_factory.mktemp("stray")
    stray = {
        name: model_logits.with_keys(tiny_model.make(kind, model_root), root / str(number), keys)
        for number, (name, (kind, keys)) in enumerate(STRAY.items())
    }
    return {**obeyed, **stray}


@pytest.fixture(scope="module")
def ours(models: dict[str, Path]) -> dict[str, Any]:
    """Our logits of every variant, by one rank."""
    (found,) = gloo_ranks(1).run(model_logits.ours, models)
    return found


@pytest.mark.dist
@pytest.mark.parametrize("name", [*OBEYED, *STRAY])
def test_logits_are_those_of_transformers(name: str, models: dict[str, Path], ours: dict[str, Any]):
    assert not isinstance(ours[name], str), ours[name]
    assert abs(ours[name] - model_logits.of_transformers(models[name])).max() <= BOUND
