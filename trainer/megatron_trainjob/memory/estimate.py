"""Bytes of one training step on each pipeline stage. Pure arithmetic; the actual usage of a run is in its report.

Weights, gradients and optimizer state follow the parameter count (Rajbhandari et al. 2020, ZeRO, and Megatron-Core's
buffers); activations follow Korthikanti et al. 2022, see activation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_trainjob.args import derive, head, placement
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.model import LayerParameters, Model
from megatron_trainjob.families.vision import Vision
from megatron_trainjob.memory import tower
from megatron_trainjob.memory.activation import FLOAT32_BYTES, Row, layer_bytes, layer_input_bytes
from megatron_trainjob.memory.adapter import adapter_parameters

# CUDA context, cuBLAS and NCCL buffers of one process.
OVERHEAD_BYTES = 2 * 1024**3
LOGITS_AT_ONCE = 2**27
"""Logits are computed for a chunk of tokens at a time: its elements on one rank, 512 MiB in float32."""
STATE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""An element of the optimizer's state."""
REMAINDER_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank of a pipeline stage; equal for all ranks of a stage.

    `parameters` are those that the rank holds, `trainable` those of them with gradients.
    `reference` counts the weights of the second, frozen model of preference training.
    """

    stage: int
    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int
    reference: int = 0

    @property
    def total(self) -> int:
        """All bytes of the rank."""
        model = self.weights + self.reference + self.gradients + self.optimizer
        return model + self.activations + self.logits + self.overhead


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The ranks of a run, one per pipeline stage, and the facts that the estimate is based on.

    `tokens` is a rank's part of a micro-batch, `num_parameters` and `num_trainable` count the whole model.
    """

    stages: tuple[RankMemory, ...]
    tokens: int
    num_parameters: int
    num_trainable: int

    @property
    def peak(self) -> RankMemory:
        """The rank that needs most."""
        return max(self.stages, key=lambda stage: stage.total)


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Parameters that a rank holds, dense and expert ones separately because their numbers of replicas differ."""

    dense: float
    expert: float
    edge: float
    """Of the dense ones, those of the embedding and the output layer."""

    @property
    def total(self) -> float:
        return self.dense + self.expert


def estimate(
    args: TrainArgs, shape: Model, world_size: int, *, task: Task = "sft", tokens: int | None = None
) -> MemoryEstimate:
    """The peak memory of every pipeline stage.

    `tokens` is the size of one micro-batch; without it a micro-batch is full: micro_batch_size times the longest
    row, which for a pair of answers is two sequences. Raises ValueError if the layout does not divide evenly; the rules
    report that with a remedy.
    """
    longest = _longest(args, shape)
    tokens = tokens or args.micro_batch_size * longest * derive.sequences_per_item(args, task)
    row = Row(
        tokens=-(-tokens // args.context_parallel_size),
        longest=min(longest, tokens),
        element_bytes=_element_bytes(args, shape),
        input_bytes=1 if args.fp8_format and args.train_type == "full" else _element_bytes(args, shape),
    )
    chunks = placement.chunks_of_stages(args, shape.num_layers)
    held = [[layer for chunk in of_stage for layer in chunk] for of_stage in chunks]
    held[-1] += shape.all_layers[shape.num_layers :]
    stages = tuple(_stage(args, shape, world_size, row, stage, layers, task) for stage, layers in enumerate(held))
    trainable = _num_trainable(args, shape)
    return MemoryEstimate(
        stages=stages,
        tokens=row.tokens,
        num_parameters=shape.num_parameters,
        num_trainable=trainable,
    )


def _num_trainable(args: TrainArgs, shape: Model) -> int:
    of_tower = tower.trained_parameters(args, shape.vision) if shape.vision else 0
    if args.freeze_llm:
        return of_tower
    if args.train_type != "full":
        return of_tower + sum(adapter_parameters(args, shape, layer).total for layer in shape.all_layers)
    return of_tower + shape.num_parameters - (shape.vision.num_parameters if shape.vision else 0)


def _longest(args: TrainArgs, shape: Model) -> int:
    length = derive.longest_sample(args, shape.max_position_embeddings)
    if args.packing:
        length = args.packing_length or length
    if not length:
        raise ValueError("max_length is needed: config.json does not say how long a sequence may be")
    return length


def _element_bytes(args: TrainArgs, shape: Model) -> int:
    return 2 if any(derive.fp16_bf16(args, {"torch_dtype": shape.dtype})) else 4


def _stage(
    args: TrainArgs, shape: Model, world_size: int, row: Row, stage: int, layers: Sequence[int], task: Task
) -> RankMemory:
    last = stage == args.pipeline_model_parallel_size - 1
    vision = shape.vision if stage == 0 else None
    held = trained = _held(args, [shape.layer_parameters(layer) for layer in layers], _edge(args, shape, stage))
    if args.freeze_llm:
        trained = _Held(dense=0, expert=0, edge=0)
    elif args.train_type != "full":
        trained = _held(args, [adapter_parameters(args, shape, layer) for layer in layers], 0)
    activations = _activation_bytes(args, shape, row, stage, layers, world_size)
    if vision:
        trained = replace(trained, dense=trained.dense + tower.trained_parameters(args, vision))
        held = replace(held, dense=held.dense + vision.num_parameters)
        activations += _tower_bytes(args, shape, vision, row, world_size, task)
    weights = held.total + (trained.total if args.train_type != "full" else 0)
    if vision and tower.trains_in_full(args):
        weights -= vision.num_parameters
    reference = held.total if derive.has_reference_model(args, task) else 0
    return RankMemory(
        stage=stage,
        parameters=round(weights),
        trainable=round(trained.total),
        weights=round(weights * row.element_bytes + _eight_bit_bytes(args, held)),
        gradients=round(trained.total * STATE_BYTES[args.main_grads_dtype]),
        optimizer=round(_optimizer_bytes(args, trained, world_size, _main_bytes(args, shape))),
        activations=round(activations),
        logits=round(_logit_bytes(args, shape, row, task)) if last and not head.replaces_output(args) else 0,
        overhead=OVERHEAD_BYTES,
        reference=round(reference * row.element_bytes),
    )


def _eight_bit_bytes(args: TrainArgs, held: _Held) -> float:
    """Weights of the linears in 8 bits, as they are and transposed, which FP8 keeps between micro-batches."""
    return 2 * (held.total - held.edge) if args.fp8_format else 0.0


def _tower_bytes(args: TrainArgs, shape: Model, vision: Vision, row: Row, world_size: int, task: Task) -> float:
    """The tower's activations in all micro-batches that the first stage holds at once."""
    one = tower.activation_bytes(
        args,
        vision,
        samples=args.micro_batch_size * derive.sequences_per_item(args, task),
        tokens=row.tokens * args.context_parallel_size,
        element_bytes=row.element_bytes,
    )
    return one * _held_micro_batches(args, shape, 0, max(derive.num_micro_batches(args, world_size), 1))


