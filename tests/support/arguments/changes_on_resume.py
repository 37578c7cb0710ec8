"""Arguments that a run may change when it goes on, each with what the change does to the steps that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from megatron_trainer.train.schedule import Schedule, learning_rate
from megatron_trainjob.checkpoint_folder import inspect
from tests.support.ranks.resume_ranks import Resumed
from tests.support.ranks.resumed_runs import STEPS
from tests.support.ranks.tiny_run import TinyRun

Effect = Callable[[Resumed, TinyRun], object]
"""Whether the change shows: takes the run that went on and the one that was never interrupted."""


def rates(
    *, peak: float = 1e-3, floor: float = 1e-4, warmup: float = 0.0, decay: int = STEPS, style: str = "cosine"
) -> list[float]:
    """The learning rates of the two steps after the checkpoint."""
    schedule = Schedule(peak=peak, floor=floor, warmup_steps=warmup, decay_steps=decay, style=style)
    return [learning_rate(schedule, step) for step in (2, 3)]


def other(column: str) -> Effect:
    """The first step has another value there."""
    return lambda found, whole: found.run.column(column)[2] != whole.column(column)[2]


def follows(**course: Any) -> Effect:
    """The learning rate takes this course."""
    return lambda found, _: found.run.column("learning_rate")[-2:] == pytest.approx(rates(**course))


def same_loss(found: Resumed, whole: TinyRun) -> bool:
    """A run that ended before its first step has the losses of its past, too."""
    assert (found.run.exit_code, found.run.message) == (0, "")
    return found.run.column("lm loss") == pytest.approx(whole.column("lm loss"), abs=2e-5)


def rows_of(*iterations: int) -> Effect:
    """These steps are logged."""
    return lambda found, _: [line["iteration"] for line in found.run.log if "lm loss" in line] == list(iterations)


def leaves(*names: str) -> Effect:
    """These checkpoints are there at the end."""
    return lambda found, _: sorted(path.name for path in found.run.folder.glob("iter_*")) == list(names)


def has(column: str) -> Effect:
    """Something is logged there."""
    return lambda found, _: bool(found.run.column(column))


def other_data(found: Resumed, _: TinyRun) -> bool:
    """The data is told to be other than the checkpoint's."""
    return any("the data or its order differs from the checkpoint's" in line for line in found.warnings)


WITHOUT_EFFECT_ON_THE_NUMBERS = {
    "async_save": True,
    "padding_free": False,
    "enable_channel_loss": True,
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
    "num_workers": 1,
    "manual_gc": True,
    "manual_gc_interval": 1,
    "cross_entropy_loss_fusion": True,
    "tensorboard_log_interval": 2,
    "tensorboard_queue_size": 7,
    "log_memory_to_tensorboard": False,
    "log_timers_to_tensorboard": False,
    "log_validation_ppl_to_tensorboard": False,
    "no_log_learning_rate_to_tensorboard": True,
    "log_throughput": True,
    "logging_level": "INFO",
    "log_total_limit": 16,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
    "ddp_timeout": 1000,
    "dataset_num_proc": 2,
    "load_from_cache_file": False,
    "auto_detect_ckpt_format": False,
}
TAKE_EFFECT: Sequence[tuple[Mapping[str, Any], Effect]] = [
    ({"lr": 5e-4}, follows(peak=5e-4)),
    ({"min_lr": 0.0}, follows(floor=0.0)),
    ({"lr": 5e-4, "min_lr": 5e-5, "lr_decay_style": "linear"}, follows(peak=5e-4, floor=5e-5, style="linear")),
    ({"lr_decay_style": "constant", "lr_warmup_iters": 3}, follows(style="constant", warmup=3)),
    ({"lr_decay_iters": 20}, follows(decay=20)),
    ({"lr_warmup_fraction": 0.75}, follows(warmup=3)),
    ({"train_iters": 6}, lambda found, _: found.run.column("learning_rate")[2:4] == pytest.approx(rates(decay=6))),
    ({"max_epochs": 1, "train_iters": None}, rows_of(1, 2, 3, 4)),
    (
        {"weight_decay": 0.5, "adam_beta1": 0.5, "adam_beta2": 0.6, "adam_eps": 1e-3},
        lambda found, _: (
            {(g["weight_decay"], g["betas"], g["eps"]) for g in found.groups}
            == {(0.0, (0.5, 0.6), 1e-3), (0.5, (0.5, 0.6), 1e-3)}
        ),
    ),
    ({"decoupled_lr": 1e-2, "decoupled_min_lr": 1e-3}, lambda found, _: len({g["lr"] for g in found.groups}) == 2),
    ({"clip_grad": 1e-3}, lambda found, _: found.settings["clip_grad"] == 1e-3),
    ({"global_batch_size": 2}, lambda found, _: found.run.column("consumed_samples")[-2:] == [10, 12]),
    ({"micro_batch_size": 2}, other("lm loss")),
    ({"save_interval": 1, "log_params_norm": True}, leaves("iter_0000002", "iter_0000003", "iter_0000004")),
    ({"save_total_limit": 1, "log_interval": 4}, leaves("iter_0000004")),
    (
        {"no_save_optim": True, "no_save_rng": True},
        lambda f, _: (m := inspect(f.run.folder / "iter_0000004").manifest) and not (m.has_optimizer or m.has_rng),
    ),
    ({"val_dataset": "DATA", "eval_interval": 1, "eval_iters": 1}, has("eval_lm loss")),
    ({"dataset": "DATA"}, other_data),
    ({"system": "You are short."}, other_data),
    ({"max_length": 100, "truncation_strategy": "right"}, other_data),
    ({"data_seed": 7}, other_data),
    ({"split_dataset_ratio": 0.2}, other_data),
    ({"packing": True, "packing_length": 128}, other_data),
    ({"dataset_shuffle": False, "lazy_tokenize": True}, other_data),
    ({"streaming": True, "shuffle_buffer_size": 4, "num_workers": None}, other_data),
    ({"use_chat_template": False}, other_data),
    ({"dataloader_type": "single"}, other("lm loss")),
    ({"loss_scale": "all"}, other("lm loss")),
    ({"attention_dropout": 0.3}, other("lm loss")),
    ({"hidden_dropout": 0.3, "seed": 7}, other("lm loss")),
    ({"enable_dft_loss": True}, other("lm loss")),
    ({"calculate_per_token_loss": False}, other("grad_norm")),
    ({"torch_dtype": "bfloat16"}, other("lm loss")),
    (WITHOUT_EFFECT_ON_THE_NUMBERS, same_loss),
    ({"deterministic_mode": True, "recompute_modules": ["mlp"]}, same_loss),
]


def name_of(changed: object) -> str:
    """The first of the changed arguments, for the name of a case."""
    return ",".join(f"{name}={value}" for name, value in list(changed.items())[:4]) if isinstance(changed, dict) else ""
