"""DeepSeek-V2 and V3: multi-head latent attention, shared experts, grouped routing.

The multi-token-prediction layers that real V3 checkpoints carry are not trained: loading passes them by,
and an export copies them from the source.
"""

from __future__ import annotations

import re
from typing import Any

from megatron_trainer.models.experts import routed_settings, softmax_router
from megatron_trainer.models.family import Family, HfConfig
from megatron_trainer.models.weights import LATENT_ATTENTION, experts, router, shared_experts
from megatron_trainjob.violation import Violation


def _latent_attention(config: HfConfig) -> dict[str, Any]:
    return {
        "num_query_groups": config.num_attention_heads,
        "q_lora_rank": config.q_lora_rank,
        "kv_lora_rank": config.kv_lora_rank,
        "qk_head_dim": config.qk_nope_head_dim,
        "qk_pos_emb_head_dim": config.qk_rope_head_dim,
        "v_head_dim": config.v_head_dim,
        "qk_layernorm": True,
        **_rotary(config.rope_parameters),
    }


def _rotary(rope: dict[str, Any]) -> dict[str, Any]:
    """Latent attention makes its own rotary embedding in each layer, from these fields."""
    plain = {"rotary_base": rope["rope_theta"], "rope_type": "rope", "rotary_scaling_factor": 1.0}
    if rope["rope_type"] == "default":
        return plain
    return {
        **plain,
        "rope_type": "yarn",
        "rotary_scaling_factor": rope["factor"],
        "original_max_position_embeddings": rope["original_max_position_embeddings"],
        "beta_fast": rope.get("beta_fast") or 32,
        "beta_slow": rope.get("beta_slow") or 1,
        "mscale": rope.get("mscale") or 1.0,
        "mscale_all_dim": rope.get("mscale_all_dim") or 0.0,
    }


def _experts(config: HfConfig) -> dict[str, Any]:
    num_dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    moe_layers = [0] * num_dense + [1] * (config.num_hidden_layers - num_dense)
    if not any(moe_layers):
        return {}
    return {
        **routed_settings(config, num_experts=config.n_routed_experts, moe_layers=moe_layers),
        "moe_shared_expert_intermediate_size": config.moe_intermediate_size * (config.n_shared_experts or 0) or None,
        "moe_router_topk_scaling_factor": config.routed_scaling_factor,
        "moe_router_load_balancing_type": "seq_aux_loss",
    }


def _v2(config: HfConfig) -> dict[str, Any]:
    return {**_latent_attention(config), **_experts(config), **softmax_router(normalise_after_choice=False)}


def _v3(config: HfConfig) -> dict[str, Any]:
    routed = _experts(config)
    if not routed:
        return _latent_attention(config)
    return {
        **_latent_attention(config),
        **routed,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_pre_softmax": True,
        **_groups(config),
    }


def _groups(config: HfConfig) -> dict[str, Any]:
    """Routing limited to the best groups of experts; no setting where all groups may be chosen anyway."""
    if not _chooses_groups(config):
        return {}
    return {"moe_router_num_groups": config.n_group, "moe_router_group_topk": config.topk_group}


def _chooses_groups(config: HfConfig) -> bool:
    return (config.topk_group or 1) < (config.n_group or 1)


def _refuse(config: HfConfig) -> tuple[Violation, ...]:
    found = []
    if config.attention_bias:
        found.append(_no("attention_bias", config.attention_bias, "biases of latent attention are not supported"))
    if config.rope_parameters["rope_type"] not in ("default", "yarn"):
        kind = config.rope_parameters["rope_type"]
        found.append(_no("rope_scaling", kind, "latent attention rotates with type default or yarn only"))
    return tuple(found)


def _refuse_v2(config: HfConfig) -> tuple[Violation, ...]:
    found = []
    if config.topk_method == "group_limited_greedy" and _chooses_groups(config):
        message = (
            "megatron-core ranks groups of experts by the sum of their best scores, this model by the best one, "
            "so the routing would differ; train a model with topk_method greedy"
        )
        found.append(_no("topk_method", config.topk_method, message))
    if config.mlp_bias:
        found.append(_no("mlp_bias", True, "biases of the MLP are not supported in this family"))
    return (*_refuse(config), *found)


def _refuse_v3(config: HfConfig) -> tuple[Violation, ...]:
    found = list(_refuse(config))
    if not config.norm_topk_prob:
        message = "sigmoid routing without norm_topk_prob is not supported; megatron-core always normalises"
        found.append(_no("norm_topk_prob", False, message))
    if not config.rope_interleave:
        message = "latent attention always rotates interleaved pairs in megatron-core"
        found.append(_no("rope_interleave", False, message))
    if _chooses_groups(config) and config.num_experts_per_tok // config.topk_group != 2:
        message = (
            "this model ranks groups by their two best experts, megatron-core by num_experts_per_tok // topk_group, "
            f"which is {config.num_experts_per_tok // config.topk_group} here"
        )
        found.append(_no("topk_group", config.topk_group, message))
    return tuple(found)


def _no(key: str, value: object, message: str) -> Violation:
    return Violation(path=f"config.json:{key}", value=value, message=message)


def _extra_layers(config: HfConfig) -> tuple[str, ...]:
    """Names of the multi-token-prediction layers, which come after the last layer."""
    numbers = range(config.num_hidden_layers, config.num_hidden_layers + (config.num_nextn_predict_layers or 0))
    return tuple(rf"{re.escape(f'model.layers.{number}.')}.*" for number in numbers)


_WEIGHTS = (*LATENT_ATTENTION, *router(), *experts(), *shared_experts("shared_experts"))

DEEPSEEK_V2 = Family(model_type="deepseek_v2", settings=_v2, weights=_WEIGHTS, latent_attention=True, refuse=_refuse_v2)

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    settings=_v3,
    weights=_WEIGHTS,
    latent_attention=True,
    refuse=_refuse_v3,
    copied=_extra_layers,
)