def _edge(args: TrainArgs, shape: Model, stage: int) -> float:
    """Embedding on the first stage, final norm and output layer on the last, both sharded over tensor ranks.

    A tied model has one matrix, replicated on the last stage of a pipeline, as is the embedding for multi-token
    prediction. The few rows of a head are not counted.
    """
    stages = args.pipeline_model_parallel_size
    has_output = stage == stages - 1 and (stages > 1 or not shape.tied) and not head.replaces_output(args)
    has_copy = stage == stages - 1 and stages > 1 and shape.trained_predictions > 0 and not shape.tied
    matrices = (stage == 0) + has_output + has_copy
    norm = shape.hidden_size if stage == stages - 1 else 0
    return matrices * shape.embedding_parameters / args.tensor_model_parallel_size + norm


def _held(args: TrainArgs, layers: list[LayerParameters], edge: float) -> _Held:
    tensor = args.tensor_model_parallel_size
    expert_ranks = args.expert_model_parallel_size * derive.expert_tensor_parallel_size(args)
    return _Held(
        dense=sum(layer.tensor / tensor + layer.whole for layer in layers) + edge,
        expert=sum(layer.expert / expert_ranks for layer in layers),
        edge=edge,
    )


def _main_bytes(args: TrainArgs, shape: Model) -> int:
    """A main parameter beside a 16-bit weight; none in float32. Beside a bfloat16 one it may be a remainder."""
    is_fp16, is_bf16 = derive.fp16_bf16(args, {"torch_dtype": shape.dtype})
    if is_bf16 and derive.keeps_remainders(args):
        return REMAINDER_BYTES
    return STATE_BYTES[args.main_params_dtype] if is_fp16 or is_bf16 else 0


