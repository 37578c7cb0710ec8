"""Applies the arguments of the groups model, moe and mla to config.json.

They change the configuration itself, before anything is read from it: model, memory and the exported config.json then
agree. Properties fixed by a family cannot be changed; an argument that contradicts them is a violation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob.args.model import prediction
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import rope_values
from megatron_trainjob.families.expression import moe_layers
from megatron_trainjob.families.family import Family
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation

SWIGLU = ("silu", "swish")
"""Activations with which a gated MLP is called SwiGLU."""

# Arguments that determine which weights exist and how they are arranged.
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
_VALUES = (
    "max_position_embeddings",
    "norm_epsilon",
    "attention_dropout",
    "moe_router_topk",
    "moe_router_topk_scaling_factor",
)
_ROTARY = ("rope_theta", "partial_rotary_factor")
_DERIVED = ("n_shared_experts",)
"""Keys from which an argument is read but to which it cannot be written: the value depends on another key too."""

_BY_HEAD_SIZE = ("dynamic", "yarn", "longrope")
"""Types of rotary scaling that transformers computes from head_dim as it stands."""


def apply(raw: Mapping[str, Any], family: Family, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """config.json with the arguments applied, and those that the family does not support or the weights contradict.

    raw: the file's content, with values of the types that the family reads.
    """
    config = family.config(raw)
    given = {name: getattr(args, name) for name in (*_SHAPES, *_VALUES) if getattr(args, name) is not None}
    keys = {name: key for name in given if (key := _key(name, family))}
    violations = [_no_place(name, value, family) for name, value in given.items() if name not in keys]
    heads, misfits = _key_value_heads(config, args)
    changes = {**{key: given[name] for name, key in keys.items()}, **heads}
    if args.untie_embeddings_and_output_weights is not None:
        changes["tie_word_embeddings"] = not args.untie_embeddings_and_output_weights
    if args.moe_router_pre_softmax is not None and _normalizes_softmax(family.build(config), family):
        changes["norm_topk_prob"] = not args.moe_router_pre_softmax
    layers, misread = _expert_layers(config, args)
    changes |= {**layers, **prediction.of_random_weights(family, args)}
    changed = {**_without_aliases(raw, family, changes), **changes}
    if args.no_initialization:
        violations += _other_than_stored(config, family, changed, args)
    rotary, problems = _rotary(config, family, args)
    return {**_without_rotary(changed, rotary), **rotary}, [*violations, *misfits, *misread, *problems]


def _key(name: str, family: Family) -> str | None:
    keys = (key for key in ARGUMENTS[name].hf_config_keys if key not in _DERIVED)
    return next((key for key in keys if key in family.keys), None)


def _without_aliases(raw: Mapping[str, Any], family: Family, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The file without aliases of the changed keys, which would contradict the new value.

    With latent attention, transformers writes the width of the rotated part as head_dim too.
    """
    replaced = {family.aliases.get(key) for key in changes}
    others = {**family.aliases, **({"head_dim": "qk_rope_head_dim"} if "kv_lora_rank" in family.keys else {})}
    return {key: value for key, value in raw.items() if others.get(key) not in changes and key not in replaced}


def _normalizes_softmax(model: Model, family: Family) -> bool:
    """Softmax before the selection of experts is equivalent to probabilities that are not normalized after it."""
    return model.router is not None and model.router.score == "softmax" and "norm_topk_prob" in family.keys


def _key_value_heads(config: Config, args: TrainArgs) -> tuple[dict[str, int], list[Violation]]:
    """The key-value heads according to group_query_attention; with latent attention every head has its own."""
    heads = args.num_attention_heads or config["num_attention_heads"]
    groups = args.num_query_groups or config["num_key_value_heads"] or heads
    if args.group_query_attention and groups == heads:
        message = f"the model has a key-value head for each of its {heads} attention heads; set num_query_groups too"
        return {}, [_violation("group_query_attention", True, message)]
    is_latent = "kv_lora_rank" in config.keys
    if groups == heads or (args.group_query_attention is not False and not is_latent):
        return {}, []
    if args.num_query_groups is not None:
        message = f"each of the {heads} attention heads has its own key-value head here; remove it"
        return {}, [_violation("num_query_groups", groups, message)]
    asked = args.group_query_attention is False or args.num_attention_heads is not None
    return ({"num_key_value_heads": heads} if asked else {}), []


def _other_than_stored(config: Config, family: Family, changed: Mapping[str, Any], args: TrainArgs) -> list[Violation]:
    """Arguments with which the stored weights do not fit, or would be read as those of another model."""
    deciding = {
        **{name: _key(name, family) for name in _SHAPES},
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
        if key and getattr(args, name) is not None and changed.get(key, stored := config[key]) != stored
    ]


