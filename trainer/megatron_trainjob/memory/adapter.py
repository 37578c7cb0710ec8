"""Parameters that LoRA adds to one layer.

An adapter of rank r on a matrix [out, in] has r * (in + out) parameters (Hu et al. 2021). The matrices are those of
Megatron-Core: queries, keys and values are fused, as are gate and up projection.
"""

from __future__ import annotations

from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.model import LayerParameters, Model


def adapter_parameters(args: TrainArgs, shape: Model, layer: int) -> LayerParameters:
    """The adapters of one layer. All count as sharded over tensor ranks although one matrix of each is replicated.

    target_regex may choose any subset; it is counted as all linear layers, an upper bound.
    """
    dense = _linear_matrices(shape) if shape.is_linear(layer) else _attention_matrices(shape.at(layer))
    if shape.predicts_further(layer):
        dense["eh_proj"] = (2 * shape.hidden_size, shape.hidden_size)
    experts: dict[str, tuple[int, int]] = {}
    if shape.has_experts(layer):
        experts = _feed_forward_matrices(shape.hidden_size, shape.expert_width)
        dense |= {
            f"shared_experts.{name}": size
            for name, size in _feed_forward_matrices(shape.hidden_size, shape.shared_expert_width).items()
            if shape.shared_expert_width
        }
    else:
        dense |= _feed_forward_matrices(shape.hidden_size, shape.ffn_hidden_size)
    return LayerParameters(
        tensor=args.lora_rank * sum(sum(size) for name, size in dense.items() if _is_target(args, name)),
        expert=args.lora_rank
        * shape.num_experts
        * sum(sum(size) for name, size in experts.items() if _is_target(args, name)),
        whole=0,
    )


def _is_target(args: TrainArgs, name: str) -> bool:
    if args.target_regex or "all-linear" in args.target_modules:
        return True
    return any(name.endswith(target) for target in args.target_modules)


def _attention_matrices(shape: Model) -> dict[str, tuple[int, int]]:
    hidden, heads = shape.hidden_size, shape.num_heads
    output = (heads * shape.v_head_size, hidden)
    if shape.kv_lora_rank == 0:
        return {"linear_qkv": (hidden, shape.query_rows + shape.key_value_rows), "linear_proj": output}
    queries = heads * shape.qk_head_size
    up = heads * (shape.qk_head_size - shape.qk_rope_size + shape.v_head_size)
    matrices = {
        "linear_kv_down_proj": (hidden, shape.kv_lora_rank + shape.qk_rope_size),
        "linear_kv_up_proj": (shape.kv_lora_rank, up),
        "linear_proj": output,
    }
    if shape.q_lora_rank == 0:
        return {"linear_q_proj": (hidden, queries), **matrices}
    return {
        "linear_q_down_proj": (hidden, shape.q_lora_rank),
        "linear_q_up_proj": (shape.q_lora_rank, queries),
        **matrices,
    }


def _linear_matrices(shape: Model) -> dict[str, tuple[int, int]]:
    hidden, sizes = shape.hidden_size, shape.linear
    assert sizes is not None  # ensured by is_linear
    return {
        **{name: (hidden, rows) for name, rows in sizes.projections.items()},
        "out_proj": (sizes.value_width, hidden),
    }


def _feed_forward_matrices(hidden: int, width: int) -> dict[str, tuple[int, int]]:
    return {"linear_fc1": (hidden, 2 * width), "linear_fc2": (width, hidden)}
