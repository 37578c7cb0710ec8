"""Heads in place of the output layer: which settings belong to which task_type."""

from __future__ import annotations

from megatron_trainjob.args.field import Task
from megatron_trainjob.args.rules.condition import is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, needs
from megatron_trainjob.args.rules.rule import Facts, rule

CLASSIFIER = is_("task_type", "seq_cls")
OTHERS: tuple[Task, ...] = ("pt", "rlhf")


@rule("task_type", tasks=OTHERS)
def heads_are_trained_by_supervision(facts: Facts) -> str:
    """Plain text and preferences have no labels."""
    kind = facts.args.task_type
    return "" if kind in (None, "causal_lm") else f"{kind} is a kind of task sft; change the task"


@rule("problem_type", "num_labels")
def one_class_is_no_choice(facts: Facts) -> str:
    """A single score always means the same class."""
    args = facts.args
    if args.problem_type != "single_label_classification" or args.num_labels != 1:
        return ""
    return "needs num_labels of 2 or more; with one score use regression"


RULES = (
    heads_are_trained_by_supervision,
    one_class_is_no_choice,
    needs("scores_belong_to_a_classifier", is_set("num_labels"), CLASSIFIER),
    needs("a_problem_belongs_to_a_classifier", is_set("problem_type"), CLASSIFIER),
    *(
        rule_of(name, condition, CLASSIFIER, because="a classifier has one loss for a sequence", tasks=("sft",))
        for name, rule_of, condition in (
            ("a_classifier_has_no_token_losses_to_reweight", excludes, is_("enable_dft_loss", True)),
            ("a_classifier_has_no_losses_of_channels", idle_with, is_("enable_channel_loss", True)),
        )
    ),
    *(
        excludes(name, is_set(argument), CLASSIFIER, because="stored tokens have no labels", tasks=("sft",))
        for name, argument in (
            ("cached_data_has_no_labels", "cached_dataset"),
            ("cached_validation_data_has_no_labels", "cached_val_dataset"),
        )
    ),
    idle_with(
        "a_classifier_has_no_cross_entropy_of_tokens",
        is_("cross_entropy_loss_fusion", True),
        one_of("task_type", "seq_cls", "embedding", "reranker", "generative_reranker"),
        because="what is scored is a few numbers for each sequence",
        tasks=("sft",),
    ),
)
