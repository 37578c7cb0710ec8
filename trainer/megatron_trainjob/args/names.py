"""Resolves names of arguments: canonical names, names of ms-swift 4.x, nearest names."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from megatron_trainjob.args import pixels
from megatron_trainjob.args.field import TRAINING, Argument, Task
from megatron_trainjob.args.tree import ARGUMENTS

# Names of the same thing in other trainers, which edit distance would not find.
ELSEWHERE = {
    "learning_rate": "lr",
    "batch_size": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "warmup_ratio": "lr_warmup_fraction",
    "warmup_steps": "lr_warmup_iters",
    "lr_scheduler_type": "lr_decay_style",
    "max_steps": "train_iters",
    "max_grad_norm": "clip_grad",
    "epochs": "max_epochs",
    "model_name_or_path": "model",
    "max_seq_length": "max_length",
    "gradient_checkpointing": "recompute_granularity",
    "resume_from_checkpoint": "load",
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
}

CERTAIN = 0.8
"""Similarity above which a misspelled name is taken for an argument of another task."""
GENERATION = "which generates answers while it trains; this trainer generates nothing"
PIXELS = "whose tower runs as its config.json and processor say; remove it"
# Arguments of unsupported methods, with what such a method would need.
OTHER_METHODS: dict[str, tuple[frozenset[str], str]] = {
    "GRPO": (
        frozenset(
            {
                "use_vllm",
                "reward_funcs",
                "reward_model",
                "reward_weights",
                "num_generations",
                "steps_per_generation",
                "generation_batch_size",
                "max_completion_length",
                "log_completions",
                "importance_sampling_level",
                "epsilon",
                "epsilon_high",
                "delta",
                "dynamic_sample",
                "max_resample_times",
                "overlong_filter",
                "scale_rewards",
                "advantage_estimator",
                "offload_model",
                "offload_optimizer",
                "offload_bridge",
                "sleep_level",
                "tau_pos",
                "tau_neg",
                "num_iterations",
                "kl_in_reward",
                "multi_turn_scheduler",
                "max_turns",
                "async_generate",
                "top_entropy_quantile",
                "log_entropy",
            }
        ),
        GENERATION,
    ),
    "knowledge distillation (GKD)": (
        frozenset({"teacher_model", "teacher_model_type", "teacher_model_revision", "lmbda", "seq_kd", "sft_alpha"}),
        GENERATION,
    ),
    "models with images": (frozenset({"vit_attn_impl", "freeze_vit_layers"}), PIXELS),
}
# Values of other programs, with a message instead of the list of known values.
OTHER_VALUES: dict[tuple[str, str], str] = {
    **{("rlhf_type", kind): f"{kind} belongs to a method {GENERATION}" for kind in ("grpo", "gkd", "ppo")},
    ("optimizer", "adaptive_muon"): "adaptive_muon has a state that checkpoints do not include; use muon",
}
OTHER_PREFIXES = {"GRPO": ("vllm_", "rollout_", "sglang_"), "models with images": ("video_", "fps_", "image_")}


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Another name of an argument; with `inverted` its value is negated."""

    canonical: str
    inverted: bool


def _aliases(tasks: tuple[Task, ...]) -> dict[str, Alias]:
    """Every other name of the arguments of these tasks."""
    return {
        name: Alias(canonical=argument.name, inverted=inverted)
        for argument in ARGUMENTS.values()
        if set(tasks) & set(argument.applies_to)
        for inverted, names in ((False, argument.aliases), (True, argument.inverted_aliases))
        for name in names
    }


OF_EXPORT = _aliases(("export",))
"""Other names in an export, such as save, which is an argument of its own in training."""
ALIASES = {name: alias for name, alias in OF_EXPORT.items() if name not in ARGUMENTS} | _aliases(TRAINING)


def find_alias(name: str, task: Task) -> Alias | None:
    """The alias that `name` is in this task, or None.

    Some names are an argument in one task and an alias in another: output_dir belongs to export
    and means save in training.
    """
    if name in ARGUMENTS and task in ARGUMENTS[name].applies_to:
        return None
    return OF_EXPORT.get(name, ALIASES.get(name)) if task == "export" else ALIASES.get(name)


def nearest(name: str, task: Task) -> str | None:
    """The known argument of this task that `name` most likely meant."""
    simplified = _simplified(name)
    known = [argument.name for argument in ARGUMENTS.values() if task in argument.applies_to]
    known += [alias for alias in ALIASES if find_alias(alias, task)]
    matches = difflib.get_close_matches(simplified, [*known, *ELSEWHERE], n=1, cutoff=0.6)
    return ELSEWHERE.get(matches[0], matches[0]) if matches else None


def _simplified(name: str) -> str:
    return name.lower().replace("-", "_").lstrip("_")


def _of_another_task(name: str, task: Task) -> Argument | None:
    """The argument that is misspelled here, if this task does not have it and no argument of its own is as near."""
    matches = difflib.get_close_matches(_simplified(name), ARGUMENTS, n=1, cutoff=CERTAIN)
    return ARGUMENTS[matches[0]] if matches and task not in ARGUMENTS[matches[0]].applies_to else None


def explain_unknown(name: str, task: Task) -> str:
    """The message about an unknown name: the method it belongs to, or the nearest known name."""
    for method, (names, reason) in OTHER_METHODS.items() if name not in pixels.NAMES else ():
        if name in names or name.startswith(OTHER_PREFIXES.get(method, ("\0",))):
            return f"belongs to {method}, {reason}"
    if name in pixels.NAMES:
        return f"is a setting of images and videos; write it as model_kwargs: {{{name}: ...}}"
    if other := _of_another_task(name, task):
        return f"unknown argument; {other.name}, if that is meant, applies to {', '.join(other.applies_to)} only"
    suggestion = nearest(name, task)
    hint = f"did you mean {suggestion}?" if suggestion else "docs/arguments.md lists all of them"
    return f"unknown argument; {hint}"


def explain_value(name: str, value: object) -> str:
    """The message about a value that this argument has in other programs, "" for any other."""
    return OTHER_VALUES.get((name, value), "") if isinstance(value, str) else ""
