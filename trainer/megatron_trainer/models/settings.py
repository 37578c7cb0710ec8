"""megatron-core's configuration of a model: what the model is, how it is split, and how it is computed."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.enums import AttnBackend

from megatron_trainer.backend import Backend
from megatron_trainer.models import rope
from megatron_trainer.models.activation import ACTIVATIONS, SWIGLU
from megatron_trainer.models.block import Implementation
from megatron_trainer.models.extra import configuration
from megatron_trainer.models.family import HfConfig
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.parallel import expert_tensor_parallel_size
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs

_FUSED_ATTENTION = ("flash", "fused", "auto")
"""Values of attention_backend whose kernels never hold the whole matrix of scores."""


def implementation(args: TrainArgs, backend: Backend) -> Implementation:
    """The layer implementation: TransformerEngine where it is wanted and this machine runs it."""
    return "local" if args.transformer_impl == "local" else backend.layer_impl


def draws_on_host(args: TrainArgs, backend: Backend) -> bool:
    """Whether random weights are drawn by convert/draw.py, the same in every layout, and not by megatron-core."""
    return args.use_cpu_initialization or backend.device.type == "cpu"


def transformer_config(
    spec: ModelSpec, args: TrainArgs, backend: Backend, *, virtual_stages: int | None = None
) -> TransformerConfig:
    """The configuration of this rank's part of the model. Later entries win over earlier ones."""
    kind = MLATransformerConfig if spec.family.latent_attention else TransformerConfig
    fields = {
        **_decoder(spec.hf_config),
        **spec.family.settings(spec.hf_config),
        **_layout(spec, args, virtual_stages),
        **_precision(spec, args),
        **_computation(args, backend),
        **_recomputation(spec, args, backend),
        **_fusions(spec, args, backend),
        **_experts(spec, args, backend),
    }
    if spec.family.latent_attention:
        fields.pop("kv_channels")
    return configuration(kind, fields, args.extra_megatron_kwargs)


def _decoder(config: HfConfig) -> dict[str, Any]:
    heads = config.num_attention_heads
    return {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": heads,
        "num_query_groups": config.num_key_value_heads or heads,
        "kv_channels": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "layernorm_epsilon": config.rms_norm_eps,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": ACTIVATIONS[config.hidden_act],
        "add_bias_linear": False,
        "attention_dropout": float(getattr(config, "attention_dropout", None) or 0.0),
        "init_method_std": config.initializer_range,
        **_window(config),
    }


def _window(config: HfConfig) -> dict[str, Any]:
    """Sliding-window attention: a token sees itself and the `sliding_window - 1` tokens before it."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return {}
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return {
        "window_size": (window - 1, 0),
        "window_attn_skip_freq": [int(kind == "sliding_attention") for kind in kinds],
    }


def _layout(spec: ModelSpec, args: TrainArgs, virtual_stages: int | None) -> dict[str, Any]:
    has_stages = args.pipeline_model_parallel_size > 1
    return {
        "tensor_model_parallel_size": args.tensor_model_parallel_size,
        "sequence_parallel": args.sequence_parallel and args.tensor_model_parallel_size > 1,
        "pipeline_model_parallel_size": args.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual_stages,
        "overlap_p2p_comm": virtual_stages is not None,
        "batch_p2p_comm": virtual_stages is None,
        # With one stage megatron-core would build that many layers and no more.
        "num_layers_in_first_pipeline_stage": args.decoder_first_pipeline_num_layers if has_stages else None,
        "num_layers_in_last_pipeline_stage": args.decoder_last_pipeline_num_layers if has_stages else None,
        "pipeline_dtype": spec.dtype,
        # Rows differ in length from micro-batch to micro-batch, so stages tell each other the shape.
        "variable_seq_lengths": has_stages,
        "context_parallel_size": args.context_parallel_size,
        "expert_model_parallel_size": args.expert_model_parallel_size,
        "expert_tensor_parallel_size": expert_tensor_parallel_size(args),
        "calculate_per_token_loss": args.calculate_per_token_loss,
    }


def _precision(spec: ModelSpec, args: TrainArgs) -> dict[str, Any]:
    return {
        "params_dtype": spec.dtype,
        "fp16": spec.dtype == torch.float16,
        "bf16": spec.dtype == torch.bfloat16,
        "fp8": args.fp8_format,
        "fp8_recipe": args.fp8_recipe,
        "fp8_amax_history_len": args.fp8_amax_history_len,
        "fp8_amax_compute_algo": args.fp8_amax_compute_algo,
    }


def _computation(args: TrainArgs, backend: Backend) -> dict[str, Any]:
    return {
        "hidden_dropout": args.hidden_dropout or 0.0,
        "transformer_impl": implementation(args, backend),
        "attention_backend": _attention(args, backend),
        "perform_initialization": not args.no_initialization and not draws_on_host(args, backend),
        "use_cpu_initialization": draws_on_host(args, backend),
        "deterministic_mode": args.deterministic_mode,
        "persist_layer_norm": False,
    }


def _recomputation(spec: ModelSpec, args: TrainArgs, backend: Backend) -> dict[str, Any]:
    """megatron-core refuses details of another granularity, and modules that the model lacks.

    A fused attention kernel keeps no scores, so that recomputing core_attn would free nothing.
    """
    granularity = args.recompute_granularity
    is_fused = implementation(args, backend) == "transformer_engine" and args.attention_backend in _FUSED_ATTENTION
    needless = {"core_attn"} if is_fused else set()
    needless |= set() if spec.family.latent_attention else {"mla_up_proj"}
    modules = [module for module in args.recompute_modules if module not in needless]
    if granularity == "none" or (granularity == "selective" and not modules):
        return {"recompute_granularity": None}
    return {
        "recompute_granularity": granularity,
        "recompute_method": args.recompute_method if granularity == "full" else None,
        "recompute_num_layers": args.recompute_num_layers if granularity == "full" else None,
        "recompute_modules": modules if granularity == "selective" else None,
    }


def _attention(args: TrainArgs, backend: Backend) -> AttnBackend:
    """The attention kernels as asked; the default, flash, becomes TransformerEngine's own choice without flash-attn."""
    if args.attention_backend == "flash" and "flash_attention" not in backend.fused_kernels():
        return AttnBackend.auto
    return AttnBackend[args.attention_backend]


