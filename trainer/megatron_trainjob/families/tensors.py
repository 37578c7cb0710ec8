"""Which tensors a checkpoint of a model holds, from config.json alone: checked before loading."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from megatron_trainjob.families.model import Model
from megatron_trainjob.families.vision import PREFIX
from megatron_trainjob.families.weight import Weight, plain
from megatron_trainjob.families.weights import (
    ATTENTION,
    EXPERT,
    IGNORED,
    LAYER,
    LINEAR_ATTENTION,
    PREDICTION,
    SCORES,
    SEPARATE_LINEAR_ATTENTION,
    at,
    copies,
    names_of,
    table,
    untrained_predictions,
)

DECODER = "model."
"""Prefix of the names of a decoder's tensors in a model with more than a decoder."""
SHOWN = 8
"""Maximum number of tensors named in a message, which also gives the total."""

MISSING = "tensors that the model needs are missing"
LEFT_OVER = "tensors belong to no part of the model; is config.json of another model?"

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def names(model: Model, *, has_scores: bool = False) -> frozenset[str]:
    """The tensors that every part of the model is read from. has_scores: as in `table`."""
    return frozenset(name for _, each, _ in located(model, has_scores=has_scores) for name in each)


def located(model: Model, *, has_scores: bool = False) -> Iterator[tuple[Weight, tuple[str, ...], Model]]:
    """Each row of the table for each layer and expert that has it, with the names of its tensors in its order, and the
    model with the attention of that layer.
    """
    for name in model.vision.tensors if model.vision else ():
        yield plain(PREFIX + name, PREFIX + name), (PREFIX + name,), model
    by_layer = [model.at(layer) for layer in model.all_layers]
    for row in table(model.family, has_scores=has_scores).values():
        if not row.parameter.startswith(LAYER):
            is_absent = row.parameter == "output_layer.weight" and model.tied and not has_scores
            yield from () if is_absent else ((row, row.names, model),)
            continue
        for layer, here in enumerate(by_layer):
            own = at(row, model, layer)
            for names in _names(own, model, layer):
                yield own, names, here


def difference(model: Model, stored: Collection[str], *, has_scores: bool = False) -> Iterator[str]:
    """The missing and the extra tensors of a checkpoint with the tensors `stored`, worded as in loading.

    has_scores: as in `table`; a head that is not stored is initialized.
    """
    needed = names(model, has_scores=has_scores)
    missing = needed - set(stored) - set(SCORES.names)
    left_over = {name for name in set(stored) - needed if not may_be_left(name, model, ties=model.tied or has_scores)}
    for found, message in ((missing, MISSING), (left_over, LEFT_OVER)):
        if found:
            yield described(sorted(found), message)


def is_output_alone(stored: Collection[str]) -> bool:
    """Whether only the output layer of a tied pair is stored, from which transformers then reads the embedding."""
    return OUTPUT in stored and EMBEDDING not in stored


def is_decoder_alone(stored: Collection[str]) -> bool:
    """Whether only the decoder is stored, as in embedding models: its names lack the prefix `model.`."""
    return EMBEDDING not in stored and EMBEDDING.removeprefix(DECODER) in stored


def described(found: list[str], message: str) -> str:
    """The number of tensors, their problem, and the first of their names."""
    return f"{len(found)} {message}: {', '.join(found[:SHOWN])}{', ...' if len(found) > SHOWN else ''}"


def may_be_left(name: str, model: Model, *, ties: bool) -> bool:
    """Whether a stored tensor may be skipped: known leftovers, copies, and an output layer that is not used.

    ties: the model has no separate output layer, or a head instead.
    """
    patterns = (*IGNORED, *untrained_predictions(model))
    is_copy = any(name in names for names in copies(model).values())
    return is_copy or (ties and name == OUTPUT) or any(re.fullmatch(pattern, name) for pattern in patterns)


def _names(row: Weight, model: Model, layer: int) -> Iterator[tuple[str, ...]]:
    """The tensors of a row in one layer, expert by expert; none if the layer lacks it."""
    if row in PREDICTION and not model.predicts_further(layer):
        return
    if _is_in(row.parameter.removeprefix(LAYER), model, layer):
        for expert in range(model.num_experts if row.parameter.startswith(EXPERT) else 1):
            yield names_of(row, model, layer=layer, expert=expert)


def _is_in(part: str, model: Model, layer: int) -> bool:
    """Whether a layer has this part: its parameter's name below the layer."""
    if part.startswith("self_attention."):
        rows = (*LINEAR_ATTENTION, *SEPARATE_LINEAR_ATTENTION)
        of_linear = any(row.parameter == LAYER + part for row in rows)
        is_linear = model.is_linear(layer)
        own = part.removeprefix(ATTENTION.removeprefix(LAYER))
        return is_linear if of_linear else not is_linear and _is_in_attention(own, model)
    if part.startswith("mlp."):
        return _is_in_mlp(part.removeprefix("mlp."), model, has_experts=model.has_experts(layer))
    if part == "mlp_bda.layer_scale":
        return model.layer_scales
    if part == "pre_mlp_layernorm.weight" and model.experts_beside_dense:
        return not model.has_experts(layer)
    return model.post_norms if "_bda." in part else True


def _is_in_attention(part: str, model: Model) -> bool:
    latent, factored = model.has_latent_attention, model.q_lora_rank > 0
    return {
        "linear_qkv.weight": not latent,
        "linear_qkv.bias": not latent and model.qkv_bias,
        "linear_proj.bias": model.output_bias,
        "core_attention.softmax_offset": model.sinks,
        "linear_q_proj.weight": latent and not factored,
        "linear_q_down_proj.weight": latent and factored,
        "linear_q_up_proj.weight": latent and factored,
        "q_layernorm.weight": factored if latent else model.qk_norm,
        "k_layernorm.weight": model.qk_norm and not latent,
        "linear_kv_down_proj.weight": latent,
        "linear_kv_up_proj.weight": latent,
        "kv_layernorm.weight": latent,
    }.get(part, True)


def _is_in_mlp(part: str, model: Model, *, has_experts: bool) -> bool:
    if part.endswith(".bias") and not (model.expert_bias if has_experts else model.mlp_bias):
        return False
    if part.startswith("router."):
        has_bias = model.router is not None and model.router.has_bias
        has_part = model.experts_beside_dense if part.endswith("scale") else True
        return has_experts and has_part and (has_bias or not part.endswith("expert_bias"))
    if part in ("input_norm.weight", "output_norm.weight"):
        return has_experts
    if part.startswith("shared_experts."):
        is_there = has_experts and model.shared_expert_width > 0
        return is_there and (model.shared_expert_gate or not part.endswith("gate_weight"))
    return has_experts == part.startswith("experts.")
