"""The same ten steps of preference training here and under TRL: how both are set, and the run on this side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.ranks import tiny_run

STEPS, MICRO, GLOBAL, RATE = 10, 2, 4, 2e-4
LORA: dict[str, Any] = {
    "train_type": "lora",
    "lora_rank": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    # Megatron's q, k, v share one A; these have one each in both libraries.
    "target_modules": ["linear_proj", "linear_fc2"],
}
OURS: dict[str, Any] = {
    "train_iters": STEPS,
    "micro_batch_size": MICRO,
    "global_batch_size": GLOBAL,
    "lr": RATE,
    "lr_decay_style": "constant",
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "dataloader_type": "single",
    "dataset_shuffle": False,
}
TRLS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": MICRO,
    "gradient_accumulation_steps": GLOBAL // MICRO,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def train(model: Path, data: Path, save: Path, *, ranks: int = 1, **given: Any) -> tiny_run.TinyRun:
    """This trainer's run, which must end well."""
    mapping = tiny_run.arguments(model, data, save, **{**OURS, **given})
    run = tiny_run.train(mapping, ranks=ranks, task="rlhf")
    assert run.exit_code == 0, run.message
    return run
