"""The tasks of the trainer: each says how a micro-batch becomes a loss. This registry lists every variant."""

from megatron_trainer.tasks.language import language_task
from megatron_trainer.tasks.preference import preference_task
from megatron_trainer.tasks.task import Task, TaskFactory

TASKS: dict[str, TaskFactory] = {"pt": language_task, "sft": language_task, "rlhf": preference_task}

__all__ = ["TASKS", "Task", "TaskFactory"]