def _optimizer_bytes(args: TrainArgs, trained: _Held, world_size: int, main: int) -> float:
    """Main parameters of `main` bytes and moments, sharded over data-parallel ranks if args say so.

    It is sharded over data and context ranks together, for expert parameters over the replicas of the experts.
    """
    moments, more_at_edge = _moment_bytes(args)
    dense, expert, edge = trained.dense, trained.expert, trained.edge
    if args.use_distributed_optimizer or derive.spreads_whole_tensors(args):
        copies = derive.data_parallel_size(args, world_size) * args.context_parallel_size
        dense, edge = dense / copies, edge / copies
        expert /= derive.expert_data_parallel_size(args, world_size) if expert else 1
    on_gpu = 1 - args.optimizer_offload_fraction if args.optimizer_cpu_offload else 1
    return ((dense + expert) * (main + moments) + edge * more_at_edge) * on_gpu


def _moment_bytes(args: TrainArgs) -> tuple[int, int]:
    """(bytes of the moments of a parameter, how many more one of the embedding or the output layer has).

    Adam has two moments, SGD and Lion one; Muon has one for matrices and uses Adam for the rest.
    """
    match args.optimizer:
        case "adam":
            return STATE_BYTES[args.exp_avg_dtype] + STATE_BYTES[args.exp_avg_sq_dtype], 0
        case "sgd":
            return FLOAT32_BYTES if args.sgd_momentum else 0, 0
        case "lion":
            return FLOAT32_BYTES, 0
        case "muon" | "dist_muon":
            return FLOAT32_BYTES, FLOAT32_BYTES


def _activation_bytes(
    args: TrainArgs, shape: Model, row: Row, stage: int, layers: Sequence[int], world_size: int
) -> float:
    """Activations of all micro-batches that the stage holds at once, and the temporary memory of recomputation."""
    whole = [layer_bytes(args, shape, row, layer) for layer in layers]
    kept, for_a_moment = _kept_and_recomputed(args, whole, layer_input_bytes(args, shape, row))
    micro_batches = max(derive.num_micro_batches(args, world_size), 1)
    held = _held_micro_batches(args, shape, stage, micro_batches)
    embedding = layer_input_bytes(args, shape, row) if stage == 0 else 0
    return held * (kept + embedding) + for_a_moment


def _held_micro_batches(args: TrainArgs, shape: Model, stage: int, micro_batches: int) -> float:
    """With the 1F1B schedule stage i of p holds min(p - i, micro-batches) of them (Narayanan et al. 2021).

    Interleaved with v chunks a stage it holds those of 2 (p - i - 1) + (v - 1) p + 1 chunks, v of which are a stage.
    """
    stages, chunks = args.pipeline_model_parallel_size, placement.virtual_stages(args, shape.num_layers)
    if chunks is None:
        return min(stages - stage, micro_batches)
    return min(2 * (stages - stage - 1) + (chunks - 1) * stages + 1, micro_batches * chunks) / chunks


def _kept_and_recomputed(args: TrainArgs, whole: list[float], layer_input: float) -> tuple[float, float]:
    """(bytes that a stage stores per micro-batch, temporary bytes while a part is recomputed).

    Full recomputation stores one input per chunk ("uniform") or per recomputed layer ("block").
    """
    if args.recompute_granularity != "full" or args.recompute_num_layers is None:
        return sum(whole), 0.0
    size = args.recompute_num_layers
    if args.recompute_method == "uniform":
        chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
        return len(chunks) * layer_input, max((sum(chunk) for chunk in chunks), default=0.0)
    return len(whole[:size]) * layer_input + sum(whole[size:]), max(whole[:size], default=0.0)


def _logit_bytes(args: TrainArgs, shape: Model, row: Row, task: Task) -> float:
    """Logits of a chunk and their gradient in the training type and the float32 softmax, N * V / tp * (2 e + 4).

    Between several chunks that of the output layer is kept too; preference training does that in the backward pass.
    """
    columns = shape.vocab_size / args.tensor_model_parallel_size
    whole = row.tokens * columns
    sums = 0.0
    if whole > LOGITS_AT_ONCE and task != "rlhf" and args.train_type == "full":
        sums = columns * _kept_gradient_bytes(args, shape, row)
    return min(whole, LOGITS_AT_ONCE) * (2 * row.element_bytes + FLOAT32_BYTES) + sums


def _kept_gradient_bytes(args: TrainArgs, shape: Model, row: Row) -> float:
    """For a column of the logits: its row of the output layer's gradient in float32, or the gradients of its logits,
    whichever is less; never the latter in float16, nor where ranks hold parts of the sequence.
    """
    in_float32 = shape.hidden_size * FLOAT32_BYTES
    is_float16, _ = derive.fp16_bf16(args, {"torch_dtype": shape.dtype})
    is_split = args.sequence_parallel and args.tensor_model_parallel_size > 1
    return in_float32 if is_float16 or is_split else min(in_float32, row.tokens * row.element_bytes)
