"""megatron-core's configuration of a model: what the model is, how it is split, and how it is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.transformer import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor

from megatron_trainer.backend import Backend
from megatron_trainer.megatron.patches.router import differs
from megatron_trainer.models import rope
from megatron_trainer.models.block import Implementation
from megatron_trainer.models.extra import configuration
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.parallel import expert_tensor_parallel_size
from megatron_trainjob.args import derive
from megatron_trainjob.args.model.apply import SWIGLU
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.model import Model

_FUSED_ATTENTION = ("flash", "fused", "auto")
"""Values of attention_backend whose kernels never materialize the whole matrix of scores."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "swish": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_pytorch_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "relu": torch.nn.functional.relu,
}
"""Activation functions of gated MLPs, by the names of config.json."""


def implementation(args: TrainArgs, backend: Backend) -> Implementation:
    """The layer implementation: TransformerEngine where it is selected and available."""
    return "local" if args.transformer_impl == "local" else backend.layer_impl


def takes_whole_rows(spec: ModelSpec, args: TrainArgs, task: str, backend: Backend) -> bool:
    """Whether samples of one length may be rows of a micro-batch, without bounds for attention, which is faster then.

    Not where a row is more than its tokens: ranks split it, experts are balanced in it, later tokens are predicted.
    """
    model = spec.model
    balancing = args.moe_router_load_balancing_type or (model.router.balancing if model.router else "")
    is_plain = spec.head is None and model.linear is None and model.vision is None and not model.trained_predictions
    is_alone = args.context_parallel_size == 1 and "seq_aux_loss" not in balancing
    is_fused = implementation(args, backend) == "transformer_engine"
    return task in ("pt", "sft") and is_plain and is_alone and is_fused


def initializes_on_host(args: TrainArgs, backend: Backend) -> bool:
    """Whether convert/initialize.py initializes the weights, identically in every layout, instead of megatron-core."""
    return args.use_cpu_initialization or backend.device.type == "cpu"


def transformer_config(
    spec: ModelSpec, args: TrainArgs, backend: Backend, *, virtual_stages: int | None = None
) -> TransformerConfig:
    """The configuration of this rank's part of the model. Later entries win over earlier ones."""
    kind = MLATransformerConfig if spec.model.has_latent_attention else TransformerConfig
    fields = {
        **_decoder(spec.model),
        **_latent_attention(spec),
        **_routing(spec.model),
        **_layout(spec, args, virtual_stages),
        **_precision(spec, args),
        **_computation(spec.model, args, backend),
        **_recomputation(spec, args, backend),
        **_fusions(spec, args, backend),
        **_experts(spec, args, backend),
    }
    return configuration(kind, fields, args.extra_megatron_kwargs)


def _decoder(model: Model) -> dict[str, Any]:
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_heads,
        "num_query_groups": model.num_kv_heads,
        "layernorm_epsilon": model.norm_epsilon,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        **_gate(model),
        # Of experts and routers; attention has its own, whatever this says (block.py).
        "add_bias_linear": model.expert_bias,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
        "qk_l2_norm": model.unit_qk_norm,
        "attention_output_gate": model.output_gate,
        "layernorm_zero_centered_gamma": model.zero_centered_norms,
        # Checkpoints of layers that differ in their tensors number them one by one.
        "hetereogenous_dist_checkpoint": model.linear is not None or model.wide is not None,
        "softmax_scale": model.attention_scale or None,
        "softmax_type": "learnable" if model.sinks else "vanilla",
        "rotary_interleaved": model.rotary.interleaved,
        "attention_dropout": model.attention_dropout,
        "init_method_std": model.init_std,
        "mtp_num_layers": model.trained_predictions or None,
        **({"mrope_section": list(model.vision.sections)} if model.vision and model.vision.sections else {}),
        **_differences_between_layers(model),
        **({} if model.has_latent_attention else {"kv_channels": model.qk_head_size}),
    }


def _gate(model: Model) -> dict[str, Any]:
    """The activation of the gated MLPs and experts."""
    gate = model.clamped_gate
    if gate is None:
        return {"activation_func": ACTIVATIONS[model.activation]}
    sigmoid = partial(_sigmoid_gate, slope=gate.slope)
    return {"activation_func": sigmoid, "activation_func_clamp_value": gate.limit, "glu_linear_offset": 1.0}


