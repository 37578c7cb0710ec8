"""Optimizer, learning rate and weight decay."""

from __future__ import annotations

from megatron_trainjob.args import derive
from megatron_trainjob.args.rules.condition import above, changed, is_, is_set
from megatron_trainjob.args.rules.pair import excludes, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, rule

LOW_PRECISION_STATE = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")


@rule("min_lr", "lr", "train_type")
def the_learning_rate_falls(facts: Facts) -> str:
    """min_lr <= lr."""
    peak = derive.learning_rate(facts.args)
    return "" if facts.args.min_lr <= peak else f"is above the peak learning rate {peak:g}; use a smaller one"


@rule("lr_warmup_iters", "lr_decay_iters", "train_iters")
def the_warmup_is_shorter_than_the_decay(facts: Facts) -> str:
    """lr_warmup_iters < lr_decay_iters, or train_iters, where they are known."""
    decay = facts.args.lr_decay_iters or facts.args.train_iters
    if decay is None or facts.args.lr_warmup_iters < decay:
        return ""
    return f"must be less than the {decay} steps of the decay; use at most {decay - 1}"


@rule("lr_warmup_fraction")
def the_warmup_leaves_something_to_decay(facts: Facts) -> str:
    """A warmup over all steps would never reach the decay."""
    if facts.args.lr_warmup_fraction != 1:
        return ""
    return "must be less than 1, or the learning rate never gets beyond its warmup"


RULES = (
    excludes(
        "the_warmup_has_one_length",
        is_set("lr_warmup_fraction"),
        above("lr_warmup_iters", 0),
        because="both set the length of the warmup",
    ),
    needs("a_late_decay_has_a_length", is_("lr_decay_style", "WSD"), is_set("lr_wsd_decay_iters")),
    *(
        idle_without(f"{name}_belongs_to_a_late_decay", changed(name), is_("lr_decay_style", "WSD"))
        for name in ("lr_wsd_decay_style", "lr_wsd_decay_iters")
    ),
    the_learning_rate_falls,
    the_warmup_is_shorter_than_the_decay,
    the_warmup_leaves_something_to_decay,
    needs(
        "sgd_state_is_not_sharded",
        is_("optimizer", "sgd"),
        is_("use_distributed_optimizer", False),
        because="Megatron-Core's distributed optimizer stores Adam's state only",
    ),
    idle_without("momentum_belongs_to_sgd", changed("sgd_momentum"), is_("optimizer", "sgd")),
    idle_without("first_beta_belongs_to_adam", changed("adam_beta1"), is_("optimizer", "adam")),
    idle_without("second_beta_belongs_to_adam", changed("adam_beta2"), is_("optimizer", "adam")),
    idle_without("epsilon_belongs_to_adam", changed("adam_eps"), is_("optimizer", "adam")),
    idle_without(
        "an_offload_fraction_needs_offload",
        changed("optimizer_offload_fraction"),
        is_("optimizer_cpu_offload", True),
    ),
    needs(
        "the_precision_aware_optimizer_is_adam",
        is_("use_precision_aware_optimizer", True),
        is_("optimizer", "adam"),
    ),
    needs(
        "the_precision_aware_optimizer_is_distributed",
        is_("use_precision_aware_optimizer", True),
        is_("use_distributed_optimizer", True),
    ),
    *(
        needs(
            f"{name}_belongs_to_the_precision_aware_optimizer",
            changed(name),
            is_("use_precision_aware_optimizer", True),
        )
        for name in LOW_PRECISION_STATE
    ),
    needs(
        "an_offloaded_optimizer_is_precision_aware",
        is_("optimizer_cpu_offload", True),
        is_("use_precision_aware_optimizer", True),
        because="Megatron-Core restores no other offloaded optimizer from a checkpoint",
    ),
    *(
        excludes(
            f"an_offloaded_optimizer_ignores_{name}",
            changed(name),
            is_("optimizer_cpu_offload", True),
            because="Megatron-Core's offloaded state is float32",
        )
        for name in LOW_PRECISION_STATE
        if name != "main_grads_dtype"
    ),
)
