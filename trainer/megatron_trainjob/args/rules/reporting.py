"""Logging and Weights & Biases."""

from __future__ import annotations

from megatron_trainjob.args.field import EVERY_TASK
from megatron_trainjob.args.rules.condition import is_set
from megatron_trainjob.args.rules.pair import idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, rule

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@rule("logging_level", tasks=EVERY_TASK)
def the_log_level_exists(facts: Facts) -> str:
    """One of the names of the logging module, in any case."""
    level = facts.args.logging_level
    return "" if level is None or level.upper() in LEVELS else f"must be one of {', '.join(LEVELS)}"


RULES = (
    the_log_level_exists,
    needs("a_wandb_project_has_a_run_name", is_set("wandb_project"), is_set("wandb_exp_name")),
    idle_without("a_wandb_run_name_has_a_project", is_set("wandb_exp_name"), is_set("wandb_project")),
    idle_without("a_wandb_folder_has_a_project", is_set("wandb_save_dir"), is_set("wandb_project")),
)
