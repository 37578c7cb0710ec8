"""Estimated seconds of a training step, to compare settings of one run; the log of a run has the real ones.

The constants are fitted to steps measured on an H100 (benchmarks/results/gpu-2026-11-24.md and gpu-2026-11-28.md). On
another GPU all times change alike where products bound them, so that the order of settings stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_trainjob.args import derive, head, placement
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import score_widths
from megatron_trainjob.families.model import Model
from megatron_trainjob.memory.estimate import MemoryEstimate

DENSE_FLOPS_PER_S, EXPERT_FLOPS_PER_S = 520e12, 285e12
LAYER_S = 1.1e-3
"""What each layer of a micro-batch costs however few tokens it has: kernel starts, and products that are too small."""
EXPERT_LAYER_S = 21e-3
"""The least that a layer with experts takes: starting the kernels of each expert."""
GPU_BYTES_PER_S = 2.5e12
HOST_BYTES_PER_S = 25e9
"""Gradients to the host, its update there, parameters back. Not measured: a PCIe 5 link at half its rate."""
UPDATED_BYTES, OFFLOADED_BYTES = 28, 16
"""Read and written per parameter: gradient, main parameter and two moments; gradient and parameter over the link."""


@dataclass(frozen=True, kw_only=True)
class _Forward:
    """FLOPs of a forward pass for one micro-batch on one rank, by parts that can be recomputed apart."""

    attention: float
    scores: float
    feed_forward: float
    output: float

    @property
    def layers(self) -> float:
        return self.attention + self.scores + self.feed_forward


def step_seconds(args: TrainArgs, shape: Model, world_size: int, estimate: MemoryEstimate, *, task: Task) -> float:
    """Forward and backward pass of all micro-batches with what is recomputed, the pipeline's bubble and the update.

    A reference model costs one more forward pass. Communication is not counted: the settings compared share a layout.
    """
    micro_batches = max(derive.num_micro_batches(args, world_size), 1)
    stages = args.pipeline_model_parallel_size
    chunks = placement.virtual_stages(args, shape.num_layers) or 1
    bubble = (stages - 1) / chunks
    one = _micro_batch_seconds(args, shape, estimate.tokens, task)
    return one * (micro_batches + bubble) + _update_seconds(args, estimate, world_size)


def _micro_batch_seconds(args: TrainArgs, shape: Model, tokens: int, task: Task) -> float:
    forward = _forward(args, shape, tokens)
    passes = 2 if args.train_type != "full" else 3
    references = derive.has_reference_model(args, task) and not args.precompute_ref_log_probs
    flops = (passes + references) * (forward.layers + forward.output) + _recomputed(args, shape, forward)
    layers = len(shape.all_layers) / args.pipeline_model_parallel_size
    share = sum(map(shape.has_experts, shape.all_layers)) / len(shape.all_layers)
    rate = DENSE_FLOPS_PER_S * (1 - share) + EXPERT_FLOPS_PER_S * share
    return max(flops / rate, layers * share * EXPERT_LAYER_S) + layers * (1 - share) * LAYER_S


def _forward(args: TrainArgs, shape: Model, tokens: int) -> _Forward:
    ranks = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    output = 0 if head.replaces_output(args) else shape.hidden_size * shape.vocab_size
    layers = shape.weights_per_token - shape.hidden_size * shape.vocab_size
    attention = shape.mixing_weights
    longest = derive.longest_sample(args, shape.max_position_embeddings) or 0
    far, near = score_widths.of_far_pairs(shape), score_widths.of_near_pairs(shape)
    scores = far * _keys(longest, longest) + near * _keys(longest, shape.window)
    return _Forward(
        attention=2 * tokens * attention / ranks,
        scores=2 * tokens * scores / ranks,
        feed_forward=2 * tokens * (layers - attention) / ranks,
        output=2 * tokens * output / ranks,
    )


def _keys(length: int, window: int) -> float:
    """Keys of a token on average in a sample of this length, of which it sees itself and those before in the window."""
    reach = min(window, length)
    return reach - reach * (reach - 1) / 2 / length if length else 0.0


def _recomputed(args: TrainArgs, shape: Model, forward: _Forward) -> float:
    """FLOPs of a forward pass that are computed again. Norms and activation functions cost none to speak of."""
    if args.recompute_granularity == "full":
        stage = shape.num_layers / args.pipeline_model_parallel_size
        is_part = args.recompute_method == "block"
        return forward.layers * (min((args.recompute_num_layers or 0) / stage, 1) if is_part else 1)
    if args.recompute_granularity != "selective":
        return 0.0
    modules = set(args.recompute_modules)
    is_fused = args.attention_backend not in ("unfused", "local") and args.transformer_impl != "local"
    scores = forward.scores if "core_attn" in modules and not is_fused else 0.0
    up = 0.3 * forward.attention if "mla_up_proj" in modules and shape.has_latent_attention else 0.0
    share = sum(map(shape.has_experts, shape.all_layers)) / len(shape.all_layers)
    of_blocks = ("moe" in modules) * share + ("mlp" in modules) * (1 - share)
    return scores + up + forward.feed_forward * of_blocks


def _update_seconds(args: TrainArgs, estimate: MemoryEstimate, world_size: int) -> float:
    parameters = max(stage.trainable for stage in estimate.stages)
    if args.use_distributed_optimizer:
        parameters //= derive.data_parallel_size(args, world_size) * args.context_parallel_size
    offloaded = args.optimizer_offload_fraction if args.optimizer_cpu_offload else 0.0
    on_gpu = parameters * (1 - offloaded) * UPDATED_BYTES / GPU_BYTES_PER_S
    return on_gpu + parameters * offloaded * OFFLOADED_BYTES / HOST_BYTES_PER_S
