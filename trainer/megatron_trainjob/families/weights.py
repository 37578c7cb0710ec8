"""Weight tables: which tensors of a checkpoint hold which parameter, for every family.

The rest of a family is its record in megatron_trainjob/families/, which needs no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from megatron_trainjob.families.model import Model
from megatron_trainjob.families.vision import BESIDE, NESTED, OF_PARTS, Names
from megatron_trainjob.families.weight import Rule, Weight, plain

LAYER = "decoder.layers.{layer}."
HF_LAYER = "model.layers.{layer}."
ATTENTION = LAYER + "self_attention."
HF_ATTENTION = HF_LAYER + "self_attn."
EXPERT = LAYER + "mlp.experts.local_experts.{expert}."


def gated_mlp(
    module: str, name: str, *, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[Weight, ...]:
    """A gated MLP at `module` (megatron-core) and `name` (Hugging Face), both ending in a dot; with biases if any."""
    return tuple(
        row
        for kind in ("weight", "bias")
        for row in (
            Weight(
                parameter=f"{module}linear_fc1.{kind}",
                rule="gated",
                names=(f"{name}{gate}.{kind}", f"{name}{up}.{kind}"),
            ),
            plain(f"{module}linear_fc2.{kind}", f"{name}{down}.{kind}"),
        )
    )


def _query_key_value(kind: str, rule: Rule = "qkv") -> Weight:
    names = tuple(f"{HF_ATTENTION}{part}_proj.{kind}" for part in "qkv")
    return Weight(parameter=f"{ATTENTION}linear_qkv.{kind}", rule=rule, names=names)


DECODER: tuple[Weight, ...] = (
    Weight(parameter="embedding.word_embeddings.weight", rule="vocabulary", names=("model.embed_tokens.weight",)),
    Weight(parameter="output_layer.weight", rule="vocabulary", names=("lm_head.weight",)),
    plain("decoder.final_layernorm.weight", "model.norm.weight"),
    plain(LAYER + "input_layernorm.weight", HF_LAYER + "input_layernorm.weight"),
    plain(LAYER + "pre_mlp_layernorm.weight", HF_LAYER + "post_attention_layernorm.weight"),
    _query_key_value("weight"),
    _query_key_value("bias"),
    plain(ATTENTION + "linear_proj.weight", HF_ATTENTION + "o_proj.weight"),
    plain(ATTENTION + "linear_proj.bias", HF_ATTENTION + "o_proj.bias"),
    plain(ATTENTION + "q_layernorm.weight", HF_ATTENTION + "q_norm.weight"),
    plain(ATTENTION + "k_layernorm.weight", HF_ATTENTION + "k_norm.weight"),
    *gated_mlp(LAYER + "mlp.", HF_LAYER + "mlp."),
)

SCORES = plain("output_layer.weight", "score.weight")
"""The row of the head of models for sequence classification."""

SINKS = plain(ATTENTION + "core_attention.softmax_offset", HF_ATTENTION + "sinks")

LATENT_ATTENTION: tuple[Weight, ...] = (
    plain(ATTENTION + "linear_q_proj.weight", HF_ATTENTION + "q_proj.weight"),
    plain(ATTENTION + "linear_q_down_proj.weight", HF_ATTENTION + "q_a_proj.weight"),
    plain(ATTENTION + "linear_q_up_proj.weight", HF_ATTENTION + "q_b_proj.weight"),
    plain(ATTENTION + "q_layernorm.weight", HF_ATTENTION + "q_a_layernorm.weight"),
    plain(ATTENTION + "linear_kv_down_proj.weight", HF_ATTENTION + "kv_a_proj_with_mqa.weight"),
    plain(ATTENTION + "linear_kv_up_proj.weight", HF_ATTENTION + "kv_b_proj.weight"),
    plain(ATTENTION + "kv_layernorm.weight", HF_ATTENTION + "kv_a_layernorm.weight"),
)

POST_NORMS: tuple[Weight, ...] = (
    plain(LAYER + "self_attn_bda.norm.weight", HF_LAYER + "post_self_attn_layernorm.weight"),
    plain(LAYER + "mlp_bda.norm.weight", HF_LAYER + "post_mlp_layernorm.weight"),
)


def router(block: str = "mlp.") -> tuple[Weight, ...]:
    """The router of a mixture of experts, with the selection bias where the model has one."""
    return (
        plain(LAYER + "mlp.router.weight", f"{HF_LAYER}{block}gate.weight"),
        plain(LAYER + "mlp.router.expert_bias", f"{HF_LAYER}{block}gate.e_score_correction_bias"),
    )


def experts(block: str = "mlp.", **names: str) -> tuple[Weight, ...]:
    """Routed experts, one MLP each, as checkpoints store them (transformers fuses them in memory only)."""
    return gated_mlp(EXPERT, f"{HF_LAYER}{block}experts.{{expert}}.", **names)


def shared_experts(name: str) -> tuple[Weight, ...]:
    """The MLP that processes every token in addition to its routed experts."""
    return gated_mlp(LAYER + "mlp.shared_experts.", f"{HF_LAYER}mlp.{name}.")


HF_LINEAR = HF_LAYER + "linear_attn."


def _linear_attention(*names: str) -> tuple[Weight, ...]:
    """The tensors of a gated delta net with the same layout on both sides; its convolution."""
    own = ("A_log", "dt_bias", "norm.weight", "out_proj.weight")
    return (
        *(plain(f"{ATTENTION}{name}", f"{HF_LINEAR}{name}") for name in (*names, *own)),
        Weight(parameter=ATTENTION + "conv_weight", rule="channels", names=(HF_LINEAR + "conv1d.weight",)),
    )


LINEAR_ATTENTION = _linear_attention("in_proj_qkvz.weight", "in_proj_ba.weight")
"""A gated delta net, which stands where other layers have their attention."""
SEPARATE_LINEAR_ATTENTION = (
    *_linear_attention("in_proj_z.weight", "in_proj_b.weight", "in_proj_a.weight"),
    Weight(parameter=ATTENTION + "in_proj_qkv.weight", rule="channels", names=(HF_LINEAR + "in_proj_qkv.weight",)),
)
"""One whose projections are not joined by key head."""

PREDICTION: tuple[Weight, ...] = (
    plain(LAYER + "enorm.weight", HF_LAYER + "enorm.weight"),
    plain(LAYER + "hnorm.weight", HF_LAYER + "hnorm.weight"),
    plain(LAYER + "eh_proj.weight", HF_LAYER + "eh_proj.weight"),
    plain(LAYER + "final_layernorm.weight", HF_LAYER + "shared_head.norm.weight"),
)
"""The parts of a multi-token-prediction layer besides those of any other layer, under its number in a checkpoint.

