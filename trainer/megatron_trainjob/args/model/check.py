"""All problems that prevent training a model, as far as its config.json and the arguments show.

Used by `mtj validate`, `mtj plan`, admission and the trainer, so that all report the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_trainjob import families, quantization
from megatron_trainjob.args import derive, head
from megatron_trainjob.args.model import prediction, tower
from megatron_trainjob.args.model.apply import apply, contradictions, with_head_size
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES, untrained
from megatron_trainjob.families.config import MOST, Config
from megatron_trainjob.families.decoder import rope_values
from megatron_trainjob.families.family import Family, refused
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu")
"""Activation names in config.json with which gated MLPs are built."""

STORED_TYPES = ("float16", "bfloat16", "float32")
"""Values of dtype in config.json that determine the training type."""

ROTARY_KINDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""Types of rotary scaling, and the parameters that each requires."""

_ANOTHER_MODEL: Mapping[str, str] = {
    "per_layer_config": "per-layer configurations are not supported",
    "transformers_weights": "weights in a file that config.json names are not supported",
    **dict.fromkeys(
        ("text_config", "decoder", "generator"), "composite models with a nested text model are not supported"
    ),
}
"""Keys of config.json that any model may have -> why one that has it is not trained."""

RESIDUAL_DROPOUT = ("resid_pdrop", "residual_dropout")
"""Names of the dropout on the outputs of attention and MLP."""

MOST_ROTARY = 1e15
_MAY_BE_NULL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_NUMBERS = (
    *("rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor"),
    *_MAY_BE_NULL,
)

_POSITIVE = ("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")