def _sigmoid_gate(x: Tensor, *, slope: float) -> Tensor:
    return x * torch.sigmoid(slope * x)


def _differences_between_layers(model: Model) -> dict[str, Any]:
    """Sliding windows, in which a token sees itself and the `window - 1` tokens before it, and layers without RoPE.

    In megatron-core's lists, 1 means a window, or no rotation.
    """
    fields: dict[str, Any] = {}
    if model.window:
        fields["window_size"] = (model.window - 1, 0)
        fields["window_attn_skip_freq"] = [int(flag) for flag in model.window_layers]
    if model.rotary.layers:
        fields["no_rope_freq"] = [int(not flag) for flag in model.rotary.layers]
    return fields


def _latent_attention(spec: ModelSpec) -> dict[str, Any]:
    """Multi-head latent attention. build.py sets its frequencies; the scale of its scores follows from these fields."""
    model = spec.model
    if not model.has_latent_attention:
        return {}
    _, factor = rope.frequencies(spec.model, spec.hf_config)
    scaling = model.rotary.parameters if model.rotary.kind != "default" else {}
    scales = bool(scaling.get("mscale_all_dim"))
    return {
        "q_lora_rank": model.q_lora_rank or None,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_head_dim": model.qk_head_size - model.qk_rope_size,
        "qk_pos_emb_head_dim": model.qk_rope_size,
        "v_head_dim": model.v_head_size,
        "rotary_base": model.rotary.base,
        "rope_type": "rope" if factor == 1.0 else "yarn",
        "rotary_scaling_factor": scaling["factor"] if scales else 1.0,
        "mscale_all_dim": scaling["mscale_all_dim"] if scales else 0.0,
    }


def _routing(model: Model) -> dict[str, Any]:
    """Experts and routing.

    Dividing the chosen probabilities by their sum is the same as a softmax over the chosen logits alone.
    """
    router = model.router
    if router is None:
        return {}
    fields: dict[str, Any] = {
        "num_moe_experts": model.num_experts,
        "moe_router_topk": model.experts_per_token,
        "moe_ffn_hidden_size": model.expert_width,
        "moe_layer_freq": [int(flag) for flag in model.expert_layers],
        "moe_shared_expert_intermediate_size": model.shared_expert_width or None,
        "moe_shared_expert_gate": model.shared_expert_gate,
        "moe_apply_probs_on_input": model.scales_expert_inputs,
        "moe_router_score_function": router.score,
        # For a single expert megatron-core requires this setting, although the family's routing replaces its own.
        "moe_router_pre_softmax": router.score == "sigmoid" or not router.normalized or model.experts_per_token == 1,
        "moe_router_enable_expert_bias": router.has_bias,
    }
    if router.scale != 1.0:
        fields["moe_router_topk_scaling_factor"] = router.scale
    if router.num_groups and not differs(model):
        fields["moe_router_num_groups"] = router.num_groups
        fields["moe_router_group_topk"] = router.num_chosen_groups
    return fields


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
        "pipeline_model_parallel_layout": args.pipeline_model_parallel_layout if has_stages else None,
        "num_layers_in_first_pipeline_stage": args.decoder_first_pipeline_num_layers if has_stages else None,
        "num_layers_in_last_pipeline_stage": args.decoder_last_pipeline_num_layers if has_stages else None,
        "pipeline_dtype": spec.dtype,
        # Rows differ in length from micro-batch to micro-batch, so stages send each other the shape.
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


def _computation(model: Model, args: TrainArgs, backend: Backend) -> dict[str, Any]:
    return {
        "hidden_dropout": _hidden_dropout(model, args),
        "transformer_impl": implementation(args, backend),
        "attention_backend": _attention(model, args, backend),
        "perform_initialization": not args.no_initialization and not initializes_on_host(args, backend),
        "use_cpu_initialization": initializes_on_host(args, backend),
        "deterministic_mode": args.deterministic_mode,
        "persist_layer_norm": False,
    }


