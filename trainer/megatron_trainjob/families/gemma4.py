"""The text decoder of Gemma-4: layers with a window, and layers of full attention whose heads are wider, fewer and, in
part, take their keys for values; experts beside a dense block in the same layer; logits within a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, FULL, SLIDING, decoder, rotary
from megatron_trainjob.families.experts import softmax_router
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model, Rotary, WideAttention
from megatron_trainjob.families.stacks import StackForm
from megatron_trainjob.violation import Violation

PROPORTIONAL = "proportional"
"""Rotation of a part of each head's pairs, at the frequencies that they have among all."""
_PERIOD = 6
"""Every such layer has full attention where layer_types is absent."""
_ROTARY: Mapping[str, Mapping[str, Any]] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": PROPORTIONAL, "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
_ROTATIONS = {SLIDING: ("default",), FULL: ("default", PROPORTIONAL)}
_OVERRIDES = ("head_dim", "num_key_value_heads")
"""What per_layer_config of a file says of layers with full attention."""


def _kinds(config: Config) -> list[str]:
    """The kind of each layer; the last has full attention whatever layer_types says, as in transformers."""
    number = config["num_hidden_layers"]
    default = [SLIDING if (layer + 1) % _PERIOD else FULL for layer in range(number)]
    return [*(config["layer_types"] or default)[:-1], FULL]


def _rotary(config: Config, kind: str) -> Rotary:
    """The rotary part of the layers of this kind."""
    every = config.raw.get("rope_parameters") or _ROTARY
    inner = dict(every.get(kind) or _ROTARY[kind])
    own = rotary(replace(config, raw={**config.raw, "rope_scaling": None, "rope_parameters": inner}))
    share = inner.get("partial_rotary_factor", 1.0) if own.kind == PROPORTIONAL else 1.0
    return replace(own, share=share)


def _written(config: Config) -> Mapping[str, Mapping[str, Any]]:
    """per_layer_config of a file as transformers writes it: the number of a layer -> what is its own."""
    found = config.raw.get("per_layer_config")
    return found if isinstance(found, Mapping) else {}


def _wide_sizes(config: Config) -> tuple[int, int]:
    """(width of a head, key-value heads) of layers with full attention."""
    for layer in _written(config).values():
        return layer.get("head_dim", config["head_dim"]), layer.get(
            "num_key_value_heads", config["num_key_value_heads"]
        )
    own = config["num_global_key_value_heads"] if config["attention_k_eq_v"] else None
    return config["global_head_dim"], own or config["num_key_value_heads"]


def _wide(config: Config) -> WideAttention:
    size, heads = _wide_sizes(config)
    return WideAttention(
        layers=tuple(kind == FULL for kind in _kinds(config)),
        head_size=size,
        num_kv_heads=heads,
        rotary=_rotary(config, FULL),
        keys_as_values=config["attention_k_eq_v"],
    )


def _experts(config: Config) -> dict[str, Any]:
    """Experts in every layer, beside its dense block; {} without."""
    if not config.get("enable_moe_block"):
        return {}
    return {
        "expert_layers": (True,) * config["num_hidden_layers"],
        "num_experts": config["num_experts"] or 0,
        "experts_per_token": config["top_k_experts"] or 0,
        "expert_width": config["moe_intermediate_size"] or 0,
        "router": softmax_router(normalized=True),
        "experts_beside_dense": True,
        "shared_expert_width": config["intermediate_size"],
    }


def _gemma4(config: Config) -> Model:
    bias, kinds = config["attention_bias"], _kinds(config)
    return decoder(
        config,
        activation=config["hidden_activation"],
        rotary=_rotary(config, SLIDING),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        value_norm=True,
        post_norms=True,
        attention_scale=1.0,
        embedding_scale=sqrt(config["hidden_size"]),
        logit_cap=config["final_logit_softcapping"] or 0.0,
        layer_scales=True,
        window=config["sliding_window"],
        window_layers=tuple(kind == SLIDING for kind in kinds),
        wide=_wide(config),
        **_experts(config),
    )


def _refuse_gemma4(config: Config) -> Iterator[Violation]:
    number, kinds = config["num_hidden_layers"], config["layer_types"]
    if kinds and (len(kinds) != number or not set(kinds) <= {SLIDING, FULL}):
        yield refused("layer_types", kinds, f"must name {SLIDING} or {FULL} for each of the {number} layers")
        return
    yield from _refuse_parts(config)
    yield from _refuse_sizes(config)
    yield from _refuse_rotations(config)
    if config.get("enable_moe_block") and not config["moe_intermediate_size"]:
        message = "must be at least 1, because enable_moe_block is true"
        yield refused("moe_intermediate_size", config["moe_intermediate_size"], message)


