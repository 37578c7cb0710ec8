"""GLM-4: the dense models, which rotate half of each head in pairs, the 4.5 mixtures, and 4.7-Flash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, decoder, rotary
from megatron_trainjob.families.deepseek import LATENT_KEYS, latent_attention, refuse_latent_attention
from megatron_trainjob.families.experts import (
    after_dense_layers,
    refuse_groups,
    shared_and_routed,
    sigmoid_router,
)
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation

_DENSE: Mapping[str, Any] = {
    **DECODER,
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}


def _dense(config: Config, **differences: Any) -> Model:  # noqa: ANN401 - fields of Model
    pairs = rotary(config, interleaved=True)
    return decoder(config, qkv_bias=config["attention_bias"], rotary=pairs, **differences)


def _mixture(config: Config) -> Model:
    return decoder(
        config,
        qkv_bias=config["attention_bias"],
        qk_norm=config["use_qk_norm"],
        prediction_layers=config["num_mtp_layers"],
        **shared_and_routed(config, sigmoid_router(config), after_dense_layers(config)),
    )


GLM = Family(
    model_type="glm",
    classifier="GlmForSequenceClassification",
    title="GLM-4-9B (0414 and before), GLM-Edge",
    keys=_DENSE,
    build=_dense,
)

GLM4 = Family(
    model_type="glm4",
    classifier="Glm4ForSequenceClassification",
    title="GLM-4-0414, GLM-Z1",
    keys={**_DENSE, "num_key_value_heads": 2, "head_dim": 128, "attention_dropout": 0.0},
    build=lambda config: _dense(config, post_norms=True),
)

GLM4_MOE = Family(
    model_type="glm4_moe",
    title="GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",
    keys={
        **DECODER,
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "partial_rotary_factor": 0.5,
        "attention_bias": False,
        "use_qk_norm": False,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "num_mtp_layers": 1,
    },
    aliases={"num_local_experts": "n_routed_experts", "num_nextn_predict_layers": "num_mtp_layers"},
    build=_mixture,
    refuse=refuse_groups,
)


def _expert_layers(config: Config) -> tuple[bool, ...]:
    """mlp_layer_types, by default one dense layer before those with experts."""
    number = config["num_hidden_layers"]
    kinds = config["mlp_layer_types"] or ["dense", *["sparse"] * (number - 1)]
    return tuple(kind == "sparse" for kind in kinds)


def _lite(config: Config) -> Model:
    return decoder(
        config,
        prediction_layers=config["num_nextn_predict_layers"],
        **latent_attention(config),
        **shared_and_routed(config, sigmoid_router(config), _expert_layers(config)),
    )


def _refuse_lite(config: Config) -> Iterator[Violation]:
    yield from refuse_latent_attention(config)
    yield from refuse_groups(config)
    if rotary(config).share != 1.0:
        message = "latent attention rotates all of qk_rope_head_dim; remove the key"
        yield refused("partial_rotary_factor", rotary(config).share, message)
    kinds = config["mlp_layer_types"]
    if kinds and (len(kinds) != config["num_hidden_layers"] or not set(kinds) <= {"dense", "sparse"}):
        message = f"must name dense or sparse for each of the {config['num_hidden_layers']} layers"
        yield refused("mlp_layer_types", kinds, message)


GLM4_MOE_LITE = Family(
    model_type="glm4_moe_lite",
    title="GLM-4.7-Flash",
    keys={
        **LATENT_KEYS,
        "vocab_size": 154880,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "partial_rotary_factor": 1.0,
        "q_lora_rank": Optional(768),
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "moe_intermediate_size": 1536,
        "n_shared_experts": 1,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.8,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "mlp_layer_types": Optional(),
        "num_nextn_predict_layers": 0,
    },
    aliases={"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
    build=_lite,
    refuse=_refuse_lite,
)
