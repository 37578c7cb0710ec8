"""The text decoder of Llama-4: layers without positions, weightless norms of queries and keys, experts for one token in
place of many, whose input is scaled by the router.

Rotated layers attend within chunks and the others at a temperature that grows with the position. Both are ordinary
attention for sequences that end before, and longer ones are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, FULL, decoder, rotary
from megatron_trainjob.families.experts import routed
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model, Router
from megatron_trainjob.families.stacks import StackForm
from megatron_trainjob.violation import Violation

CHUNKED = "chunked_attention"


def _rotated(config: Config) -> tuple[bool, ...]:
    number, period = config["num_hidden_layers"], config["no_rope_layer_interval"]
    given = config["no_rope_layers"] or [int((layer + 1) % period != 0) for layer in range(number)]
    return tuple(bool(flag) for flag in given[:number])


def _kinds(config: Config) -> list[str]:
    is_chunked = config["attention_chunk_size"] is not None
    default = [CHUNKED if is_rotated and is_chunked else FULL for is_rotated in _rotated(config)]
    return list(config["layer_types"] or default)


def _experts(config: Config) -> dict[str, Any]:
    """Experts in moe_layers, else in every interleave_moe_layer_step-th layer, beside one for every token."""
    number, step, given = config["num_hidden_layers"], config["interleave_moe_layer_step"], config["moe_layers"]
    named = range(step - 1, number, step) if given is None else given
    layers = tuple(layer in named for layer in range(number))
    router = Router(score="sigmoid", normalized=False)
    found = routed(config, router, layers, num_experts="num_local_experts", width="intermediate_size")
    shared = {"shared_expert_width": config["intermediate_size"], "scales_expert_inputs": True}
    return {**found, **shared} if found else {}


def _plain_length(config: Config) -> int:
    """Tokens up to which every layer has ordinary attention; 0 for any number."""
    limits = [config["attention_chunk_size"]] if CHUNKED in _kinds(config) else []
    if config["attn_temperature_tuning"] and not all(_rotated(config)):
        limits.append(config["floor_scale"] - 1)
    return min((limit for limit in limits if limit), default=0)


def _llama4(config: Config) -> Model:
    bias, rotated = config["attention_bias"], _rotated(config)
    return decoder(
        config,
        ffn_hidden_size=config["intermediate_size_mlp"],
        qkv_bias=bias,
        output_bias=bias,
        unit_qk_norm=config["use_qk_norm"],
        plain_length=_plain_length(config),
        rotary=rotary(config, interleaved=True, layers=rotated),
        **_experts(config),
    )


def _refuse_llama4(config: Config) -> Iterator[Violation]:
    number, chosen, kinds = config["num_hidden_layers"], config["num_experts_per_tok"], _kinds(config)
    if len(kinds) != number or not set(kinds) <= {CHUNKED, FULL}:
        yield refused("layer_types", kinds, f"must name {CHUNKED} or {FULL} for each of the {number} layers")
    elif CHUNKED in kinds and not config["attention_chunk_size"]:
        yield refused("attention_chunk_size", config["attention_chunk_size"], f"must be above 0 for {CHUNKED}")
    given = config["no_rope_layers"]
    if given and len(given) < number:
        yield refused("no_rope_layers", given, f"must say 1 or 0 for each of the {number} layers")
    if chosen != 1 and any(_llama4(config).expert_layers):
        message = "the input of an expert is scaled by the router for one expert a token only; set it to 1"
        yield refused("num_experts_per_tok", chosen, message)
    kind = _llama4(config).rotary.kind
    if config["use_qk_norm"] and kind in ("yarn", "longrope"):
        message = f"{kind} scales rotated queries and keys, whose norm is taken before the rotation here; remove it"
        yield refused("rope_parameters.rope_type", kind, message)
    if config["attn_temperature_tuning"] and config["floor_scale"] < 2:
        yield refused("floor_scale", config["floor_scale"], "must be at least 2 tokens")


LLAMA4_TEXT = Family(
    model_type="llama4_text",
    title="Llama-4-Scout, Llama-4-Maverick (text decoder)",
    stacks_experts=True,
    stack_form=StackForm(is_exchanged=True, exchanges_adapters=True),
    keys={
        **DECODER,
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "use_qk_norm": True,
        "no_rope_layers": Optional(),
        "no_rope_layer_interval": 4,
        "attention_chunk_size": Optional(8192),
        "layer_types": Optional(),
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "moe_layers": Optional(),
        "interleave_moe_layer_step": 1,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
    },
    build=_llama4,
    refuse=_refuse_llama4,
)
