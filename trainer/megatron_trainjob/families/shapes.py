"""The shapes of a checkpoint's tensors from config.json alone, and messages about mismatches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from megatron_trainjob.families.model import LinearAttention, Model
from megatron_trainjob.families.tensors import EMBEDDING, OUTPUT, described, located
from megatron_trainjob.families.vision import PREFIX, is_tower
from megatron_trainjob.families.weight import Weight
from megatron_trainjob.families.weights import ATTENTION, LAYER, SCORES

Shape = tuple[int, ...]

OTHER = "tensors differ from config.json and the arguments"
VOCABULARY = (EMBEDDING, OUTPUT)
"""Tensors with a row for each token, in every family."""
OTHER_OUTPUT = (
    f"{VOCABULARY[1]} is another than {VOCABULARY[0]}, although config.json ties them, and transformers would not tie "
    "them either: set tie_word_embeddings to false there, or take the tensor out"
)

_NORMS = (
    *("input_layernorm.weight", "pre_mlp_layernorm.weight", "self_attn_bda.norm.weight", "mlp_bda.norm.weight"),
    *("enorm.weight", "hnorm.weight", "final_layernorm.weight"),
    *("mlp.input_norm.weight", "mlp.output_norm.weight"),
    *("mlp.shared_experts.input_norm.weight", "mlp.shared_experts.output_norm.weight", "mlp.router.scale"),
)


def shapes(model: Model, *, has_scores: bool = False) -> dict[str, Shape]:
    """The shape of every tensor that a model is read from, except its head if it has_scores."""
    return {
        name: shape
        for row, names, here in located(model, has_scores=has_scores)
        if row.names != SCORES.names
        for name, shape in zip(names, _row(row, here), strict=True)
    }


def problem(name: str, found: Sequence[int], wanted: Mapping[str, Shape]) -> str | None:
    """The problem with the shape of a stored tensor; empty if the expected shape is unknown."""
    expected = wanted.get(name)
    if expected is None or tuple(found) == expected:
        return None
    if name in VOCABULARY and tuple(found[1:]) == expected[1:]:
        return f"{name} has {found[0]} rows, vocab_size says {expected[0]}"
    return f"{name} is {list(found)} and not {list(expected)}"


def summaries(problems: Iterable[str]) -> list[str]:
    """The message about all of them, in a list; empty if there is no problem."""
    found = sorted(problems)
    return [described(found, OTHER)] if found else []


def _row(row: Weight, model: Model) -> Sequence[Shape]:
    """The shapes of the tensors of one row, in order."""
    part = row.parameter.removeprefix(LAYER)
    if model.vision and is_tower(row.parameter):
        return [model.vision.tensors[row.parameter.removeprefix(PREFIX)]]
    if row.parameter in ("embedding.word_embeddings.weight", "output_layer.weight"):
        return [(model.vocab_size, model.hidden_size)]
    if part == "mlp_bda.layer_scale":
        return [(1,)]
    if part == "eh_proj.weight":
        return [(model.hidden_size, 2 * model.hidden_size)]
    if row.parameter == "decoder.final_layernorm.weight" or part in _NORMS:
        return [(model.hidden_size,)]
    if row.parameter.startswith(ATTENTION):
        return _attention(row.parameter.removeprefix(ATTENTION), row, model)
    return _feed_forward(part.removeprefix("mlp."), row, model)


def _attention(part: str, row: Weight, model: Model) -> Sequence[Shape]:
    hidden, heads, size = model.hidden_size, model.num_heads, model.qk_head_size
    if part.startswith("linear_qkv."):
        rows = [model.query_rows, model.num_kv_heads * size, model.num_kv_heads * model.v_head_size]
        rows = [sum(rows)] if row.rule == "fused_qkv" else rows[: len(row.names)]
        return [(number,) if part.endswith("bias") else (number, hidden) for number in rows]
    if model.linear and part in (own := _linear(model.linear, hidden)):
        return [own[part]]
    rope, rank = model.qk_rope_size, model.kv_lora_rank
    return [
        {
            "linear_proj.weight": (hidden, heads * model.v_head_size),
            "linear_proj.bias": (hidden,),
            "core_attention.softmax_offset": (heads,),
            "q_layernorm.weight": (model.q_lora_rank if model.has_latent_attention else size,),
            "k_layernorm.weight": (size,),
            "linear_q_proj.weight": (heads * size, hidden),
            "linear_q_down_proj.weight": (model.q_lora_rank, hidden),
            "linear_q_up_proj.weight": (heads * size, model.q_lora_rank),
            "linear_kv_down_proj.weight": (rank + rope, hidden),
            "linear_kv_up_proj.weight": (heads * (size - rope + model.v_head_size), rank),
            "kv_layernorm.weight": (rank,),
        }[part]
    ]


def _linear(sizes: LinearAttention, hidden: int) -> dict[str, Shape]:
    """The shapes of a gated delta net's tensors."""
    heads, width = sizes.value_heads, sizes.value_width
    return {
        **{f"{name}.weight": (rows, hidden) for name, rows in sizes.projections.items()},
        "conv_weight": (sizes.channels, 1, sizes.kernel),
        "A_log": (heads,),
        "dt_bias": (heads,),
        "norm.weight": (sizes.value_size,),
        "out_proj.weight": (hidden, width),
    }


def _feed_forward(part: str, row: Weight, model: Model) -> Sequence[Shape]:
    hidden = model.hidden_size
    special: dict[str, Shape] = {
        "router.weight": (model.num_experts, hidden),
        "router.bias": (model.num_experts,),
        "router.per_expert_scale": (model.num_experts,),
        "router.expert_bias": (model.num_experts,),
        "shared_experts.gate_weight": (1, hidden),
    }
    if part in special:
        return [special[part]]
    widths = {"experts": model.expert_width, "shared_experts": model.shared_expert_width}
    width = widths.get(part.partition(".")[0], model.ffn_hidden_size)
    if "linear_fc2" in part:
        return [(hidden,) if part.endswith("bias") else (hidden, width)]
    rows = 2 * width if row.rule == "fused_gated" else width
    return [(rows,) if part.endswith("bias") else (rows, hidden)] * len(row.names)
