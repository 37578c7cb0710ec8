"""Optimizer, learning rate and weight decay."""

from __future__ import annotations

import math

from megatron_trainjob.args import derive, head
from megatron_trainjob.args.field import EVERY_TASK
from megatron_trainjob.args.rules.condition import above, changed, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, rule

MUON = ("muon", "dist_muon")
OF_MUON = (
    "muon_momentum",
    "muon_split_qkv",
    "muon_use_nesterov",
    "muon_scale_mode",
    "muon_fp32_matmul_prec",
    "muon_num_ns_steps",
    "muon_tp_mode",
    "muon_extra_scale_factor",
)
OF_PARALLEL_MUON = (changed("muon_tp_mode"), one_of("optimizer", *MUON))
SEVERAL_RANKS = above("tensor_model_parallel_size", 1)
WITHOUT_RANKS = f"has no effect without {SEVERAL_RANKS.words()}"
OF_THE_OTHER_RATE = ("embedding", "word_embeddings", "output_layer")
"""Modules whose weights Megatron-Core marks for decoupled_lr, and the one around them."""
LOW_PRECISION_STATE = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")


@rule("min_lr", "lr", "train_type")
def the_learning_rate_falls(facts: Facts) -> str:
    """min_lr <= lr."""
    peak = derive.learning_rate(facts.args)
    return "" if facts.args.min_lr <= peak else f"is above the peak learning rate {peak:g}; use a smaller one"


@rule("lr_warmup_init", "lr", "train_type")
def the_warmup_rises(facts: Facts) -> str:
    """lr_warmup_init <= lr."""
    peak = derive.learning_rate(facts.args)
    is_lower = facts.args.lr_warmup_init <= peak
    return "" if is_lower else f"is above the peak learning rate {peak:g}; use a smaller one"


@rule("lr_warmup_init", "lr_warmup_iters", "lr_warmup_fraction", severity="warning")
def a_start_of_the_warmup_has_a_warmup(facts: Facts) -> str:
    """lr_warmup_init is the rate of the first step of a warmup."""
    args = facts.args
    is_used = not args.lr_warmup_init or args.lr_warmup_iters or args.lr_warmup_fraction
    return "" if is_used else "has no effect without lr_warmup_iters or lr_warmup_fraction"


@rule("decoupled_min_lr", "decoupled_lr", "min_lr")
def the_other_learning_rate_falls(facts: Facts) -> str:
    """decoupled_min_lr (else min_lr) <= decoupled_lr."""
    args = facts.args
    peak, floor = args.decoupled_lr, args.min_lr if args.decoupled_min_lr is None else args.decoupled_min_lr
    if peak is None or floor <= peak:
        return ""
    return f"gives {floor:g} as the end of a rate whose peak decoupled_lr is {peak:g}; set a smaller one"


@rule("optimizer", "fp16", "bf16", "torch_dtype", needs_model=True)
def a_matrix_optimizer_has_no_loss_scale(facts: Facts) -> str:
    """muon and lion train in bfloat16 or float32."""
    fp16, _ = derive.fp16_bf16(facts.args, facts.config)
    if not fp16 or not derive.is_matrix_optimizer(facts.args):
        return ""
    return "does not train in float16, for which Megatron-Core scales the loss with adam and sgd only; set bf16: true"


@rule("lr_warmup_iters", "lr_decay_iters", "train_iters")
def the_warmup_is_shorter_than_the_decay(facts: Facts) -> str:
    """lr_warmup_iters < lr_decay_iters, or train_iters, if known."""
    decay = facts.args.lr_decay_iters or facts.args.train_iters
    if decay is None or facts.args.lr_warmup_iters < decay:
        return ""
    return f"must be less than the {decay} steps of the decay; use at most {decay - 1}"


@rule("lr_warmup_fraction")
def the_warmup_leaves_something_to_decay(facts: Facts) -> str:
    """A warmup over all steps would never reach the decay."""
    if facts.args.lr_warmup_fraction != 1:
        return ""
    return "must be less than 1, or the learning rate never leaves its warmup"


