"""Full training with frozen parts, and LoRA."""

from __future__ import annotations

import re

from megatron_trainjob.args.field import TRAINING
from megatron_trainjob.args.rules.condition import changed, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, Rule, rule
from megatron_trainjob.args.tree import ARGUMENTS

ADAPTERS = one_of("train_type", "lora", "lora_llm")
REGEXES = ("freeze_parameters_regex", "trainable_parameters_regex", "target_regex")


def _is_a_regular_expression(name: str) -> Rule:
    def broken(facts: Facts) -> str:
        try:
            re.compile(getattr(facts.args, name) or "")
        except re.error as err:
            return f"is not a regular expression ({err}); correct it"
        return ""

    return Rule(name=f"{name}_is_a_regular_expression", about=(name,), broken=broken)


@rule("freeze_parameters_ratio", "pipeline_model_parallel_size", "train_type")
def a_share_is_frozen_only_without_a_pipeline(facts: Facts) -> str:
    """The share is counted from the bottom of the whole model, which a stage does not have; 0 and 1 need no count."""
    ratio = facts.args.freeze_parameters_ratio
    if ratio in (0, 1) or facts.args.pipeline_model_parallel_size == 1 or facts.args.train_type != "full":
        return ""
    return "needs pipeline_model_parallel_size: 1 unless it is 0 or 1; freeze by name instead"


@rule("freeze_parameters_ratio", "trainable_parameters", "trainable_parameters_regex", "train_type")
def something_is_trained(facts: Facts) -> str:
    """Freezing everything leaves no parameter to train."""
    args = facts.args
    if args.freeze_parameters_ratio < 1 or args.train_type != "full":
        return ""
    if args.trainable_parameters or args.trainable_parameters_regex:
        return ""
    return "freezes everything; name what to train in trainable_parameters"


@rule("target_modules", "target_regex", severity="warning")
def modules_are_chosen_in_one_way(facts: Facts) -> str:
    """target_regex replaces target_modules, so a list beside it would be ignored."""
    default = ARGUMENTS["target_modules"].default
    if facts.args.target_regex is None or facts.args.target_modules == default:
        return ""
    return "has no effect with target_regex, which replaces it"


@rule("target_modules", "target_regex", "train_type")
def some_module_gets_an_adapter(facts: Facts) -> str:
    """LoRA without any module trains nothing."""
    args = facts.args
    if args.train_type == "full" or args.target_modules or args.target_regex:
        return ""
    return "is empty; name modules or use all-linear"


@rule("to_hf", "train_type", "merge_lora", tasks=TRAINING, severity="warning")
def a_model_written_after_lora_has_the_adapter_in_it(facts: Facts) -> str:
    """A LoRA run writes its adapter in any case; the model without it would be the original."""
    args = facts.args
    if not args.to_hf or args.train_type == "full" or args.merge_lora:
        return ""
    return "has no effect without merge_lora: true: LoRA training writes its adapter in Hugging Face form, and no model"


FULL = tuple(name for name, argument in ARGUMENTS.items() if argument.group == "tuner_full")
LORA = tuple(name for name, argument in ARGUMENTS.items() if argument.group == "tuner_lora")

RULES = (
    *(
        (idle_with if name.startswith("freeze") else excludes)(
            f"{name}_belongs_to_full_training",
            changed(name),
            ADAPTERS,
            because="LoRA freezes the model and trains its adapters",
            tasks=TRAINING,
        )
        for name in FULL
    ),
    *(
        (needs if name == "adapter_load" else idle_without)(
            f"{name}_belongs_to_lora", changed(name), ADAPTERS, tasks=TRAINING
        )
        for name in LORA
    ),
    *(_is_a_regular_expression(name) for name in REGEXES),
    a_share_is_frozen_only_without_a_pipeline,
    something_is_trained,
    modules_are_chosen_in_one_way,
    some_module_gets_an_adapter,
    a_model_written_after_lora_has_the_adapter_in_it,
    idle_without("only_an_adapter_is_merged", is_("merge_lora", True), ADAPTERS, tasks=TRAINING),
    excludes(
        "lora_needs_no_second_reference_model",
        is_set("ref_load"),
        ADAPTERS,
        because="LoRA compares with the model without its adapters; use ref_adapter_load for another one",
    ),
    needs("a_reference_adapter_belongs_to_lora", is_set("ref_adapter_load"), ADAPTERS),
)