def _expert_layers(config: Config, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """moe_layer_freq in the keys of the family; `contradictions` reports if they cannot express it."""
    try:
        layers = moe_layers(args.moe_layer_freq, args.num_layers or config["num_hidden_layers"])
    except ValueError as err:
        return {}, [_violation("moe_layer_freq", args.moe_layer_freq, str(err))]
    if layers is None:
        return {}, []
    if "mlp_only_layers" in config.keys:
        dense = [index for index, has_experts in enumerate(layers) if not has_experts]
        return {"mlp_only_layers": dense, "decoder_sparse_step": 1}, []
    if "first_k_dense_replace" in config.keys:
        return {"first_k_dense_replace": layers.index(1) if 1 in layers else len(layers)}, []
    if "mlp_layer_types" in config.keys:
        return {"mlp_layer_types": ["sparse" if flag else "dense" for flag in layers]}, []
    return {}, []


def _rotary(config: Config, family: Family, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """The rotary part of config.json in the form that every version of transformers reads; {} when unchanged."""
    if args.rotary_percent is not None and "partial_rotary_factor" not in config.keys:
        return {}, [_no_place("rotary_percent", args.rotary_percent, family)]
    given = {"rope_theta": args.rotary_base, "partial_rotary_factor": args.rotary_percent}
    given = {key: value for key, value in given.items() if value is not None}
    if args.rope_scaling is None and not given:
        return {}, []
    if family.rotates_by_kind:
        named = {
            "rotary_base": args.rotary_base,
            "rotary_percent": args.rotary_percent,
            "rope_scaling": args.rope_scaling,
        }
        return {}, [_by_kind(name, value) for name, value in named.items() if value is not None]
    now = dict(rope_values(config.raw))
    outside = {key: now.pop(key) for key in _ROTARY if key in now}
    scaling: Mapping[str, Any] = now
    if isinstance(args.rope_scaling, Mapping):
        scaling = args.rope_scaling
    elif args.rope_scaling is not None:
        scaling, problems = _from_text(args.rope_scaling, config, args)
        if problems:
            return {}, problems
    outside |= {key: scaling[key] for key in _ROTARY if key in scaling} | given
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    rest = {key: value for key, value in scaling.items() if key not in (*_ROTARY, "type", "rope_type")}
    return {**outside, "rope_scaling": {"rope_type": kind, **rest}}, []


def with_head_size(changed: Mapping[str, Any], config: Config, model: Model) -> Mapping[str, Any]:
    """config.json with the size of heads where scaling needs it: transformers has null for Mixtral's, and loads neither
    the model nor its export.
    """
    is_null = config.keys.get("head_dim") == Optional() and config["head_dim"] is None
    return {**changed, "head_dim": model.qk_head_size} if is_null and model.rotary.kind in _BY_HEAD_SIZE else changed


def _by_kind(name: str, value: object) -> Violation:
    message = "layers of this model rotate by their kind; set rope_parameters in its config.json instead"
    return _violation(name, value, message)


def _from_text(text: str, config: Config, args: TrainArgs) -> tuple[dict[str, Any], list[Violation]]:
    """A JSON object as text, or a bare type whose factor follows from max_model_len."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text), []
        except ValueError as err:
            return {}, [_violation("rope_scaling", text, f"is not a JSON object ({err}); write it as in config.json")]
    if args.max_model_len is None:
        message = f"needs max_model_len, the target length of {text} scaling"
        return {}, [_violation("rope_scaling", text, message)]
    longest = config["max_position_embeddings"]
    scaling: dict[str, Any] = {"rope_type": text, "factor": max(1.0, args.max_model_len / longest)}
    if text == "yarn":
        scaling["original_max_position_embeddings"] = longest
    return scaling, []


def _without_rotary(raw: dict[str, Any], replacement: Mapping[str, Any]) -> dict[str, Any]:
    if not replacement:
        return raw
    return {key: value for key, value in raw.items() if key not in (*_ROTARY, "rope_scaling", "rope_parameters")}


def _no_place(name: str, value: object, family: Family) -> Violation:
    return _violation(name, value, f"a model of type {family.model_type} has no such setting; remove it")


def contradictions(model: Model, args: TrainArgs) -> Iterator[Violation]:
    """Arguments that contradict the model."""
    facts: dict[str, object] = {
        "position_embedding_type": "mrope" if model.vision and model.vision.sections else "rope",
        "rotary_interleaved": model.rotary.interleaved,
        "swiglu": model.activation in SWIGLU,
        "disable_bias_linear": not (model.mlp_bias or model.expert_bias),
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
        "multi_latent_attention": model.has_latent_attention,
    }
    if model.router:
        facts |= {
            "moe_router_score_function": model.router.score,
            "moe_router_enable_expert_bias": model.router.has_bias,
            "moe_router_pre_softmax": model.router.score == "sigmoid" or not model.router.normalized,
        }
    for name, fact in facts.items():
        if getattr(args, name) not in (None, fact):
            shown = fact if isinstance(fact, str) else str(fact).lower()
            message = f"this model has {name}: {shown}; remove the argument"
            yield _violation(name, getattr(args, name), message)
    yield from _other_layers(model, args)


def _other_layers(model: Model, args: TrainArgs) -> Iterator[Violation]:
    """moe_layer_freq, already applied to config.json, if the family reads something else from it."""
    layers = [int(flag) for flag in model.expert_layers]
    if not any(layers) or args.moe_layer_freq is None:
        return
    try:
        asked = moe_layers(args.moe_layer_freq, len(layers))
    except ValueError:  # `apply` has reported it
        return
    if asked != layers:
        message = f"this family cannot have its experts in these layers; nearest is {layers}"
        yield _violation("moe_layer_freq", args.moe_layer_freq, message)


def _violation(name: str, value: object, message: str) -> Violation:
    return Violation(path=f"spec.args.{name}", value=value, message=message)