@rule(
    *("lr_wsd_decay_iters", "lr_decay_style", "lr_warmup_iters", "lr_warmup_fraction", "lr_decay_iters", "train_iters")
)
def the_late_decay_begins_after_the_warmup(facts: Facts) -> str:
    """lr_wsd_decay_iters fits between warmup and end, if known: else the rate would jump to a point of the decay."""
    args = facts.args
    decay, late = args.lr_decay_iters or args.train_iters, args.lr_wsd_decay_iters
    if decay is None or late is None or args.lr_decay_style != "WSD":
        return ""
    fraction = args.lr_warmup_fraction
    warmup = args.lr_warmup_iters if fraction is None else round(fraction * decay, 6)
    if late <= decay - warmup:
        return ""
    most = math.floor(decay - warmup)
    return f"does not fit between a warmup of {warmup:g} steps and the end after {decay}; use at most {most}"


@rule("decoupled_lr", "train_type", "modules_to_save", "task_type", "rlhf_type", severity="warning")
def the_other_rate_has_something_to_train(facts: Facts) -> str:
    """LoRA trains embedding and output layer only where modules_to_save names one; a head of scores is neither."""
    args = facts.args
    known = ("embedding", "word_embeddings") if head.replaces_output(args) else OF_THE_OTHER_RATE
    is_trained = any(name.rpartition(".")[2] in known for name in args.modules_to_save)
    if args.decoupled_lr is None or args.train_type == "full" or is_trained:
        return ""
    return f"has no effect under LoRA without {' or '.join(known[1:])} in modules_to_save: nothing of its own trains"


@rule(
    *("muon_tp_mode", "optimizer", "tensor_model_parallel_size"),
    tasks=EVERY_TASK,
    cel=f"!{OF_PARALLEL_MUON[0].cel()} || !{OF_PARALLEL_MUON[1].cel()} || {SEVERAL_RANKS.cel()}",
    cel_message=WITHOUT_RANKS,
    severity="warning",
)
def a_tensor_parallel_mode_needs_ranks(facts: Facts) -> str:
    """Without muon it has no effect either, which is said once."""
    is_asked_for = all(each.holds(facts.args, facts.task) for each in OF_PARALLEL_MUON)
    return WITHOUT_RANKS if is_asked_for and not SEVERAL_RANKS.holds(facts.args, facts.task) else ""


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
    the_warmup_rises,
    a_start_of_the_warmup_has_a_warmup,
    the_other_learning_rate_falls,
    the_warmup_is_shorter_than_the_decay,
    the_warmup_leaves_something_to_decay,
    the_late_decay_begins_after_the_warmup,
    needs(
        "sgd_state_is_not_sharded",
        is_("optimizer", "sgd"),
        is_("use_distributed_optimizer", False),
        because="Megatron-Core's distributed optimizer stores Adam's state only",
    ),
    idle_without("momentum_belongs_to_sgd", changed("sgd_momentum"), is_("optimizer", "sgd")),
    *(
        idle_without(f"{rule}_belongs_to_adam", changed(name), one_of("optimizer", "adam", *MUON))
        for rule, name in (("first_beta", "adam_beta1"), ("second_beta", "adam_beta2"), ("epsilon", "adam_eps"))
    ),
    *(idle_without(f"{name}_belongs_to_muon", changed(name), one_of("optimizer", *MUON)) for name in OF_MUON),
    a_tensor_parallel_mode_needs_ranks,
    *(
        idle_without(f"{name}_belongs_to_lion", changed(name), is_("optimizer", "lion"))
        for name in ("lion_beta1", "lion_beta2")
    ),
    idle_with(
        "dist_muon_is_always_spread",
        is_("use_distributed_optimizer", False),
        is_("optimizer", "dist_muon"),
        because="it is what shards the state; set muon",
    ),
    idle_without("a_floor_of_the_other_rate_needs_that_rate", is_set("decoupled_min_lr"), is_set("decoupled_lr")),
    the_other_rate_has_something_to_train,
    a_matrix_optimizer_has_no_loss_scale,
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
