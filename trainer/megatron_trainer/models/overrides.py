"""Arguments of the groups model, moe and mla that change what config.json says.

They change the configuration itself, before anything is read from it: model, memory and the exported
config.json then agree. What a family fixes cannot be changed; an argument that says otherwise is a
violation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megatron_trainer.models.activation import SWIGLU
from megatron_trainer.models.expression import moe_layers
from megatron_trainer.models.family import Family, HfConfig
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

# Argument -> keys of config.json; the first one that the family's configuration has is set.
_KEYS: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "num_attention_heads": ("num_attention_heads",),
    "num_query_groups": ("num_key_value_heads",),
    "kv_channels": ("v_head_dim", "head_dim"),
    "max_position_embeddings": ("max_position_embeddings",),
    "norm_epsilon": ("rms_norm_eps",),
    "attention_dropout": ("attention_dropout",),
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
# Arguments that decide which weights there are and how their numbers belong together.
_SHAPES = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "num_experts",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_head_dim",
    "qk_pos_emb_head_dim",
)
_ROTARY = ("rope_theta", "partial_rotary_factor")


def apply(
    raw: Mapping[str, Any], hf_config: HfConfig, args: TrainArgs, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Violation]]:
    """config.json with the arguments put in, and those that the family has no place for or the weights contradict.

    raw: the file's content. hf_config: the same as a transformers object, which knows every key of the
    family. settings: megatron-core's fields as the file alone says.
    """
    given = {name: getattr(args, name) for name in _KEYS if getattr(args, name) is not None}
    keys = {name: key for name in given if (key := _key(name, hf_config))}
    violations = [_no_place(name, value, hf_config) for name, value in given.items() if name not in keys]
    heads, misfits = _key_value_heads(hf_config, args)
    changed = {**raw, **{key: given[name] for name, key in keys.items()}, **heads}
    if args.untie_embeddings_and_output_weights is not None:
        changed["tie_word_embeddings"] = not args.untie_embeddings_and_output_weights
    changed |= _routing(hf_config, args, settings)
    layers, misread = _expert_layers(hf_config, args)
    changed |= layers
    if args.no_initialization:
        violations += _other_than_stored(hf_config, changed, args)
    rotary, problems = _rotary(hf_config, args)
    return {**_without_rotary(changed, rotary), **rotary}, [*violations, *misfits, *misread, *problems]


def _key(name: str, hf_config: HfConfig) -> str | None:
    return next((key for key in _KEYS[name] if hasattr(hf_config, key)), None)


def _key_value_heads(hf_config: HfConfig, args: TrainArgs) -> tuple[dict[str, int], list[Violation]]:
    """What group_query_attention says of the key-value heads; in latent attention every head has its own."""
    heads = args.num_attention_heads or hf_config.num_attention_heads
    groups = args.num_query_groups or hf_config.num_key_value_heads or heads
    if args.group_query_attention and groups == heads:
        message = f"the model has a key-value head for each of its {heads} attention heads; give num_query_groups too"
        return {}, [_violation("group_query_attention", True, message)]
    is_shared = args.group_query_attention is not False and not hasattr(hf_config, "kv_lora_rank")
    if is_shared or groups == heads:
        return {}, []
    if args.num_query_groups is not None:
        message = f"each of the {heads} attention heads has a key-value head of its own here; remove it"
        return {}, [_violation("num_query_groups", groups, message)]
    return {"num_key_value_heads": heads}, []


def _other_than_stored(hf_config: HfConfig, changed: Mapping[str, Any], args: TrainArgs) -> list[Violation]:
    """Arguments under which the stored weights do not fit, or would be read as those of another model."""
    deciding = {
        **{name: _key(name, hf_config) for name in _SHAPES},
        "group_query_attention": "num_key_value_heads",
        "untie_embeddings_and_output_weights": "tie_word_embeddings",
    }
    return [
        _violation(
            name,
            getattr(args, name),
            f"the stored weights are of a model with {key} {str(stored).lower()}; remove the argument, or set "
            "no_initialization: false to start from random weights",
        )
        for name, key in deciding.items()
        if key and getattr(args, name) is not None and changed.get(key, stored := getattr(hf_config, key)) != stored
    ]


def _routing(hf_config: HfConfig, args: TrainArgs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Softmax before the choice of experts is the same as probabilities that are not normalised after it."""
    wanted = args.moe_router_pre_softmax
    is_softmax = settings.get("moe_router_score_function") == "softmax"
    if wanted is None or not is_softmax or not hasattr(hf_config, "norm_topk_prob"):
        return {}
    return {"norm_topk_prob": not wanted}


