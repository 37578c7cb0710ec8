"""DeepSeek-V2 and V3: multi-head latent attention, shared experts, grouped routing.

The multi-token-prediction layers that real V3 checkpoints carry are not trained: loading passes them by,
and an export copies them from the source.
"""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.experts import (
    chooses_groups,
    experts_after_dense_layers,
    refuse_sigmoid_router,
    refused,
    sigmoid_router,
    softmax_router,
)
from megatron_trainer.models.family import Family, HfConfig
from megatron_trainer.models.weights import LATENT_ATTENTION, experts, prediction_layers, router, shared_experts
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


def _v2(config: HfConfig) -> dict[str, Any]:
    return {
        **_latent_attention(config),
        **experts_after_dense_layers(config),
        **softmax_router(normalise_after_choice=False),
    }


def _v3(config: HfConfig) -> dict[str, Any]:
    experts = experts_after_dense_layers(config)
    return {**_latent_attention(config), **experts, **(sigmoid_router(config) if experts else {})}


def _refuse(config: HfConfig) -> list[Violation]:
    found = []
    if config.attention_bias:
        found.append(refused("attention_bias", True, "biases of latent attention are not supported"))
    kind = config.rope_parameters["rope_type"]
    if kind not in ("default", "yarn"):
        found.append(refused("rope_scaling", kind, "latent attention rotates with type default or yarn only"))
    return found


def _refuse_v2(config: HfConfig) -> tuple[Violation, ...]:
    found = _refuse(config)
    if config.topk_method == "group_limited_greedy" and chooses_groups(config):
        message = (
            "megatron-core ranks groups of experts by the sum of their best scores, this model by the best one, "
            "so the routing would differ; train a model with topk_method greedy"
        )
        found.append(refused("topk_method", config.topk_method, message))
    if config.mlp_bias:
        found.append(refused("mlp_bias", True, "biases of the MLP are not supported in this family"))
    return tuple(found)


def _refuse_v3(config: HfConfig) -> tuple[Violation, ...]:
    found = [*_refuse(config), *refuse_sigmoid_router(config)]
    if not config.rope_interleave:
        message = "latent attention always rotates interleaved pairs in megatron-core"
        found.append(refused("rope_interleave", False, message))
    return tuple(found)


_WEIGHTS = (*LATENT_ATTENTION, *router(), *experts(), *shared_experts("shared_experts"))

DEEPSEEK_V2 = Family(model_type="deepseek_v2", settings=_v2, weights=_WEIGHTS, latent_attention=True, refuse=_refuse_v2)

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    settings=_v3,
    weights=_WEIGHTS,
    latent_attention=True,
    refuse=_refuse_v3,
    copied=prediction_layers,
)
