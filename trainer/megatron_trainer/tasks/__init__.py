"""The tasks of the trainer: each defines how a micro-batch becomes a loss. This registry lists every variant."""

from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.classification import classification_task
from megatron_trainer.tasks.embedding import embedding_task
from megatron_trainer.tasks.language import language_task
from megatron_trainer.tasks.preference import preference_task
from megatron_trainer.tasks.reranking import reranking_task
from megatron_trainer.tasks.reward import reward_task
from megatron_trainer.tasks.task import Task, TaskFactory
from megatron_trainer.tasks.unpaired import unpaired_task
from megatron_trainjob.args.tree import TrainArgs

SFT: dict[str, TaskFactory] = {
    "causal_lm": language_task,
    "seq_cls": classification_task,
    "embedding": embedding_task,
    "reranker": reranking_task,
    "generative_reranker": reranking_task,
}
"""By task_type."""
RLHF: dict[str, TaskFactory] = {"dpo": preference_task, "kto": unpaired_task, "rm": reward_task}
"""By rlhf_type."""


def _sft_task(args: TrainArgs, spec: ModelSpec) -> Task:
    return SFT[args.task_type or "causal_lm"](args, spec)


def _rlhf_task(args: TrainArgs, spec: ModelSpec) -> Task:
    return RLHF[args.rlhf_type](args, spec)


TASKS: dict[str, TaskFactory] = {"pt": language_task, "sft": _sft_task, "rlhf": _rlhf_task}

__all__ = ["TASKS", "Task", "TaskFactory"]
