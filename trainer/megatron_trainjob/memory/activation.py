"""Bytes of activations that one layer stores for its backward pass, on one rank.

Follows Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", section 4), with
their tensors counted one by one for today's layers: RMSNorm, grouped queries, gated feed-forward, no dropout masks
unless there is dropout, and an attention kernel that stores no score matrix.

Symbols: T tokens of the micro-batch on this rank, e bytes of an element, tp tensor ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.model import LinearAttention, Model

FLOAT32_BYTES = 4
CLAMPED_GATE = 5
"""Tensors as wide as an expert that a clamped gate stores besides those of a fused one: gate clamped, its sigmoid, the
gate times that, the other factor, and the product before probabilities are applied.
"""
DELTA_CHUNK = 64
"""Tokens that a gated delta net computes at once."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One micro-batch on a rank: its tokens, the longest sequence in it, and bytes of an element.

    `input_bytes` are those of an element that a linear keeps of its input for its weight's gradient: 1 where it
    multiplies in FP8 and trains its weight, because TransformerEngine then keeps the 8-bit copy alone.
    """

    tokens: int
    longest: int
    element_bytes: int
    input_bytes: int


def layer_input_bytes(args: TrainArgs, shape: Model, row: Row) -> float:
    """The hidden states between two layers, T * h * e; sequence parallelism splits them over tensor ranks."""
    split = args.tensor_model_parallel_size if args.sequence_parallel else 1
    return row.tokens * shape.hidden_size * row.element_bytes / split


def layer_bytes(args: TrainArgs, shape: Model, row: Row, layer: int) -> float:
    """Everything that a layer stores with selective recomputation, or without recomputation.

    Its input and the input of the second norm (2 * T * h * e), the outputs of both norms (2 * T * h * e), the
    attention and the feed-forward part.
    """
    hidden = layer_input_bytes(args, shape, row)
    norm_outputs = _kept_norms(args, shape, layer) * hidden * row.input_bytes / row.element_bytes
    dropout_masks = 2 * hidden / row.element_bytes if args.hidden_dropout else 0.0
    feed_forward = _expert_bytes(args, shape, row) if shape.has_experts(layer) else _dense_bytes(args, shape, row)
    mixing = _linear_bytes(args, shape.linear, row) if shape.linear and shape.is_linear(layer) else None
    return (
        2 * hidden
        + norm_outputs
        + dropout_masks
        + feed_forward
        + (_attention_bytes(args, shape.at(layer), row) if mixing is None else mixing)
    )


def _kept_norms(args: TrainArgs, shape: Model, layer: int) -> int:
    """Outputs of a layer's two norms that are stored. A norm in one module with TransformerEngine's linear is never
    recomputed: before attention unless that is latent, and before a dense feed-forward part.
    """
    if not _recomputes(args, "layernorm"):
        return 2
    if args.transformer_impl == "local":
        return 0
    return (not shape.kv_lora_rank) + (not shape.has_experts(layer))


def _recomputes(args: TrainArgs, module: str) -> bool:
    return args.recompute_granularity == "selective" and module in args.recompute_modules


def _attention_bytes(args: TrainArgs, shape: Model, row: Row) -> float:
    """Queries, keys, values and the attention output, T * (...) * e / tp, and the scores if the kernel stores them.

    Latent attention also stores its compressed queries and keys, replicated on every tensor rank. Normalized queries
    and keys are stored before the norm too, the output once more in 8 bits for the linear that follows, and a gated
    output before the gate too, with the gate's sigmoid in float32.
    """
    tensor = args.tensor_model_parallel_size
    queries = shape.num_heads * shape.qk_head_size
    kv_heads = shape.num_heads if shape.kv_lora_rank else shape.num_kv_heads
    keys_values = kv_heads * (shape.qk_head_size + shape.v_head_size)
    output = shape.num_heads * shape.v_head_size
    projected = 0 if _recomputes(args, "mla_up_proj") else queries + keys_values
    has_norms = shape.qk_norm or shape.unit_qk_norm
    normalized = queries + kv_heads * shape.qk_head_size if has_norms else 0
    normalized += kv_heads * shape.v_head_size if shape.value_norm else 0
    elements = row.tokens * (projected + normalized + output) / tensor
    latent = row.tokens * (shape.q_lora_rank + shape.kv_lora_rank + shape.qk_rope_size)
    split = elements + (latent if shape.kv_lora_rank else 0)
    copied = row.tokens * output / tensor * row.input_bytes if row.input_bytes < row.element_bytes else 0
    gated = row.tokens * output / tensor * (row.element_bytes + FLOAT32_BYTES) if shape.output_gate else 0
    return split * row.element_bytes + copied + gated + _score_bytes(args, shape, row)


def _linear_bytes(args: TrainArgs, sizes: LinearAttention, row: Row) -> float:
    """A gated delta net, T * (...) / tp: channels before and after the convolution, its activation, gate and output in
    e bytes; in float32 queries and keys of every value head (normalized, decayed, times strength), values, corrections
    and outputs, two systems of a chunk's tokens, and a state per chunk.
    """
    narrow = 3 * sizes.channels + 4 * sizes.value_width
    keys = sizes.value_heads * sizes.key_size
    wide = 8 * keys + 5 * sizes.value_width + sizes.value_heads * 4 * DELTA_CHUNK
    states = sizes.value_heads * sizes.key_size * sizes.value_size / DELTA_CHUNK
    per_token = narrow * row.element_bytes + (wide + states) * FLOAT32_BYTES
    return row.tokens * per_token / args.tensor_model_parallel_size


def _score_bytes(args: TrainArgs, shape: Model, row: Row) -> float:
    """What the attention core stores: the softmax, T * heads * longest * e / tp, or only its float32 log-sums.

    The unfused and local kernels materialize the scores; core_attn recomputation stores neither.
    """
    if _recomputes(args, "core_attn"):
        return 0.0
    heads = shape.num_heads / args.tensor_model_parallel_size
    if args.attention_backend in ("unfused", "local") or args.transformer_impl == "local":
        dropout = 2 if args.attention_dropout else 1
        return row.tokens * heads * row.longest * row.element_bytes * dropout
    return row.tokens * heads * FLOAT32_BYTES


def _dense_bytes(args: TrainArgs, shape: Model, row: Row) -> float:
    """Gate and up projections and their product, 3 * T * f * e / tp."""
    if _recomputes(args, "mlp"):
        return 0.0
    width = shape.ffn_hidden_size / args.tensor_model_parallel_size
    return row.tokens * width * (2 * row.element_bytes + row.input_bytes)


def _expert_bytes(args: TrainArgs, shape: Model, row: Row) -> float:
    """Routed tokens before the experts, T * k * h * e, and inside, 3 * T * k * w * e / etp.

    Assumes that the router distributes tokens evenly over the expert ranks; k experts process each token, whose
    outputs are stored nowhere because probabilities are applied inside. Router logits and probabilities are float32,
    and shared experts count as a dense block.
    """
    if _recomputes(args, "moe"):
        return 0.0
    per_token = shape.experts_per_token
    if args.moe_expert_capacity_factor is not None:
        per_token = int(per_token * args.moe_expert_capacity_factor) or 1
    width = shape.expert_width / derive.expert_tensor_parallel_size(args)
    product = 0 if _recomputes(args, "moe_act") else row.input_bytes
    clamped = CLAMPED_GATE * row.element_bytes if shape.clamped_gate and not _recomputes(args, "moe_act") else 0
    inside = width * (2 * row.element_bytes + product + clamped) * _expert_token_share(args)
    tokens = row.tokens / (args.tensor_model_parallel_size if args.sequence_parallel else 1)
    routed = tokens * per_token * (shape.hidden_size * row.input_bytes + inside)
    router = tokens * 2 * shape.num_experts * FLOAT32_BYTES
    shared = shape.shared_expert_width / args.tensor_model_parallel_size * (2 * row.element_bytes + row.input_bytes)
    return routed + row.tokens * shared + router


def _expert_token_share(args: TrainArgs) -> int:
    """Expert tensor ranks gather each other's tokens, so each computes on all of them."""
    return derive.expert_tensor_parallel_size(args)