def _recomputation(spec: ModelSpec, args: TrainArgs, backend: Backend) -> dict[str, Any]:
    """megatron-core rejects settings of another granularity, and modules that the model lacks.

    A fused attention kernel stores no scores, so recomputing core_attn would free nothing.
    """
    granularity = args.recompute_granularity
    is_fused = implementation(args, backend) == "transformer_engine" and args.attention_backend in _FUSED_ATTENTION
    needless = {"core_attn"} if is_fused else set()
    needless |= set() if spec.model.has_latent_attention else {"mla_up_proj"}
    has_experts = set(map(spec.model.has_experts, spec.model.all_layers))
    needless |= set() if True in has_experts else {"moe", "moe_act"}
    needless |= set() if False in has_experts else {"mlp"}
    modules = [module for module in args.recompute_modules if module not in needless]
    if granularity == "none" or (granularity == "selective" and not modules):
        return {"recompute_granularity": None}
    return {
        "recompute_granularity": granularity,
        "recompute_method": args.recompute_method if granularity == "full" else None,
        "recompute_num_layers": args.recompute_num_layers if granularity == "full" else None,
        "recompute_modules": modules if granularity == "selective" else None,
    }


def _attention(model: Model, args: TrainArgs, backend: Backend) -> AttnBackend:
    """The requested attention kernels; flash (the default) means TransformerEngine's choice without flash-attn, and for
    attention with sinks, which flash-attn does not have.
    """
    has_flash = "flash_attention" in backend.fused_kernels() and not model.sinks
    if args.attention_backend == "flash" and not has_flash:
        return AttnBackend.auto
    return AttnBackend[args.attention_backend]


def _fusions(spec: ModelSpec, args: TrainArgs, backend: Backend) -> dict[str, bool]:
    """Fused kernels that are available, enabled, and compute the same."""
    here = backend.fused_kernels()
    # megatron-core's fused clamped gate clamps before it adds the bias of experts that are not grouped.
    is_fusible = spec.model.activation in SWIGLU and spec.model.clamped_gate is None
    wanted = {
        "bias_activation_fusion": "bias_swiglu" in here and not args.no_bias_swiglu_fusion and is_fusible,
        # Grouped experts with biases refuse to be built with it.
        "bias_dropout_fusion": "bias_dropout" in here
        and not args.no_bias_dropout_fusion
        and not spec.model.expert_bias
        and _adds_more_than_residual(spec.model, args),
        "apply_rope_fusion": "rope" in here and not args.no_rope_fusion and _rotates_plainly(spec),
    }
    # Our attention and TransformerEngine's do not use the fused softmax. Sums of weight gradients are fused
    # layer by layer (optim.wrap): this setting covers megatron-core's own linears too, whose fusion needs Apex.
    return {**wanted, "masked_softmax_fusion": False, "gradient_accumulation_fusion": False}


def _adds_more_than_residual(model: Model, args: TrainArgs) -> bool:
    """Without bias and dropout one addition is left, which starts in a tenth of the compiled kernel's time."""
    return _hidden_dropout(model, args) > 0 or model.output_bias or model.mlp_bias


def _hidden_dropout(model: Model, args: TrainArgs) -> float:
    return model.residual_dropout if args.hidden_dropout is None else args.hidden_dropout


def _rotates_plainly(spec: ModelSpec) -> bool:
    """The fused RoPE of packed rows silently drops YaRN's factor and counts the tokens of every sequence from zero;
    latent attention has its own.
    """
    if spec.model.has_latent_attention or (spec.model.vision and spec.model.vision.sections):
        return False
    _, factor = rope.frequencies(spec.model, spec.hf_config)
    return factor == 1.0


def _experts(spec: ModelSpec, args: TrainArgs, backend: Backend) -> dict[str, Any]:
    router = spec.model.router
    # Dense models too: megatron-core checks the dispatcher where rows vary in length; its default fails there.
    if router is None:
        return {"moe_token_dispatcher_type": "alltoall"}
    has_shared = bool(spec.model.shared_expert_width) and not spec.model.experts_beside_dense
    has_bias = router.has_bias
    balancing = args.moe_router_load_balancing_type or router.balancing
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
    """The requested value; else on in bfloat16, for which Megatron-Core made them."""
    return spec.dtype == torch.bfloat16 if args.moe_grouped_gemm is None else args.moe_grouped_gemm
