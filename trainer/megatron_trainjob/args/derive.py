"""Everything derived from the arguments and a few facts: sizes, counts, schedules, paths. Pure.

Symbols: W world size, dp data-parallel size, N items of the training set, s = micro_batch_size * dp.
Callers have checked the rules; an uneven division, which the rules forbid, raises ValueError here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_trainjob import families
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.families.model import Model

TRACKED_PROJECT = "megatron-train-operator"
"""Project of a tracker of experiments whose name the arguments leave open."""
_OF_MODEL: Mapping[str, Callable[[Model], Any]] = {
    "num_layers": lambda model: model.num_layers,
    "hidden_size": lambda model: model.hidden_size,
    "ffn_hidden_size": lambda model: model.ffn_hidden_size,
    "num_attention_heads": lambda model: model.num_heads,
    "num_query_groups": lambda model: model.num_kv_heads,
    "max_position_embeddings": lambda model: model.max_position_embeddings,
    "multi_latent_attention": lambda model: model.has_latent_attention,
    "num_experts": lambda model: model.num_experts,
    "moe_ffn_hidden_size": lambda model: model.expert_width or None,
    "moe_shared_expert_intermediate_size": lambda model: model.shared_expert_width,
    "moe_router_topk": lambda model: model.experts_per_token or None,
    "moe_router_pre_softmax": lambda model: model.router and not model.router.normalized,
    "moe_router_score_function": lambda model: model.router and model.router.score,
}
"""Arguments that rules read -> the model's value if they are not set."""


def model_parallel_size(args: TrainArgs) -> int:
    """Ranks that hold one copy of the model and one sequence: tp * pp * cp."""
    return args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size


def data_parallel_size(args: TrainArgs, world_size: int) -> int:
    """Copies of the model, dp = W / (tp * pp * cp). Raises ValueError if that is not an integer."""
    return whole(world_size, model_parallel_size(args), "world size", "tp * pp * cp")


def expert_tensor_parallel_size(args: TrainArgs) -> int:
    """Ranks that shard each expert."""
    return args.expert_tensor_parallel_size or args.tensor_model_parallel_size


def expert_data_parallel_size(args: TrainArgs, world_size: int) -> int:
    """Copies of each expert, W / (etp * ep * pp). Raises ValueError if that is not an integer."""
    ranks = expert_tensor_parallel_size(args) * args.expert_model_parallel_size * args.pipeline_model_parallel_size
    return whole(world_size, ranks, "world size", "etp * ep * pp")


def samples_per_micro_step(args: TrainArgs, data_parallel_size: int) -> int:
    """Samples that all ranks feed through one forward and backward pass, s = micro_batch_size * dp."""
    return args.micro_batch_size * data_parallel_size


def num_micro_batches(args: TrainArgs, world_size: int) -> int:
    """Micro-batches of a rank per optimizer step, global_batch_size / s. Raises ValueError if not an integer."""
    samples = samples_per_micro_step(args, data_parallel_size(args, world_size))
    return whole(args.global_batch_size, samples, "global_batch_size", "micro_batch_size * dp")


def learning_rate(args: TrainArgs) -> float:
    """Peak learning rate: the argument, else 1e-5 for full training and 1e-4 for LoRA."""
    if args.lr is not None:
        return args.lr
    return 1e-4 if args.train_type != "full" else 1e-5


def is_matrix_optimizer(args: TrainArgs) -> bool:
    """Whether the optimizer is one of emerging-optimizers, whose state is distributed by whole tensors if at all."""
    return args.optimizer in ("muon", "dist_muon", "lion")


def spreads_whole_tensors(args: TrainArgs) -> bool:
    """Whether each data-parallel rank keeps the optimizer state of its own whole tensors."""
    return is_matrix_optimizer(args) and (args.use_distributed_optimizer or args.optimizer == "dist_muon")