The projection sees the normalized embedding of a later token first and the normalized hidden state second, as published
weights do (the report on DeepSeek-V3 writes them in the other order).
"""

_LLAMA4_BLOCK = "feed_forward."
_LLAMA4 = (
    *gated_mlp(LAYER + "mlp.", HF_LAYER + _LLAMA4_BLOCK),
    plain(LAYER + "mlp.router.weight", f"{HF_LAYER}{_LLAMA4_BLOCK}router.weight"),
    *experts(_LLAMA4_BLOCK),
    *gated_mlp(LAYER + "mlp.shared_experts.", f"{HF_LAYER}{_LLAMA4_BLOCK}shared_expert."),
)

_GEMMA4_MLP = LAYER + "mlp."
_GEMMA4 = (
    plain(LAYER + "self_attn_bda.norm.weight", HF_LAYER + "post_attention_layernorm.weight"),
    plain(LAYER + "pre_mlp_layernorm.weight", HF_LAYER + "pre_feedforward_layernorm.weight"),
    plain(LAYER + "mlp_bda.norm.weight", HF_LAYER + "post_feedforward_layernorm.weight"),
    plain(LAYER + "mlp_bda.layer_scale", HF_LAYER + "layer_scalar"),
    plain(_GEMMA4_MLP + "router.weight", HF_LAYER + "router.proj.weight"),
    plain(_GEMMA4_MLP + "router.scale", HF_LAYER + "router.scale"),
    plain(_GEMMA4_MLP + "router.per_expert_scale", HF_LAYER + "router.per_expert_scale"),
    plain(_GEMMA4_MLP + "input_norm.weight", HF_LAYER + "pre_feedforward_layernorm_2.weight"),
    plain(_GEMMA4_MLP + "output_norm.weight", HF_LAYER + "post_feedforward_layernorm_2.weight"),
    plain(_GEMMA4_MLP + "shared_experts.input_norm.weight", HF_LAYER + "pre_feedforward_layernorm.weight"),
    plain(_GEMMA4_MLP + "shared_experts.output_norm.weight", HF_LAYER + "post_feedforward_layernorm_1.weight"),
    *gated_mlp(_GEMMA4_MLP + "shared_experts.", HF_LAYER + "mlp."),
    *experts(""),
)

_BIASED_ROUTER = tuple(
    plain(f"{LAYER}mlp.router.{kind}", f"{HF_LAYER}mlp.router.{kind}") for kind in ("weight", "bias")
)

_GPT_OSS = (SINKS, *_BIASED_ROUTER, *experts())

_FUSED_QKV = Weight(
    parameter=ATTENTION + "linear_qkv.weight", rule="fused_qkv", names=(HF_ATTENTION + "qkv_proj.weight",)
)
_FUSED_GATE = Weight(
    parameter=LAYER + "mlp.linear_fc1.weight", rule="fused_gated", names=(HF_LAYER + "mlp.gate_up_proj.weight",)
)
_QWEN2_MOE = (
    *router(),
    *experts(),
    *shared_experts("shared_expert"),
    plain(LAYER + "mlp.shared_experts.gate_weight", HF_LAYER + "mlp.shared_expert_gate.weight"),
)
_GATED_ATTENTION = tuple(_query_key_value(kind, "gated_qkv") for kind in ("weight", "bias"))
_QWEN3_5 = (*_GATED_ATTENTION, *SEPARATE_LINEAR_ATTENTION, *PREDICTION)
_MIXTRAL_BLOCK = "block_sparse_moe."
_MIXTRAL = (*router(_MIXTRAL_BLOCK), *experts(_MIXTRAL_BLOCK, gate="w1", up="w3", down="w2"))
_ROUTED_AND_SHARED = (*router(), *experts(), *shared_experts("shared_experts"))
_PREDICTED = (*_ROUTED_AND_SHARED, *PREDICTION)
_LATENT_AND_EXPERTS = (*LATENT_ATTENTION, *_ROUTED_AND_SHARED)
_LATENT_PREDICTED = (*_LATENT_AND_EXPERTS, *PREDICTION)

TABLES: Mapping[str, tuple[Weight, ...]] = {
    "llama": (),
    "internlm3": (),
    "smollm3": (),
    "mistral": (),
    "seed_oss": (),
    "ernie4_5": (),
    "qwen2": (),
    "qwen3": (),
    "qwen2_moe": _QWEN2_MOE,
    "qwen3_moe": (*router(), *experts()),
    "qwen3_next": (*_QWEN2_MOE, *_GATED_ATTENTION, *LINEAR_ATTENTION, *PREDICTION),
    "mixtral": _MIXTRAL,
    "deepseek_v2": _LATENT_AND_EXPERTS,
    "deepseek_v3": _LATENT_PREDICTED,
    "kimi_k2": _LATENT_PREDICTED,
    "glm": (_FUSED_GATE,),
    **dict.fromkeys(("glm4", "glm4v"), (_FUSED_GATE, *POST_NORMS)),
    **dict.fromkeys(("glm4_moe", "glm4v_moe"), _PREDICTED),
    "glm4_moe_lite": _LATENT_PREDICTED,
    "dots1": _ROUTED_AND_SHARED,
    "phi3": (_FUSED_QKV, _FUSED_GATE),
    **dict.fromkeys(("llama4", "llama4_text"), _LLAMA4),
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified_text"), _GEMMA4),
    "gpt_oss": _GPT_OSS,
    "qwen2_vl": (),
    "qwen2_5_vl": (),
    "qwen3_vl": (),
    "qwen3_vl_moe": (*router(), *experts()),
    "internvl": (),
    "internvl_qwen3": (),
    "internvl_qwen3_moe": (*router(), *experts()),
    "internvl_gpt_oss": _GPT_OSS,
    **dict.fromkeys(("qwen3_5", "qwen3_5_text"), _QWEN3_5),
    **dict.fromkeys(("qwen3_5_moe", "qwen3_5_moe_text"), (*_QWEN2_MOE, *_QWEN3_5)),
}
"""Keys are model_type: rows in addition to, or instead of, those of DECODER."""

IGNORED = (r".*rotary_emb\.inv_freq",)
"""Regular expressions of checkpoint names that no model uses."""


_BESIDE_DECODER = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text")
"""Families whose multi-token-prediction layer is stored beside the decoder, as `mtp.`, with names of its own."""
_PREDICTION_BESIDE: Mapping[str, str] = {
    "enorm.weight": "mtp.pre_fc_norm_embedding.weight",
    "hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
    "eh_proj.weight": "mtp.fc.weight",
    "shared_head.norm.weight": "mtp.norm.weight",
}
"""The parts of such a layer besides those of any other layer."""


def in_table(name: str) -> str:
    """The name of a stored tensor in weight tables."""
    for stored, own in (*NESTED, *OF_PARTS, *BESIDE):
        if name.startswith(stored):
            return own + name.removeprefix(stored)
    return name


def outside(name: str, names: Names) -> str:
    """The name that a tensor of a weight table has elsewhere: in files, or in transformers' object."""
    for stored, own in names:
        if name.startswith(own):
            return stored + name.removeprefix(own)
    return name


