"""Wraps a built model for training: mixed precision, data-parallel gradient buffers, optimizer; sets learning rates."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import ParamGroupOverride
from megatron.core.transformer.module import Float16Module

from megatron_trainer.engine import Engine
from megatron_trainer.lora.parts import part_of
from megatron_trainer.megatron.patches import lion, whole_tensors
from megatron_trainer.models.extra import configuration
from megatron_trainer.train.schedule import Schedule, learning_rate
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs

if TYPE_CHECKING:  # needs Triton
    from megatron_trainer.megatron.patches.one_pass_update import OnePassUpdate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}
_WRAPPED = "module."
FIRST_LOSS_SCALE = 2.0**16
"""Initial loss scale in float16. Each overflow halves it and skips a step; megatron-core's 2**32 would skip some 20."""


def wrap(models: list[GPTModel], args: TrainArgs, *, peak: float) -> Engine:
    """The engine for models whose trainable parameters are already selected (adapters added, others frozen)."""
    config = models[0].config
    chunks = [_data_parallel(model, args, is_first=index == 0) for index, model in enumerate(models)]
    if not args.no_gradient_accumulation_fusion:
        _fuse_gradient_sums(chunks)
    if derive.is_matrix_optimizer(args):
        lion.install()
        whole_tensors.install()
    settings = optimizer_config(args, config.params_dtype, peak)
    optimizer = get_megatron_optimizer(settings, chunks, config_overrides=_rates(settings, args))
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if args.overlap_grad_reduce:
        config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    one_pass = _one_pass(optimizer, chunks)
    return Engine(config=config, models=models, chunks=chunks, optimizer=optimizer, one_pass=one_pass)


def _one_pass(optimizer: MegatronOptimizer, chunks: list[DistributedDataParallel]) -> OnePassUpdate | None:
    if not importlib.util.find_spec("triton"):
        return None
    from megatron_trainer.megatron.patches import one_pass_update

    return one_pass_update.of(optimizer, chunks)


def _rates(settings: OptimizerConfig, args: TrainArgs) -> dict[ParamKey, ParamGroupOverride]:
    """Megatron's own groups, and those of the vision tower and the aligner with a learning rate of their own."""
    rates: dict[ParamKey, ParamGroupOverride] = get_standard_config_overrides(settings)
    for part, rate in (("vit", args.vit_lr), ("aligner", args.aligner_lr)):
        if rate is not None:
            belongs = ParamWithNamePredicate(name=part, fn=partial(_is_of, part))
            rates[ParamKey(with_name_predicate=belongs)] = ParamGroupOverride(max_lr=rate)
    return rates


def _is_of(part: str, _: torch.nn.Parameter, name: str) -> bool:
    while name.startswith(_WRAPPED):
        name = name.removeprefix(_WRAPPED)
    return part_of(name) == part


def _fuse_gradient_sums(chunks: list[DistributedDataParallel]) -> None:
    """Lets TransformerEngine's layers accumulate weight gradients into `main_grad` inside the GEMM.

    Set on the layers, not in megatron-core's configuration, which would require Apex for its own linears.
    """
    for module in (module for chunk in chunks for module in chunk.modules()):
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True


def optimizer_config(args: TrainArgs, params_dtype: torch.dtype, peak: float) -> OptimizerConfig:
    """Megatron's optimizer settings for our arguments."""
    fields = {
        "optimizer": args.optimizer.removeprefix("dist_"),
        "lr": peak,
        "min_lr": args.min_lr,
        "decoupled_lr": args.decoupled_lr,
        "decoupled_min_lr": args.decoupled_min_lr,
        "weight_decay": args.weight_decay,
        "adam_beta1": args.adam_beta1,
        "adam_beta2": args.adam_beta2,
        "adam_eps": args.adam_eps,
        "sgd_momentum": args.sgd_momentum,
        "clip_grad": args.clip_grad,
        "fp16": params_dtype == torch.float16,
        # What spreads whole tensors wraps its parts under this switch alone: patches.whole_tensors tells the types.
        "bf16": params_dtype == torch.bfloat16 or derive.spreads_whole_tensors(args),
        "params_dtype": params_dtype,
        **_of_matrices(args),
        "use_distributed_optimizer": derive.spreads_elements(args),
        "use_layer_wise_distributed_optimizer": derive.spreads_whole_tensors(args),
        "overlap_param_gather": args.overlap_param_gather and derive.spreads_elements(args),
        "use_precision_aware_optimizer": args.use_precision_aware_optimizer,
        "main_grads_dtype": DTYPES[args.main_grads_dtype],
        "store_param_remainders": derive.keeps_remainders(args) and params_dtype == torch.bfloat16,
        "main_params_dtype": DTYPES[args.main_params_dtype],
        "exp_avg_dtype": DTYPES[args.exp_avg_dtype],
        "exp_avg_sq_dtype": DTYPES[args.exp_avg_sq_dtype],
        "fp8_recipe": args.fp8_recipe if args.fp8_format else None,
        "optimizer_cpu_offload": args.optimizer_cpu_offload,
        "optimizer_offload_fraction": args.optimizer_offload_fraction if args.optimizer_cpu_offload else 0.0,
    }
    extra = {"initial_loss_scale": FIRST_LOSS_SCALE, **(args.extra_megatron_kwargs or {})}
    return configuration(OptimizerConfig, fields, extra)


def _of_matrices(args: TrainArgs) -> dict[str, object]:
    """The settings of Muon and Lion."""
    return {
        "muon_momentum": args.muon_momentum,
        "muon_split_qkv": args.muon_split_qkv,
        "muon_nesterov": args.muon_use_nesterov,
        "muon_scale_mode": args.muon_scale_mode,
        "muon_fp32_matmul_prec": args.muon_fp32_matmul_prec,
        "muon_num_ns_steps": args.muon_num_ns_steps,
        "muon_tp_mode": args.muon_tp_mode,
        "muon_extra_scale_factor": args.muon_extra_scale_factor,
        "lion_beta1": args.lion_beta1,
        "lion_beta2": args.lion_beta2,
    }


def set_learning_rates(
    optimizer: MegatronOptimizer, schedule: Schedule, completed_steps: int, weight_decay: float
) -> None:
    """Sets the learning rate and weight decay of every group for the step after `completed_steps`.

    A group with a peak or floor of its own (decoupled_lr) follows the same schedule between them. Biases and
    one-dimensional weights do not decay.
    """
    for group in optimizer.param_groups:
        own = replace(schedule, peak=group["max_lr"], floor=group["min_lr"])
        group["lr"] = learning_rate(own, completed_steps)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)


def _data_parallel(model: GPTModel, args: TrainArgs, *, is_first: bool) -> DistributedDataParallel:
    config = model.config
    is_half = config.params_dtype != torch.float32
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=derive.spreads_elements(args),
        overlap_grad_reduce=args.overlap_grad_reduce,
        overlap_param_gather=args.overlap_param_gather and derive.spreads_elements(args),
        grad_reduce_in_fp32=args.main_grads_dtype == "fp32",
        check_for_nan_in_grad=False,  # the loop checks the loss on all ranks and says which step it was
    )
    module = Float16Module(config, model) if is_half else model
    return DistributedDataParallel(config, ddp_config, module, disable_bucketing=not is_first)