def _refuse_parts(config: Config) -> Iterator[Violation]:
    """Parts of the smaller models, and attention to later tokens."""
    if size := config.get("hidden_size_per_layer_input"):
        message = (
            "embeddings that enter every layer (Gemma-4-E2B, -E4B) are not trained here; take a model without them, "
            "whose file says 0"
        )
        yield refused("hidden_size_per_layer_input", size, message)
    if shared := config["num_kv_shared_layers"]:
        message = (
            "layers that take keys and values of earlier ones (Gemma-4-E2B, -E4B) are not trained here; take a model "
            "without them, whose file says 0"
        )
        yield refused("num_kv_shared_layers", shared, message)
    if (later := config["use_bidirectional_attention"]) == "all":
        message = "lets every token attend to later ones, which next-token training does not support; set it to null"
        yield refused("use_bidirectional_attention", later, message)
    elif later not in (None, "vision"):
        yield refused("use_bidirectional_attention", later, 'must be null or "vision"')
    if config["attention_bias"] and config["attention_k_eq_v"]:
        message = "biases of keys that are values too are not trained here; set it to false"
        yield refused("attention_bias", True, message)


def _refuse_sizes(config: Config) -> Iterator[Violation]:
    size, heads = _wide_sizes(config)
    if config["sliding_window"] < 1:
        yield refused("sliding_window", config["sliding_window"], "must be at least 1")
    if config["num_attention_heads"] % heads:
        message = f"{config['num_attention_heads']} attention heads are not divisible into so many groups"
        yield refused("num_global_key_value_heads", heads, message)
    if size % 2:
        yield refused("global_head_dim", size, "rotary positions need an even number of channels per head")
    own = _written(config)
    full = {str(layer) for layer, kind in enumerate(_kinds(config)) if kind == FULL}
    alike = len({tuple(sorted(layer.items())) for layer in own.values() if isinstance(layer, Mapping)}) <= 1
    known = all(isinstance(layer, Mapping) and set(layer) <= set(_OVERRIDES) for layer in own.values())
    if own and not (alike and known and set(map(str, own)) == full):
        message = f"may say {' and '.join(_OVERRIDES)} of the layers with {FULL} alone, the same in each"
        yield refused("per_layer_config", dict(own), message)


def _refuse_rotations(config: Config) -> Iterator[Violation]:
    given: Mapping[str, Any] = config.raw.get("rope_parameters") or {}
    if config.raw.get("rope_scaling"):
        message = "layers of this model rotate by their kind, which rope_parameters says; remove it"
        yield refused("rope_scaling", config.raw["rope_scaling"], message)
    for kind in _ROTATIONS if given else ():
        if not isinstance(given.get(kind), Mapping):
            yield refused(f"rope_parameters.{kind}", given.get(kind), "must be an object with rope_type and rope_theta")
            continue
        found, known = _rotary(config, kind), _ROTATIONS[kind]
        if found.kind not in known:
            yield refused(f"rope_parameters.{kind}.rope_type", found.kind, f"must be {' or '.join(known)}")
        if not 0.0 < found.share <= 1.0:
            message = "must be above 0 and at most 1"
            yield refused(f"rope_parameters.{kind}.partial_rotary_factor", found.share, message)


_KEYS: Mapping[str, Any] = {
    **{key: value for key, value in DECODER.items() if key not in ("hidden_act", "rope_theta")},
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 512,
    "layer_types": Optional(),
    "final_logit_softcapping": Optional(),
    "use_bidirectional_attention": Optional(),
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "global_head_dim": 512,
    "num_global_key_value_heads": Optional(),
}

GEMMA4_TEXT = Family(
    model_type="gemma4_text",
    title="Gemma-4-26B-A4B, Gemma-4-31B (text decoder)",
    stacks_experts=True,
    stack_form=StackForm(is_exchanged=False),
    rotates_by_kind=True,
    keys={
        **_KEYS,
        "hidden_size_per_layer_input": 256,
        "enable_moe_block": False,
        "num_experts": Optional(),
        "top_k_experts": Optional(),
        "moe_intermediate_size": Optional(),
    },
    build=_gemma4,
    refuse=_refuse_gemma4,
)

GEMMA4_UNIFIED_TEXT = Family(
    model_type="gemma4_unified_text",
    title="Gemma-4-12B (text decoder)",
    rotates_by_kind=True,
    keys={
        **_KEYS,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
        "use_bidirectional_attention": Optional("vision"),
    },
    build=_gemma4,
    refuse=_refuse_gemma4,
)