def _fusions(spec: ModelSpec, args: TrainArgs, backend: Backend) -> dict[str, bool]:
    """Fused kernels that run here, are wanted, and compute the same."""
    here = backend.fused_kernels()
    is_swiglu = spec.hf_config.hidden_act in SWIGLU
    wanted = {
        "bias_activation_fusion": "bias_swiglu" in here and not args.no_bias_swiglu_fusion and is_swiglu,
        "bias_dropout_fusion": "bias_dropout" in here and not args.no_bias_dropout_fusion,
        "apply_rope_fusion": "rope" in here and not args.no_rope_fusion and _rotates_plainly(spec),
    }
    # Our attention and TransformerEngine's have no use for the fused softmax. Sums of weight gradients are fused
    # layer by layer (optim.wrap): this setting covers megatron-core's own linears too, whose fusion needs Apex.
    return {**wanted, "masked_softmax_fusion": False, "gradient_accumulation_fusion": False}


def _rotates_plainly(spec: ModelSpec) -> bool:
    """The fused rotation of packed rows drops the factor of YaRN without a word, and latent attention has its own."""
    if spec.family.latent_attention:
        return False
    _, factor = rope.frequencies(spec.hf_config)
    return factor == 1.0


def _experts(spec: ModelSpec, args: TrainArgs, backend: Backend) -> dict[str, Any]:
    model = spec.family.settings(spec.hf_config)
    # Dense models too: megatron-core checks the dispatcher where rows vary in length; its default fails there.
    if not model.get("num_moe_experts"):
        return {"moe_token_dispatcher_type": "alltoall"}
    has_bias = bool(model.get("moe_router_enable_expert_bias"))
    has_shared = bool(model.get("moe_shared_expert_intermediate_size"))
    balancing = args.moe_router_load_balancing_type or model.get("moe_router_load_balancing_type", "aux_loss")
    return {
        "moe_router_load_balancing_type": balancing,
        "moe_router_dtype": None if args.moe_router_dtype == "none" else args.moe_router_dtype,
        **({"moe_router_bias_update_rate": args.moe_router_bias_update_rate} if has_bias else {}),
        "moe_aux_loss_coeff": args.moe_aux_loss_coeff if "aux_loss" in balancing else 0.0,
        "moe_z_loss_coeff": args.moe_z_loss_coeff,
        "moe_token_dispatcher_type": derive.token_dispatcher(args),
        "moe_grouped_gemm": _groups_experts(spec, args) and implementation(args, backend) != "local",
        "moe_permute_fusion": args.moe_permute_fusion is not False and "moe_permute" in backend.fused_kernels(),
        "moe_expert_capacity_factor": args.moe_expert_capacity_factor,
        "moe_token_drop_policy": args.moe_token_drop_policy,
        "moe_shared_expert_overlap": args.moe_shared_expert_overlap and has_shared,
    }


def _groups_experts(spec: ModelSpec, args: TrainArgs) -> bool:
    """As asked; else in bfloat16, for which Megatron-Core made them."""
    return spec.dtype == torch.bfloat16 if args.moe_grouped_gemm is None else args.moe_grouped_gemm