def _expert_layers(hf_config: HfConfig, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """moe_layer_freq in the keys of the family; `contradictions` tells when they cannot say it."""
    try:
        layers = moe_layers(args.moe_layer_freq, args.num_layers or hf_config.num_hidden_layers)
    except ValueError as err:
        return {}, [_violation("moe_layer_freq", args.moe_layer_freq, str(err))]
    if layers is None:
        return {}, []
    if hasattr(hf_config, "mlp_only_layers"):
        dense = [index for index, has_experts in enumerate(layers) if not has_experts]
        return {"mlp_only_layers": dense, "decoder_sparse_step": 1}, []
    if hasattr(hf_config, "first_k_dense_replace"):
        return {"first_k_dense_replace": layers.index(1) if 1 in layers else len(layers)}, []
    return {}, []


def _rotary(hf_config: HfConfig, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """The rotary part of config.json in the form that every version of transformers reads; {} when
    unchanged.
    """
    now = dict(hf_config.rope_parameters)
    if args.rotary_percent is not None and "partial_rotary_factor" not in now:
        return {}, [_no_place("rotary_percent", args.rotary_percent, hf_config)]
    given = {"rope_theta": args.rotary_base, "partial_rotary_factor": args.rotary_percent}
    given = {key: value for key, value in given.items() if value is not None}
    if args.rope_scaling is None and not given:
        return {}, []
    outside = {key: now.pop(key) for key in _ROTARY if key in now}
    if args.rope_scaling is None:
        scaling: Mapping[str, Any] = now
    elif isinstance(args.rope_scaling, Mapping):
        scaling = args.rope_scaling
    else:
        scaling, problems = _from_text(args.rope_scaling, hf_config, args)
        if problems:
            return {}, problems
    outside |= {key: scaling[key] for key in _ROTARY if key in scaling} | given
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    rest = {key: value for key, value in scaling.items() if key not in (*_ROTARY, "type", "rope_type")}
    return {**outside, "rope_scaling": {"rope_type": kind, **rest}}, []


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


def contradictions(family: Family, config: HfConfig, args: TrainArgs, settings: Mapping[str, Any]) -> list[Violation]:
    """Arguments that say otherwise than the family does. settings: megatron-core's fields as the model
    needs them.
    """
    facts = {
        "swiglu": config.hidden_act in SWIGLU,
        "disable_bias_linear": not family.mlp_bias(config),
        "add_qkv_bias": bool(settings.get("add_qkv_bias")),
        "qk_layernorm": bool(settings.get("qk_layernorm")),
        "multi_latent_attention": family.latent_attention,
    }
    if settings.get("num_moe_experts"):
        facts |= {
            "moe_router_score_function": settings["moe_router_score_function"],
            "moe_router_enable_expert_bias": bool(settings.get("moe_router_enable_expert_bias")),
            "moe_router_pre_softmax": settings["moe_router_pre_softmax"],
        }
    found = [
        _violation(name, getattr(args, name), f"this model has {name}: {str(fact).lower()}; remove the argument")
        for name, fact in facts.items()
        if getattr(args, name) not in (None, fact)
    ]
    return [*found, *_other_layers(args, settings)]


def _other_layers(args: TrainArgs, settings: Mapping[str, Any]) -> list[Violation]:
    """moe_layer_freq, already put into config.json, where the family reads something else from there."""
    layers = settings.get("moe_layer_freq")
    if layers is None or args.moe_layer_freq is None:
        return []
    try:
        asked = moe_layers(args.moe_layer_freq, len(layers))
    except ValueError:  # `apply` has said so
        return []
    if asked == layers:
        return []
    message = f"this family cannot have its experts in these layers; nearest is {layers}"
    return [_violation("moe_layer_freq", args.moe_layer_freq, message)]


def _violation(name: str, value: object, message: str) -> Violation:
    return Violation(path=f"spec.args.{name}", value=value, message=message)
