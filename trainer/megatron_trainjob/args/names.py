"""Which argument a written name means: canonical names, names of ms-swift 4.x, nearest names."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from megatron_trainjob.args.field import Task
from megatron_trainjob.args.tree import ARGUMENTS

# Names of the same thing in other trainers, which no spelling distance would find.
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


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Another name of an argument; with `inverted` its value means the opposite."""

    canonical: str
    inverted: bool


ALIASES: dict[str, Alias] = {
    name: Alias(canonical=argument.name, inverted=inverted)
    for argument in ARGUMENTS.values()
    for inverted, names in ((False, argument.aliases), (True, argument.inverted_aliases))
    for name in names
}


def find_alias(name: str, task: Task) -> Alias | None:
    """The alias that `name` is in this task, or None.

    Some names are an argument of their own in one task and an alias in another: output_dir belongs to export
    and means save in training.
    """
    if name in ARGUMENTS and task in ARGUMENTS[name].applies_to:
        return None
    return ALIASES.get(name)


def nearest(name: str, task: Task) -> str | None:
    """The known argument of this task that `name` most likely meant."""
    simplified = name.lower().replace("-", "_").lstrip("_")
    if simplified in ELSEWHERE:
        return ELSEWHERE[simplified]
    known = [argument.name for argument in ARGUMENTS.values() if task in argument.applies_to]
    known += [alias for alias in ALIASES if find_alias(alias, task)]
    matches = difflib.get_close_matches(simplified, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