def untrained_predictions(model: Model) -> tuple[str, ...]:
    """Patterns of the names of multi-token-prediction layers that are not part of the trained model.

    These are not trained: loading skips them, and an export copies them from the source.
    """
    if model.family in _BESIDE_DECODER:
        return () if model.trained_predictions else (r"mtp\..*",)
    numbers = range(len(model.all_layers), model.num_layers + model.prediction_layers)
    return tuple(rf"model\.layers\.{number}\..*" for number in numbers)


def names_of(row: Weight, model: Model, **numbers: int | str | None) -> tuple[str, ...]:
    """The tensors of a row in one layer. numbers: those of layer and expert, of rows that have them."""
    names = tuple(name.format(**numbers) for name in row.names)
    layer = int(numbers.get("layer") or 0)
    if model.family not in _BESIDE_DECODER or not model.predicts_further(layer):
        return names
    parts = [name.removeprefix(HF_LAYER.format(layer=layer)) for name in names]
    within = f"mtp.layers.{layer - model.num_layers}."
    return tuple(_PREDICTION_BESIDE.get(part, within + part) for part in parts)


def at(row: Weight, model: Model, layer: int) -> Weight:
    """The row as it is in this layer: where keys are values too, there is no projection of values."""
    if row.rule == "qkv" and model.at(layer).keys_as_values:
        return replace(row, rule="qk", names=row.names[:2])
    return row


def copies(model: Model) -> Mapping[str, tuple[str, ...]]:
    """The copies of the embedding and the output layer that trained multi-token-prediction layers have in a checkpoint.

    Keys are the tensors that they are copies of.
    """
    if model.family in _BESIDE_DECODER:
        return {}
    layers = [HF_LAYER.format(layer=layer) for layer in model.all_layers[model.num_layers :]]
    output = "model.embed_tokens.weight" if model.tied else "lm_head.weight"
    found: dict[str, tuple[str, ...]] = {}
    for name, kind in (("model.embed_tokens.weight", "embed_tokens.weight"), (output, "shared_head.head.weight")):
        found[name] = (*found.get(name, ()), *(layer + kind for layer in layers))
    return found


def table(model_type: str, *, has_scores: bool = False) -> dict[str, Weight]:
    """All rows of a family by megatron-core's name; its own rows override shared ones.

    has_scores: the model ends in a score layer instead of the output layer.
    """
    head = (SCORES,) if has_scores else ()
    return {row.parameter: row for row in (*DECODER, *TABLES[model_type], *head)}
