"""Logging, Weights & Biases and SwanLab."""

from __future__ import annotations

from megatron_trainjob.args import derive
from megatron_trainjob.args.field import EVERY_TASK
from megatron_trainjob.args.rules.rule import Facts, Rule, rule

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@rule("logging_level", tasks=EVERY_TASK)
def the_log_level_exists(facts: Facts) -> str:
    """One of the names of the logging module, in any case."""
    level = facts.args.logging_level
    return "" if level is None or level.upper() in LEVELS else f"must be one of {', '.join(LEVELS)}"


def _belongs_to_a_project(name: str, argument: str) -> Rule:
    def broken(facts: Facts) -> str:
        if not getattr(facts.args, argument) or derive.wandb_project(facts.args):
            return ""
        return "has no effect without wandb_project or report_to: [wandb]"

    return Rule(name=name, about=(argument, "wandb_project", "report_to"), broken=broken, severity="warning")


def _belongs_to_swanlab(name: str, argument: str) -> Rule:
    def broken(facts: Facts) -> str:
        is_used = not getattr(facts.args, argument) or "swanlab" in facts.args.report_to
        return "" if is_used else "has no effect without report_to: [swanlab]"

    return Rule(name=name, about=(argument, "report_to"), broken=broken, severity="warning")


RULES = (
    the_log_level_exists,
    _belongs_to_a_project("a_wandb_run_name_has_a_project", "wandb_exp_name"),
    _belongs_to_a_project("a_wandb_folder_has_a_project", "wandb_save_dir"),
    _belongs_to_swanlab("a_swanlab_project_is_reported_to", "swanlab_project"),
    _belongs_to_swanlab("a_swanlab_experiment_is_reported_to", "swanlab_exp_name"),
)
