"""Qwen3-Next: gated delta nets in most layers, gated attention in the others, experts in all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, FULL, decoder
from megatron_trainjob.families.experts import every_nth_layer, routed, softmax_router
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import LinearAttention, Model
from megatron_trainjob.violation import Violation

LINEAR = "linear_attention"


def _kinds(config: Config) -> list[str]:
    """The kind of each layer: layer_types, else full attention in every full_attention_interval-th one."""
    interval = config["full_attention_interval"]
    default = [LINEAR if (layer + 1) % interval else FULL for layer in range(config["num_hidden_layers"])]
    return list(config["layer_types"] or default)


def linear_attention(config: Config, *, separate: bool = False) -> dict[str, Any]:
    """The gated delta nets; {} where every layer has attention. separate: as in LinearAttention."""
    layers = tuple(kind == LINEAR for kind in _kinds(config))
    if not any(layers):
        return {}
    sizes = LinearAttention(
        layers=layers,
        key_heads=config["linear_num_key_heads"],
        value_heads=config["linear_num_value_heads"],
        key_size=config["linear_key_head_dim"],
        value_size=config["linear_value_head_dim"],
        kernel=config["linear_conv_kernel_dim"],
        separate=separate,
    )
    return {"linear": sizes}


def refuse_linear_attention(config: Config) -> Iterator[Violation]:
    """Refuses unknown kinds of layers, a wrong number of them, or value heads that key heads do not divide."""
    kinds, number = _kinds(config), config["num_hidden_layers"]
    if len(kinds) != number or not set(kinds) <= {LINEAR, FULL}:
        yield refused("layer_types", kinds, f"must name {LINEAR} or {FULL} for each of the {number} layers")
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    if values % keys:
        message = f"{values} value heads are not divisible among {keys} key heads; use a multiple of {keys}"
        yield refused("linear_num_value_heads", values, message)


def gated_attention(config: Config) -> dict[str, Any]:
    """The attention between the delta nets, and norms around one plus their weight."""
    bias = config["attention_bias"]
    return {
        "qk_norm": True,
        "qkv_bias": bias,
        "output_bias": bias,
        "output_gate": True,
        "zero_centered_norms": True,
    }


def routed_beside_shared(config: Config, layers: tuple[bool, ...], *, normalized: bool) -> dict[str, Any]:
    """Routed experts and one that every token passes, with a gate; {} when every layer is dense."""
    router = softmax_router(normalized=normalized)
    experts = routed(config, router, layers, num_experts="num_experts", width="moe_intermediate_size")
    shared = {"shared_expert_width": config["shared_expert_intermediate_size"], "shared_expert_gate": True}
    return {**experts, **shared} if experts else {}


def _qwen3_next(config: Config) -> Model:
    experts = routed_beside_shared(config, every_nth_layer(config), normalized=config["norm_topk_prob"])
    layers = {**gated_attention(config), **linear_attention(config), **experts}
    return decoder(config, **layers, prediction_layers=config["num_nextn_predict_layers"])


def refuse_qwen3_next(config: Config) -> Iterator[Violation]:
    """The same, and several multi-token-prediction layers."""
    yield from refuse_linear_attention(config)
    number = config["num_nextn_predict_layers"]
    if number > 1:
        message = "several multi-token-prediction layers, which share a projection, are not supported; set it to 1"
        yield refused("num_nextn_predict_layers", number, message)


HYBRID_DECODER: Mapping[str, Any] = {
    **DECODER,
    "num_attention_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.25,
    "attention_bias": False,
    "layer_types": Optional(),
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "num_nextn_predict_layers": 1,
}
"""Keys of decoders with linear and gated attention, with the defaults that Qwen3-Next and Qwen3.5 share."""

QWEN3_NEXT = Family(
    model_type="qwen3_next",
    classifier="Qwen3NextForSequenceClassification",
    title="Qwen3-Next-80B-A3B, Qwen3-Coder-Next",
    keys={
        **HYBRID_DECODER,
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": Optional(),
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
    },
    aliases={"num_local_experts": "num_experts"},
    build=_qwen3_next,
    refuse=refuse_qwen3_next,
)
