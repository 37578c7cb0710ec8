"""Arguments of the groups model, moe and mla that change what config.json says.

They change the configuration itself, before anything is read from it: model, memory and the exported
config.json then agree. What a family fixes cannot be changed; an argument that says otherwise is a
violation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megatron_trainer.models.family import HfConfig
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

# Argument -> keys of config.json; the first one that the family's configuration has is set.
_KEYS: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "num_attention_heads": ("num_attention_heads",),
    "num_query_groups": ("num_key_value_heads",),
    "kv_channels": ("head_dim",),
    "max_position_embeddings": ("max_position_embeddings",),
    "norm_epsilon": ("rms_norm_eps",),
    "attention_dropout": ("attention_dropout",),
    "rotary_base": ("rope_theta",),
    "rotary_percent": ("partial_rotary_factor",),
    "num_experts": ("num_experts", "n_routed_experts", "num_local_experts"),
    "moe_ffn_hidden_size": ("moe_intermediate_size",),
    "moe_shared_expert_intermediate_size": ("shared_expert_intermediate_size",),
    "moe_router_topk": ("num_experts_per_tok",),
    "moe_router_topk_scaling_factor": ("routed_scaling_factor",),
    "q_lora_rank": ("q_lora_rank",),
    "kv_lora_rank": ("kv_lora_rank",),
    "qk_head_dim": ("qk_nope_head_dim",),
    "qk_pos_emb_head_dim": ("qk_rope_head_dim",),
}
_ROTARY = ("rope_theta", "partial_rotary_factor")


def apply(raw: Mapping[str, Any], hf_config: HfConfig, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """config.json with the arguments put in, and those that the family has no place for.

    raw: the file's content. hf_config: the same as a transformers object, which knows every key of the
    family.
    """
    changed = dict(raw)
    violations = []
    for name, keys in _KEYS.items():
        value = getattr(args, name)
        if value is None:
            continue
        key = next((key for key in keys if key in _ROTARY or hasattr(hf_config, key)), None)
        if key is None:
            violations.append(_no_place(name, value, hf_config))
        elif key not in _ROTARY:
            changed[key] = value
    if args.untie_embeddings_and_output_weights is not None:
        changed["tie_word_embeddings"] = not args.untie_embeddings_and_output_weights
    rotary, problems = _rotary(hf_config, args)
    return {**_without_rotary(changed, rotary), **rotary}, [*violations, *problems]


def _rotary(hf_config: HfConfig, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """The rotary part of config.json in the form that every version of transformers reads; {} when
    unchanged.
    """
    given = {"rope_theta": args.rotary_base, "partial_rotary_factor": args.rotary_percent}
    given = {key: value for key, value in given.items() if value is not None}
    if args.rope_scaling is None and not given:
        return {}, []
    now = dict(hf_config.rope_parameters)
    outside = {key: now.pop(key) for key in _ROTARY if key in now} | given
    if args.rope_scaling is None:
        scaling: Mapping[str, Any] = now
    elif isinstance(args.rope_scaling, Mapping):
        scaling = args.rope_scaling
    else:
        scaling, problems = _from_text(args.rope_scaling, hf_config, args)
        if problems:
            return {}, problems
    scaling = {"rope_type": scaling.get("rope_type") or scaling.get("type") or "default", **scaling}
    scaling.pop("type", None)
    return {**outside, "rope_scaling": scaling}, []


def _from_text(text: str, hf_config: HfConfig, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """A JSON object as text, or a bare type whose factor follows from max_model_len."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text), []
        except ValueError as err:
            return {}, [_violation("rope_scaling", text, f"is no JSON object ({err}); write it as in config.json")]
    if args.max_model_len is None:
        message = f"needs max_model_len, the length that {text} scaling shall reach"
        return {}, [_violation("rope_scaling", text, message)]
    longest = hf_config.max_position_embeddings
    scaling: dict[str, Any] = {"rope_type": text, "factor": max(1.0, args.max_model_len / longest)}
    if text == "yarn":
        scaling["original_max_position_embeddings"] = longest
    return scaling, []


def _without_rotary(raw: dict[str, Any], replacement: Mapping[str, Any]) -> dict[str, Any]:
    if not replacement:
        return raw
    return {key: value for key, value in raw.items() if key not in (*_ROTARY, "rope_scaling", "rope_parameters")}


def _no_place(name: str, value: object, hf_config: HfConfig) -> Violation:
    return _violation(name, value, f"a model of type {hf_config.model_type} has no such setting; remove it")


def contradictions(args: TrainArgs, settings: Mapping[str, Any]) -> list[Violation]:
    """Arguments that say otherwise than the family does. settings: megatron-core's fields as the model
    needs them.
    """
    facts = {
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "swiglu": True,
        "add_qkv_bias": bool(settings.get("add_qkv_bias")),
        "qk_layernorm": bool(settings.get("qk_layernorm")),
        "multi_latent_attention": "kv_lora_rank" in settings,
    }
    return [
        _violation(name, getattr(args, name), f"this model has {name}: {str(fact).lower()}; remove the argument")
        for name, fact in facts.items()
        if getattr(args, name) not in (None, fact)
    ]


def _violation(name: str, value: object, message: str) -> Violation:
    return Violation(path=f"spec.args.{name}", value=value, message=message)
