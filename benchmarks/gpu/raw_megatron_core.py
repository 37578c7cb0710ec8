"""megatron-core and TransformerEngine alone on full rows of random tokens: what the card gives without our trainer.

python3 raw_megatron_core.py MODEL_DIR --micro-batch-size 4 --num-micro-batches 2 [--fp8]
torchrun --nproc-per-node 8 raw_megatron_core.py MODEL_DIR ... [--tp 2] [--cp 2] [--ep 4] [--overlap]

Tuned like the trainer's defaults: nothing recomputed, grouped experts, TransformerEngine's cross entropy and Adam,
float32 gradients and main weights. Prints the median step of those after the fourth.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

WARM_UP_STEPS, STEPS = 4, 16


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("model", type=Path)
    options.add_argument("--micro-batch-size", type=int, default=4)
    options.add_argument("--num-micro-batches", type=int, default=2)
    options.add_argument("--fp8", action="store_true")
    options.add_argument("--length", type=int, default=4096)
    for size in ("tp", "cp", "ep"):
        options.add_argument(f"--{size}", type=int, default=1)
    options.add_argument("--overlap", action="store_true", help="communication with computation")
    options.add_argument("--two-byte-moments", action="store_true", help="Adam's moments and gradients in bfloat16")
    options.add_argument("--recompute", action="store_true", help="every layer")
    given = options.parse_args()
    os.environ.setdefault("NVTE_USE_CUTLASS_GROUPED_GEMM", "1")  # as the trainer has it on Hopper
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in {**alone, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}.items():
        os.environ.setdefault(name, value)
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    parallel_state.initialize_model_parallel(
        given.tp, context_parallel_size=given.cp, expert_model_parallel_size=given.ep, expert_tensor_parallel_size=1
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    shape = json.loads((given.model / "config.json").read_text())
    seconds = train(shape, given)
    copies = dist.get_world_size() // (given.tp * given.cp)
    tokens = given.micro_batch_size * given.num_micro_batches * given.length * copies
    peak = torch.cuda.max_memory_allocated() / 2**30
    measured = f"tokens/s={tokens / seconds:.0f} step_ms={seconds * 1e3:.1f} peak_gib={peak:.1f}"
    if dist.get_rank() == 0:
        print(f"raw {given.model.name} fp8={given.fp8} {measured}", flush=True)
    dist.destroy_process_group()


def configuration(shape: dict, given: argparse.Namespace) -> TransformerConfig:
    every_layer = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    experts = {}
    if "num_experts" in shape:
        experts = {
            "num_moe_experts": shape["num_experts"],
            "moe_ffn_hidden_size": shape["moe_intermediate_size"],
            "moe_router_topk": shape["num_experts_per_tok"],
            "moe_token_dispatcher_type": "alltoall",
            "moe_grouped_gemm": True,
            "moe_permute_fusion": True,
            "moe_router_dtype": "fp32",
            "moe_router_load_balancing_type": "none",
            "expert_model_parallel_size": given.ep,
            "expert_tensor_parallel_size": 1,
        }
    return TransformerConfig(
        num_layers=shape["num_hidden_layers"],
        hidden_size=shape["hidden_size"],
        ffn_hidden_size=shape["intermediate_size"],
        num_attention_heads=shape["num_attention_heads"],
        num_query_groups=shape["num_key_value_heads"],
        kv_channels=shape.get("head_dim", shape["hidden_size"] // shape["num_attention_heads"]),
        qk_layernorm=shape["model_type"] == "qwen3_moe",
        bf16=True,
        params_dtype=torch.bfloat16,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=True,
        bias_dropout_fusion=True,
        apply_rope_fusion=True,
        cross_entropy_loss_fusion=True,
        cross_entropy_fusion_impl="te",
        add_qkv_bias=shape["model_type"] == "qwen2",
        tensor_model_parallel_size=given.tp,
        sequence_parallel=given.tp > 1,
        context_parallel_size=given.cp,
        fp8="hybrid" if given.fp8 else None,
        fp8_recipe="delayed",
        **(every_layer if given.recompute else {}),
        **experts,
    )


def optimizer_configuration(given: argparse.Namespace) -> OptimizerConfig:
    small = {
        "use_precision_aware_optimizer": True,
        "exp_avg_dtype": torch.bfloat16,
        "exp_avg_sq_dtype": torch.bfloat16,
        "main_grads_dtype": torch.bfloat16,
        "store_param_remainders": False,
    }
    return OptimizerConfig(
        lr=1e-5,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_distributed_optimizer=True,
        overlap_param_gather=given.overlap,
        **(small if given.two_byte_moments else {}),
    )


def share(rows: torch.Tensor) -> torch.Tensor:
    """This rank's two pieces of rows [batch, length]: one from the front, and its mirror image."""
    size, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    if size == 1:
        return rows.contiguous()
    pieces = rows.chunk(2 * size, dim=1)
    return torch.cat([pieces[rank], pieces[2 * size - 1 - rank]], dim=1).contiguous()


def train(shape: dict, given: argparse.Namespace) -> float:
    """Median seconds of a step."""
    config = configuration(shape, given)
    layer = get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts, moe_grouped_gemm=config.moe_grouped_gemm, qk_layernorm=config.qk_layernorm
    )
    model = GPTModel(
        config,
        layer,
        vocab_size=shape["vocab_size"],
        max_sequence_length=given.length,
        position_embedding_type="rope",
        rotary_base=shape["rope_theta"],
        share_embeddings_and_output_weights=shape["tie_word_embeddings"],
    )
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=not given.two_byte_moments,
        overlap_grad_reduce=given.overlap,
        overlap_param_gather=given.overlap,
    )
    wrapped = DistributedDataParallel(config, settings, Float16Module(config, model.cuda()))
    optimizer = get_megatron_optimizer(optimizer_configuration(given), [wrapped])
    config.finalize_model_grads_func, config.grad_scale_func = finalize_model_grads, optimizer.scale_loss
    if given.overlap:
        config.no_sync_func = wrapped.no_sync
    positions = share(torch.arange(given.length, device="cuda")[None].expand(given.micro_batch_size, -1))

    def forward_step(_: object, chunk: torch.nn.Module):
        tokens = torch.randint(shape["vocab_size"] - 300, (given.micro_batch_size, given.length + 1), device="cuda")
        losses = chunk(share(tokens[:, :-1]), positions, None, labels=share(tokens[:, 1:]))
        return losses, lambda values: (values.float().mean(), {})

    seconds = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.monotonic()
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=None,
            model=[wrapped],
            num_microbatches=given.num_micro_batches,
            seq_length=given.length,
            micro_batch_size=given.micro_batch_size,
            forward_only=False,
        )
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds[WARM_UP_STEPS:])


main()