_BY_LENGTH = ("dynamic", "longrope")
"""Types whose frequencies change once a sequence is longer than the model's original length."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """config: the file's content with the arguments applied, as an export writes it. model: the model it describes,
    None if that cannot be determined. is_known: whether the family is known.
    """

    config: Mapping[str, Any]
    model: Model | None
    violations: tuple[Violation, ...]
    is_known: bool = True


def check(raw: Mapping[str, Any], args: TrainArgs) -> Checked:
    """The model of a config.json with these arguments, and all problems that prevent training it."""
    family = families.of(raw)
    if family is None:
        return Checked(config=raw, model=None, violations=(_unknown(raw),), is_known=False)
    raw = family.flat(raw)
    unread = (*_unread_weights(raw), *_stored_type(raw, args), *_of_any_family(raw, family))
    raw = quantization.in_full(raw)
    misread = (*unread, *family.config(raw).problems(), *_rotary_types(raw, family))
    if len(misread) > len(unread):
        return Checked(config=raw, model=None, violations=misread)
    changed, found = apply(raw, family, args)
    found += unread
    config = family.config(changed)
    misread = (*config.problems(), *_rotary_types(changed, family))
    if misread:
        return Checked(config=changed, model=None, violations=(*found, *misread))
    model, problems = prediction.applied(family.build(config), family, args)
    found += problems
    found += [*family.refuse(config), *_of_model(model, config, family), *contradictions(model, args)]
    found += [*_of_arguments(model, args), *_of_head(family, args)]
    return Checked(config=with_head_size(changed, config, model), model=model, violations=tuple(found))


def _unknown(raw: Mapping[str, Any]) -> Violation:
    kind = raw.get("model_type")
    if texts := families.texts_of(str(kind)):
        inner = raw["text_config"].get("model_type")
        message = f"this text model is not trained behind a vision tower of {kind}; those that are: {', '.join(texts)}"
        return refused("text_config.model_type", inner, message)
    message = untrained.REASONS.get(str(kind)) or (
        f"this model family is not known; known are {', '.join(sorted(FAMILIES))}. "
        "A family is added as a record (docs/adding-a-family.md)"
    )
    return refused("model_type", kind, message)


def _unread_weights(raw: Mapping[str, Any]) -> Iterator[Violation]:
    """Weights in a storage format that convert/source.py does not support."""
    if problem := quantization.problem(raw):
        key = next(key for key in quantization.CONFIG_KEYS if raw.get(key) is not None)
        yield refused(key, raw[key], problem)
    elif (found := quantization.of(raw)) and found.has_blocks and not FAMILIES[str(raw["model_type"])].has_mxfp4:
        known = ", ".join(family.model_type for family in FAMILIES.values() if family.has_mxfp4)
        message = f"weights in MXFP4 are read for {known} only; convert the model to bfloat16 (save_pretrained)"
        yield refused("quantization_config", raw.get("quantization_config"), message)


def _stored_type(raw: Mapping[str, Any], args: TrainArgs) -> Iterator[Violation]:
    """A stored type that does not determine the training type, without an argument that does.

    transformers reads the older name only if the other is absent.
    """
    is_given = args.torch_dtype is not None or args.fp16 is not None or args.bf16 is not None
    for key in ("dtype", "torch_dtype"):
        value = raw.get(key)
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if value is not None and not is_given and name not in STORED_TYPES:
            message = f"must be {', '.join(STORED_TYPES)} or null; correct it there, or set args.torch_dtype"
            yield refused(key, value, message)


def _of_any_family(raw: Mapping[str, Any], family: Family) -> Iterator[Violation]:
    """Keys that transformers applies in every family and that change the model."""
    if "is_causal" in raw and not raw["is_causal"]:
        message = "lets every token attend to later ones, which next-token training does not support; remove it"
        yield refused("is_causal", raw["is_causal"], message)
    for key, reason in _ANOTHER_MODEL.items():
        if raw.get(key) is not None and not (family.rotates_by_kind and key == "per_layer_config"):
            yield refused(key, raw[key], f"{reason}; remove it where the model is trained without")


def _rotary_types(raw: Mapping[str, Any], family: Family) -> Iterator[Violation]:
    """Values of the rotary part that are not numbers, or that differ between layers."""
    inner = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(inner, Mapping):
        yield refused("rope_scaling", inner, "must be an object, or null")
        return
    if family.rotates_by_kind:
        yield from _sizes_of_layers(raw)
        for kind, own in inner.items():
            if isinstance(own, Mapping):
                yield from _rotary_numbers(own, f"rope_parameters.{kind}")
        return
    if any(isinstance(value, Mapping) for value in inner.values()):
        yield refused("rope_parameters", dict(inner), "rotary positions that differ by layer are not supported")
        return
    if "rope_theta" in raw and raw["rope_theta"] is None and "rope_theta" not in inner:
        yield refused("rope_theta", None, "must be a number; correct it in the model's config.json, or remove it")
    yield from _rotary_numbers(rope_values(raw), "rope_scaling")


def _sizes_of_layers(raw: Mapping[str, Any]) -> Iterator[Violation]:
    """per_layer_config that is no table of sizes."""
    given = raw.get("per_layer_config") or {}
    layers = given.values() if isinstance(given, Mapping) else [given]
    sizes = [size for layer in layers for size in (layer.values() if isinstance(layer, Mapping) else [layer])]
    if not all(type(size) is int and 0 < size <= MOST for size in sizes):
        message = "must be an object of layers, each an object of whole numbers above 0; correct it there"
        yield refused("per_layer_config", given, message)


def _rotary_numbers(given: Mapping[str, Any], place: str) -> Iterator[Violation]:
    for key, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_ROTARY
        if key in _NUMBERS and not is_number and not (value is None and key in _MAY_BE_NULL):
            message = f"must be a number of at most {MOST_ROTARY:g}; correct it in the model's config.json"
            yield refused(f"{place}.{key}", value, message)
        elif key in _POSITIVE and value <= 0:
            yield refused(f"{place}.{key}", value, "must be above 0; correct it in the model's config.json")


def _of_model(model: Model, config: Config, family: Family) -> Iterator[Violation]:
    """Problems that no argument can fix."""
    if model.activation not in ACTIVATIONS:
        message = f"this activation is not supported; supported are {', '.join(ACTIVATIONS)}"
        yield refused("hidden_act", model.activation, message)
    if model.init_std > 1:
        yield refused("initializer_range", model.init_std, "must be at most 1")
    for key in ("attention_dropout", *RESIDUAL_DROPOUT):
        if not 0 <= (config.get(key) or 0) < 1:
            yield refused(key, config[key], "must be at least 0 and below 1")
    yield from _heads(model, config)
    yield from _experts(model, config)
    yield from _rotary(model, config, family)
    if model.vision:
        yield from tower.of_tower(model, model.vision, config)


def _heads(model: Model, config: Config) -> Iterator[Violation]:
    heads, groups = model.num_heads, model.num_kv_heads
    if heads % groups:
        message = f"{heads} attention heads are not divisible into {groups} groups; use a divisor of {heads}"
        yield refused("num_key_value_heads", groups, message)
    stored = config["num_key_value_heads"]
    if model.has_latent_attention and stored not in (None, heads):
        message = (
            f"in latent attention each of the {heads} attention heads has its own key and value; set it to {heads}"
        )
        yield refused("num_key_value_heads", stored, message)
    if config.get("head_dim") is None and not model.has_latent_attention and model.hidden_size % heads:
        message = f"a hidden size of {model.hidden_size} is not divisible by {heads} heads; use a multiple of them"
        yield refused("hidden_size", model.hidden_size, message)


def _experts(model: Model, config: Config) -> Iterator[Violation]:
    if not any(model.expert_layers):
        return
    chosen = model.experts_per_token
    if model.num_experts < 1:
        key = next(key for key in ("num_experts", "n_routed_experts", "num_local_experts") if key in config.keys)
        yield refused(key, model.num_experts, "must be at least 1, because some layers have experts")
    elif not 1 <= chosen <= model.num_experts:
        key = next(key for key in ("num_experts_per_tok", "top_k_experts") if key in config.keys)
        yield refused(key, chosen, f"must be from 1 to the {model.num_experts} experts of the model")


def _rotary(model: Model, config: Config, family: Family) -> Iterator[Violation]:
    """Unknown types, missing parameters, or types that transformers would not run in this family."""
    rotary, given = model.rotary, rope_values(config.raw)
    needed = ROTARY_KINDS.get(rotary.kind) if isinstance(rotary.kind, str) else None
    if needed is None:
        message = f"this kind of rotary embedding is not supported; supported are {', '.join(ROTARY_KINDS)}"
        yield refused("rope_parameters.rope_type", rotary.kind, message)
        return
    missing = [key for key in needed if rotary.parameters.get(key) is None]
    if missing:
        yield refused("rope_parameters", dict(rotary.parameters), f"{rotary.kind} scaling needs {', '.join(missing)}")
    yield from _factors_by_channel(model)
    yield from _pairs(model)
    if not 0.0 < rotary.share <= 1.0:
        yield refused("partial_rotary_factor", rotary.share, "must be above 0 and at most 1")
    share = given.get("partial_rotary_factor", 1.0)
    if rotary.kind != "default" and "partial_rotary_factor" not in config.keys and share != 1.0:
        message = f"{family.model_type} rotates whole heads, which scaled frequencies of a part do not fit; remove it"
        yield refused("partial_rotary_factor", share, message)


def _pairs(model: Model) -> Iterator[Violation]:
    """Rotation acts on pairs of channels: transformers fails for whole heads of an odd width."""
    size = model.qk_rope_size or model.qk_head_size
    if model.rotary.share == 1.0 and size % 2:
        message = f"rotary positions need an even number of channels per head, not {size}; correct it there"
        yield refused("qk_rope_head_dim" if model.qk_rope_size else "head_dim", size, message)


def _factors_by_channel(model: Model) -> Iterator[Violation]:
    """Problems with lists of factors, one for each pair of rotated channels."""
    rotary = model.rotary
    pairs = int((model.qk_rope_size or model.qk_head_size) * rotary.share) // 2
    for key in ("short_factor", "long_factor") if rotary.kind == "longrope" else ():
        given = rotary.parameters.get(key)
        is_list = isinstance(given, list) and all(type(each) in (int, float) for each in given)
        if given is not None and not (is_list and len(given) == pairs):
            yield refused(f"rope_parameters.{key}", given, f"must be a list of {pairs} numbers, one a pair of channels")


def _of_arguments(model: Model, args: TrainArgs) -> Iterator[Violation]:
    """Layouts and lengths that this model does not support in training."""
    yield from _longest(model, args)
    yield from _sequence_parallel(model, args)
    yield from _linear_attention(model, args)
    yield from _sinks_and_biases(model, args)
    if FAMILIES[model.family].stacks_experts and args.quant_method is not None and model.vision is None:
        message = "experts that are stored in one tensor a layer are not written in FP8; remove it, and quant_bits"
        yield Violation(path="spec.args.quant_method", value=args.quant_method, message=message)
    yield from _tensor_ranks(model, args)
    yield from _expert_ranks(model, args)
    if model.vision:
        yield from tower.of_arguments(model, model.vision, args)


def _of_head(family: Family, args: TrainArgs) -> Iterator[Violation]:
    """A head that no transformers class would load with this decoder."""
    if not head.has_scores(args) or family.classifier:
        return
    others = ", ".join(other.model_type for other in FAMILIES.values() if other.classifier)
    message = (
        f"transformers has no sequence classification for {family.model_type}, so nothing would load the trained "
        f"model; choose a model of one of the families {others}"
    )
    yield Violation(path="spec.args.task_type", value=args.task_type, message=message)


def _longest(model: Model, args: TrainArgs) -> Iterator[Violation]:
    rotary = model.rotary
    longest = derive.longest_sample(args, model.max_position_embeddings) or 0
    if rotary.kind in _BY_LENGTH and longest > rotary.original_length:
        message = (
            f"{rotary.kind} rotary embedding changes its frequencies beyond {rotary.original_length} tokens, which "
            f"training cannot do row by row; set max_length to at most {rotary.original_length}"
        )
        yield Violation(path="spec.args.max_length", value=longest, message=message)
    if 0 < model.plain_length < longest:
        message = (
            f"beyond {model.plain_length} tokens this model attends in chunks or at another temperature, which is not "
            f"done here; set max_length to at most {model.plain_length}"
        )
        yield Violation(path="spec.args.max_length", value=longest, message=message)


def _sequence_parallel(model: Model, args: TrainArgs) -> Iterator[Violation]:
    """Experts cannot train without it; latent attention trains but doubles the gradient of its query norm."""
    if args.tensor_model_parallel_size == 1 or args.sequence_parallel:
        return
    kinds = (
        ("a mixture of experts", bool(model.num_experts)),
        ("latent attention", model.has_latent_attention),
        ("linear attention", model.linear is not None),
    )
    for reason, holds in kinds:
        if holds:
            message = f"{reason} with tensor_model_parallel_size > 1 needs sequence parallelism; set it to true"
            yield Violation(path="spec.args.sequence_parallel", value=False, message=message)
            return


def _linear_attention(model: Model, args: TrainArgs) -> Iterator[Violation]:
    """Layouts in which the state of a gated delta net would not be that of the whole sequence."""
    if model.linear is None:
        return
    size, heads = args.tensor_model_parallel_size, model.linear.key_heads
    if args.context_parallel_size > 1:
        message = (
            "linear attention passes a state from token to token, which is not done across context-parallel ranks; "
            "set it to 1, and use tensor_model_parallel_size or recompute_granularity: full for long sequences"
        )
        yield Violation(path="spec.args.context_parallel_size", value=args.context_parallel_size, message=message)
    if heads % size:
        message = f"{heads} key heads of linear attention are not divisible by {size} ranks; use a divisor of {heads}"
        yield Violation(path="spec.args.tensor_model_parallel_size", value=size, message=message)


def _sinks_and_biases(model: Model, args: TrainArgs) -> Iterator[Violation]:
    """Layouts in which attention sinks or biases of experts would be lost or counted more than once."""
    if model.sinks and args.context_parallel_size > 1:
        message = (
            "the kernels that pass keys and values around context-parallel ranks know no attention sinks; set it to 1, "
            "and use tensor_model_parallel_size or recompute_granularity: full for long sequences"
        )
        yield Violation(path="spec.args.context_parallel_size", value=args.context_parallel_size, message=message)
    if not model.expert_bias:
        return
    size = derive.expert_tensor_parallel_size(args)
    if size > 1:
        message = (
            "experts with biases are not split over tensor-parallel ranks; set it to 1, and spread experts instead"
        )
        yield Violation(path="spec.args.expert_tensor_parallel_size", value=size, message=message)
    if args.lora_bias == "all" and args.train_type != "full":
        message = "peft keeps no biases of experts that are stored in one tensor; set it to none"
        yield Violation(path="spec.args.lora_bias", value="all", message=message)


def _tensor_ranks(model: Model, args: TrainArgs) -> Iterator[Violation]:
    size, heads = args.tensor_model_parallel_size, model.num_heads
    every = {model.num_kv_heads, model.wide.num_kv_heads if model.wide else model.num_kv_heads}
    groups = next((each for each in every if each % size and size % each), 0)
    if heads % size:
        message = f"{heads} attention heads are not divisible by {size} ranks; use a divisor of {heads}"
        yield Violation(path="spec.args.tensor_model_parallel_size", value=size, message=message)
    elif groups:
        message = f"{groups} key-value heads neither divide over {size} ranks nor the ranks over them"
        yield Violation(path="spec.args.tensor_model_parallel_size", value=size, message=message)


def _expert_ranks(model: Model, args: TrainArgs) -> Iterator[Violation]:
    size = args.expert_model_parallel_size
    if not model.num_experts and size > 1:
        message = "this model has no experts to shard; set it to 1"
        yield Violation(path="spec.args.expert_model_parallel_size", value=size, message=message)
    elif model.num_experts % size:
        message = f"{model.num_experts} experts are not divisible by {size} ranks; use a divisor of {model.num_experts}"
        yield Violation(path="spec.args.expert_model_parallel_size", value=size, message=message)
    if model.num_experts and args.pipeline_model_parallel_size > 1 and args.moe_token_dispatcher_type == "allgather":
        message = "pipeline stages send rows of varying length, which the allgather dispatcher cannot; use alltoall"
        yield Violation(path="spec.args.moe_token_dispatcher_type", value="allgather", message=message)
