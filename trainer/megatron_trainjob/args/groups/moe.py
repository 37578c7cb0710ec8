"""Experts: their shape, routing, balancing and parallelism."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Experts: their shape, routing, balancing and parallelism."""

    num_experts: int | None = arg(
        None,
        "Routed experts per layer.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=(
            "num_experts",
            "n_routed_experts",
            "num_local_experts",
        ),
        status="works",
    )
    moe_layer_freq: str | None = arg(
        None,
        'Which layers have experts: a period such as "2", or a list such as "[0]*1+[1]*27".',
        applies_to=EVERY_TASK,
        hf_config_keys=("decoder_sparse_step", "mlp_only_layers", "first_k_dense_replace", "mlp_layer_types"),
        status="works",
    )
    moe_ffn_hidden_size: int | None = arg(
        None,
        "Feed-forward width of one expert.",
        ge=1,
        aliases=("moe_ffn_hidden_siz",),
        applies_to=EVERY_TASK,
        hf_config_keys=("moe_intermediate_size",),
        status="works",
    )
    moe_shared_expert_intermediate_size: int | None = arg(
        None,
        "Feed-forward width of all shared experts together; 0: none.",
        ge=0,
        applies_to=EVERY_TASK,
        hf_config_keys=(
            "shared_expert_intermediate_size",
            "n_shared_experts",
        ),
        status="works",
    )
    moe_router_topk: int | None = arg(
        None,
        "Experts per token.",
        ge=1,
        applies_to=EVERY_TASK,
        hf_config_keys=("num_experts_per_tok",),
        status="works",
    )
    moe_router_pre_softmax: bool | None = arg(
        None,
        "Apply the softmax before selecting experts instead of after it.",
        applies_to=EVERY_TASK,
        hf_config_keys=("norm_topk_prob",),
        status="works",
    )
    moe_router_dtype: Literal["none", "fp32", "fp64"] = arg(
        "fp32",
        'Type in which routing is computed; "none": that of the hidden states.',
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_router_score_function: Literal["softmax", "sigmoid"] | None = arg(
        None,
        "Function that turns router logits into scores; unset: the model's.",
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_router_bias_update_rate: float = arg(
        0.001,
        "Update rate of the expert bias, which rises for idle and falls for busy experts.",
        ge=0,
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_router_enable_expert_bias: bool | None = arg(
        None,
        "Balance experts by a per-expert bias instead of a loss; unset: the model's.",
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_router_topk_scaling_factor: float | None = arg(
        None,
        "Scaling factor of the routing weights.",
        gt=0,
        applies_to=EVERY_TASK,
        hf_config_keys=("routed_scaling_factor",),
        status="works",
    )
    moe_router_load_balancing_type: Literal["aux_loss", "seq_aux_loss", "sinkhorn", "none"] | None = arg(
        None,
        "How the load of experts is balanced; unset: as the family is.",
        applies_to=EVERY_TASK,
        status="works",
    )
    expert_model_parallel_size: int = arg(
        1,
        "Ranks that the experts are spread over.",
        unit="ranks",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    expert_tensor_parallel_size: int | None = arg(
        None,
        "Ranks that each expert is sharded over; unset: tensor_model_parallel_size.",
        unit="ranks",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex", "alltoall_seq"] = arg(
        "alltoall",
        "How tokens are dispatched to their experts.",
        applies_to=EVERY_TASK,
        status="works",
        warned_choices={
            "alltoall_seq": "is alltoall here, with the same result: Megatron-Core removed the other one",
            "flex": "is alltoall here, with the same result: the trainer image does not contain DeepEP's kernels",
        },
    )
    moe_enable_deepep: bool = arg(
        False,
        "DeepEP kernels for the flex dispatcher.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="the trainer image does not contain these kernels; alltoall dispatches the tokens, with the same result",
    )
    moe_grouped_gemm: bool | None = arg(
        None,
        "Run a rank's experts as one grouped GEMM; unset: in bfloat16 where TransformerEngine runs.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works on GPU only",
        fulfilled=(False,),
    )
    moe_permute_fusion: bool | None = arg(
        None,
        "Fused kernel for sorting tokens by expert; unset: where TransformerEngine runs.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works on GPU only",
        fulfilled=(False,),
    )
    moe_aux_loss_coeff: float = arg(
        0.0,
        "Weight of the load-balancing loss; 0: off.",
        ge=0,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_z_loss_coeff: float | None = arg(
        None,
        "Weight of the loss on large router logits; unset: off.",
        ge=0,
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_expert_capacity_factor: float | None = arg(
        None,
        "Capacity of an expert, relative to an even share of the tokens; unset: no token is dropped.",
        gt=0,
        applies_to=EVERY_TASK,
        status="works",
    )
    moe_shared_expert_overlap: bool = arg(
        False,
        "Compute shared experts while tokens are dispatched.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works on GPU only",
    )
    moe_token_drop_policy: Literal["probs", "position"] = arg(
        "probs",
        "Which tokens are dropped beyond an expert's capacity.",
        applies_to=EVERY_TASK,
        status="works",
    )