def spreads_elements(args: TrainArgs) -> bool:
    """Whether each data-parallel rank keeps the optimizer state of an equal share of all elements."""
    return args.use_distributed_optimizer and not is_matrix_optimizer(args)


def items_per_epoch(args: TrainArgs, num_items: int, data_parallel_size: int) -> int:
    """Items of an epoch that are trained: the last incomplete micro-step is dropped, N // s * s."""
    samples = samples_per_micro_step(args, data_parallel_size)
    return num_items // samples * samples


def train_iters(args: TrainArgs, num_items: int | None, data_parallel_size: int) -> int:
    """Optimizer steps of the run; num_items None means that the length of the data is unknown.

    Without max_epochs it is train_iters; otherwise (N // s * s) * max_epochs // global_batch_size, and the smaller of
    the two if both are set. Raises ValueError if neither determines it.
    """
    limits = [] if args.train_iters is None else [args.train_iters]
    if args.max_epochs is not None and num_items is not None:
        items = items_per_epoch(args, num_items, data_parallel_size) * args.max_epochs
        limits.append(items // args.global_batch_size)
    if not limits:
        raise ValueError("train_iters is required: max_epochs does not determine the length of the run")
    return min(limits)


def eval_iters(args: TrainArgs, num_validation_items: int) -> int:
    """Steps of one evaluation: the argument, else enough to read every item once; 0 without items."""
    if num_validation_items == 0:
        return 0
    if args.eval_iters >= 0:
        return args.eval_iters
    return -(-num_validation_items // args.global_batch_size)


def eval_strategy(args: TrainArgs) -> str:
    """When evaluations run: the argument, else by steps if an interval is set, else with the checkpoints."""
    return args.eval_strategy or ("steps" if args.eval_interval else args.save_strategy)


def greater_is_better(args: TrainArgs) -> bool:
    """Whether the best checkpoint is the one with the highest metric: the argument, else by the metric's name."""
    if args.greater_is_better is not None:
        return args.greater_is_better
    return not (args.metric_for_best_model or "loss").endswith("loss")


def eval_interval(args: TrainArgs) -> int:
    """Training steps between two evaluations."""
    return args.eval_interval or args.save_interval


def lr_decay_samples(args: TrainArgs, train_iters: int) -> int:
    """Samples after which the learning rate has fallen to min_lr."""
    return (args.lr_decay_iters or train_iters) * args.global_batch_size


def lr_warmup_samples(args: TrainArgs, train_iters: int) -> float:
    """Samples over which the learning rate rises from 0 to its peak."""
    if args.lr_warmup_fraction is not None:
        return args.lr_warmup_fraction * lr_decay_samples(args, train_iters)
    return float(args.lr_warmup_iters * args.global_batch_size)


def fp16_bf16(args: TrainArgs, hf_config: Mapping[str, Any]) -> tuple[bool, bool]:
    """(fp16, bf16) of the run: the arguments, else by torch_dtype, else by the type of the stored model.

    float32 means training in float32: the precision of a model is never reduced silently.
    """
    if args.fp16 is not None or args.bf16 is not None:
        return bool(args.fp16), bool(args.bf16)
    dtype = weight_dtype(args, hf_config)
    return dtype == "float16", dtype == "bfloat16"


def keeps_remainders(args: TrainArgs) -> bool:
    """Whether a float32 main parameter of a bfloat16 weight is kept as the 16 bits that the weight lacks.

    TransformerEngine's Adam does; but megatron-core holds main parameters itself for FP8 that is scaled without a
    history, and offloaded ones are whole.
    """
    is_fused = args.use_precision_aware_optimizer and not args.optimizer_cpu_offload
    is_held_by_megatron = args.fp8_format is not None and args.fp8_recipe != "delayed"
    return is_fused and args.main_params_dtype == "fp32" and not is_held_by_megatron


def weight_dtype(args: TrainArgs, hf_config: Mapping[str, Any]) -> str:
    """Type in which the model's weights are loaded: torch_dtype, else that of config.json, else float32.

    config.json may have it under two names; transformers reads the older one if the other is absent or null.
    """
    stored = hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32"
    return args.torch_dtype or str(stored).removeprefix("torch.")


def model_value(args: TrainArgs, hf_config: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 (of any type)
    """A model argument: its value, else that of the model with this config.json, else its fallback or None."""
    given = getattr(args, name)
    if given is not None:
        return given
    try:
        found = _OF_MODEL[name](families.read(hf_config))
    except ValueError:  # args/model/check.py says why
        found = None
    return ARGUMENTS[name].fallback if found is None else found


def uses_latent_attention(args: TrainArgs, hf_config: Mapping[str, Any]) -> bool:
    """Whether the model has multi-head latent attention."""
    return bool(model_value(args, hf_config, "multi_latent_attention"))


def num_experts(args: TrainArgs, hf_config: Mapping[str, Any]) -> int:
    """Routed experts of a layer, 0 for a dense model."""
    return model_value(args, hf_config, "num_experts") or 0


def has_dense_layers(args: TrainArgs, hf_config: Mapping[str, Any]) -> bool:
    """Whether some layers may have no experts."""
    if args.moe_layer_freq is not None:
        return True
    try:
        return not all(families.read(hf_config).expert_layers)
    except ValueError:  # args/model/check.py says why
        return True


def shared_expert_size(args: TrainArgs, hf_config: Mapping[str, Any]) -> int:
    """Feed-forward width of all shared experts together, 0 without any."""
    return model_value(args, hf_config, "moe_shared_expert_intermediate_size") or 0


def expert_width(args: TrainArgs, hf_config: Mapping[str, Any]) -> int | None:
    """Feed-forward width of one expert, else that of a dense block; None if unknown."""
    own: int | None = model_value(args, hf_config, "moe_ffn_hidden_size")
    dense: int | None = model_value(args, hf_config, "ffn_hidden_size")
    return own or dense


def router_topk(args: TrainArgs, hf_config: Mapping[str, Any]) -> int:
    """Number of experts per token."""
    return model_value(args, hf_config, "moe_router_topk") or 2


def router_pre_softmax(args: TrainArgs, hf_config: Mapping[str, Any]) -> bool:
    """Whether the softmax precedes the selection of experts."""
    return bool(model_value(args, hf_config, "moe_router_pre_softmax"))


def router_score_function(args: TrainArgs, hf_config: Mapping[str, Any]) -> str:
    """softmax or sigmoid."""
    return model_value(args, hf_config, "moe_router_score_function") or "softmax"


def router_has_bias(args: TrainArgs, hf_config: Mapping[str, Any]) -> bool:
    """Whether experts are balanced by a bias: the argument, else true with sigmoid scores."""
    if args.moe_router_enable_expert_bias is not None:
        return args.moe_router_enable_expert_bias
    return router_score_function(args, hf_config) == "sigmoid"


def token_dispatcher(args: TrainArgs) -> str:
    """How tokens are dispatched to experts: alltoall replaces what needs missing kernels or was removed."""
    return "allgather" if args.moe_token_dispatcher_type == "allgather" else "alltoall"


def max_length(args: TrainArgs, hf_config: Mapping[str, Any]) -> int | None:
    """Longest sample in tokens: the argument, else what the model supports; None if config.json has no limit."""
    return longest_sample(args, model_value(args, hf_config, "max_position_embeddings"))


def longest_sample(args: TrainArgs, positions: int | None) -> int | None:
    """The same for a model with this many positions."""
    reached = args.max_model_len if args.rope_scaling else None
    return args.max_length or args.seq_length or reached or positions


def packing_length(args: TrainArgs, hf_config: Mapping[str, Any]) -> int | None:
    """Tokens of a packed row."""
    return args.packing_length or max_length(args, hf_config)


def sequence_length(args: TrainArgs, hf_config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest row."""
    return packing_length(args, hf_config) if args.packing else max_length(args, hf_config)


def num_workers(args: TrainArgs) -> int:
    """Data-loading processes per rank; one for a stream."""
    return 1 if args.streaming else args.num_workers


def dataloader_type(args: TrainArgs) -> str:
    """Order of samples; a stream has its own."""
    return "external" if args.streaming else args.dataloader_type


def save_directory(args: TrainArgs) -> str:
    """Folder for checkpoints before add_version: the argument, else megatron_output/{model name}."""
    source = args.model or args.load or "model"
    return args.save or f"megatron_output/{source.rstrip('/').rsplit('/', maxsplit=1)[-1]}"


def tensorboard_directory(args: TrainArgs, save: str) -> str:
    """Folder for TensorBoard files; `save` is the folder of this run, version included."""
    return args.tensorboard_dir or f"{save.rstrip('/')}/runs"


def wandb_project(args: TrainArgs) -> str:
    """Weights & Biases project, "" if disabled."""
    return args.wandb_project or (TRACKED_PROJECT if "wandb" in args.report_to else "")


def swanlab_project(args: TrainArgs) -> str:
    """SwanLab project, "" if disabled."""
    return (args.swanlab_project or TRACKED_PROJECT) if "swanlab" in args.report_to else ""


def wandb_directory(args: TrainArgs, save: str) -> str:
    """Folder for Weights & Biases files; `save` is the folder of this run, version included."""
    return args.wandb_save_dir or f"{save.rstrip('/')}/wandb"


def whole(number: int, divisor: int, number_name: str, divisor_name: str) -> int:
    """number / divisor. Raises ValueError if that is not an integer."""
    if number % divisor:
        raise ValueError(f"{number_name} {number} is not divisible by {divisor_name} = {divisor}")
    return number // divisor


def unpaired_loss(args: TrainArgs) -> str:
    """The loss of rlhf_type kto: loss_type, whose own default is a loss of pairs."""
    return "kto" if args.loss_type == "sigmoid" else args.loss_type


def estimates_divergence(args: TrainArgs, task: Task) -> bool:
    """Whether the loss needs an estimate of the divergence of policy and reference."""
    return task == "rlhf" and args.rlhf_type == "kto" and unpaired_loss(args) == "kto"


def preference_losses(args: TrainArgs) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Types and weights of the losses whose sum preference training minimizes."""
    types = args.loss_types or (args.loss_type,)
    return types, args.loss_weights or (1.0,) * len(types)


def tokenizes_lazily(args: TrainArgs, task: Task) -> bool:
    """Whether rows are tokenized when they are read; not where every sample has to be known before training."""
    knows_samples = args.packing or args.group_by_length or bool(args.cached_dataset)
    knows_reference = task == "rlhf" and args.precompute_ref_log_probs
    return args.lazy_tokenize and not (knows_samples or knows_reference)


def has_reference_model(args: TrainArgs, task: Task) -> bool:
    """Whether a second, frozen copy of the model is kept during training: for full preference training."""
    is_asked = not (args.reference_free or args.precompute_ref_log_probs)
    return task == "rlhf" and args.rlhf_type != "rm" and args.train_type == "full" and is_asked


def sequences_per_item(args: TrainArgs, task: Task) -> int:
    """Maximum number of full-length sequences in an item of a micro-batch: two for a pair of answers.

    A packed row has a fixed length, whatever it contains. Without infonce_hard_negatives the number of negatives of an
    embedding model depends on the rows, and only anchor and positive are counted.
    """
    if args.packing:
        return 1
    if task == "rlhf":
        return 1 if args.rlhf_type == "kto" else 2
    if args.task_type == "embedding":
        return 2 + (args.infonce_hard_negatives or 0)
    is_reranker = args.task_type in ("reranker", "generative_reranker")
    return args.max_positive_samples + args.max_negative_samples if is_reranker else 1
