"""DeepSeek-V2, V3 and Kimi-K2: multi-head latent attention, shared experts, grouped routing.

The multi-token-prediction layers in published V3 checkpoints are trained with mtp_num_layers; without it loading skips
them, and an export copies them from the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, decoder, rope_values
from megatron_trainjob.families.experts import (
    after_dense_layers,
    best_groups,
    refuse_groups,
    shared_and_routed,
    sigmoid_router,
)
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model, Router
from megatron_trainjob.violation import Violation

LATENT_NORM_EPSILON = 1e-6
"""Epsilon of the norms of compressed queries and keys: transformers builds them without rms_norm_eps."""

LATENT_KEYS: Mapping[str, Any] = {
    **{key: value for key, value in DECODER.items() if key != "head_dim"},
    "kv_lora_rank": 512,
    "q_lora_rank": Optional(1536),
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "attention_bias": False,
}


def latent_attention(config: Config) -> dict[str, Any]:
    """Low-rank keys and values, and usually queries; every head has its own."""
    return {
        "num_kv_heads": config["num_attention_heads"],
        "qk_head_size": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "v_head_size": config["v_head_dim"],
        "qk_rope_size": config["qk_rope_head_dim"],
        "q_lora_rank": config["q_lora_rank"] or 0,
        "kv_lora_rank": config["kv_lora_rank"],
        "qk_norm": True,
        "latent_norm_epsilon": LATENT_NORM_EPSILON,
    }


def refuse_latent_attention(config: Config) -> Iterator[Violation]:
    """Refuses variants of latent attention that megatron-core or transformers itself does not support."""
    if config["attention_bias"]:
        yield refused("attention_bias", True, "biases of latent attention are not supported")
    if "rope_interleave" in config.keys and not config["rope_interleave"]:
        message = "latent attention always rotates interleaved pairs in megatron-core"
        yield refused("rope_interleave", config["rope_interleave"], message)
    given = rope_values(config.raw)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default" and given.get("mscale_all_dim") and given.get("factor") is None:
        message = "scales the scores by the factor of the rotation, which is missing; give factor, or take it out"
        yield refused("rope_parameters.mscale_all_dim", given["mscale_all_dim"], message)


def _v2(config: Config) -> Model:
    groups = best_groups(config) if config["topk_method"] == "group_limited_greedy" else {}
    scale = config["routed_scaling_factor"]
    router = Router(score="softmax", normalized=False, group_best=1, scale=scale, balancing="seq_aux_loss", **groups)
    return decoder(config, **latent_attention(config), **shared_and_routed(config, router, after_dense_layers(config)))


def _refuse_v2(config: Config) -> Iterator[Violation]:
    yield from refuse_latent_attention(config)
    method = config["topk_method"]
    if method == "group_limited_greedy":
        yield from refuse_groups(config, ranked_by=1)
    elif method != "greedy":
        yield refused("topk_method", method, "must be greedy or group_limited_greedy; transformers supports no other")
    if isinstance(config["attention_dropout"], int):
        yield refused("attention_dropout", config["attention_dropout"], "must have a decimal point in this family")
    if config["mlp_bias"]:
        yield refused("mlp_bias", True, "biases of the MLP are not supported in this family")


DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    classifier="DeepseekV2ForSequenceClassification",
    title="DeepSeek-V2, V2-Lite, V2.5, DeepSeek-Coder-V2",
    keys={
        **LATENT_KEYS,
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1407,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": Optional(),
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
        "n_group": Optional(),
        "topk_group": Optional(),
        "topk_method": Optional("greedy"),
        "mlp_bias": False,
    },
    aliases={"num_experts": "n_routed_experts"},
    build=_v2,
    refuse=_refuse_v2,
)


def _v3(config: Config) -> Model:
    return decoder(
        config,
        prediction_layers=config["num_mtp_layers"],
        **latent_attention(config),
        **shared_and_routed(config, sigmoid_router(config), after_dense_layers(config)),
    )


def _refuse_v3(config: Config) -> Iterator[Violation]:
    yield from refuse_latent_attention(config)
    rotated = config["qk_rope_head_dim"]
    if "head_dim" in config.raw and config.raw["head_dim"] != rotated:
        message = f"the rotated part of each head is qk_rope_head_dim, {rotated}, by which it must go; remove the key"
        yield refused("head_dim", config.raw["head_dim"], message)
    yield from refuse_groups(config)


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    classifier="DeepseekV3ForSequenceClassification",
    title="DeepSeek-V3, V3.1, R1, Moonlight",
    keys={
        **LATENT_KEYS,
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": Optional(128),
        "max_position_embeddings": 4096,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": Optional(8),
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": Optional(True),
        "rope_interleave": Optional(True),
        "num_mtp_layers": 1,
    },
    aliases={"num_local_experts": "n_routed_experts", "num_nextn_predict_layers": "num_mtp_layers"},
    build=_v3,
    refuse=_refuse_v3,
)

KIMI_K2 = replace(DEEPSEEK_V3, model_type="kimi_k2", title="Kimi-K2", transformers_type="deepseek_v3")
