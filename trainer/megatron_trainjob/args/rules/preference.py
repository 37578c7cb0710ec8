"""Preference losses: which settings a loss has."""

from __future__ import annotations

from collections.abc import Callable

from megatron_trainjob.args import derive
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.rules.condition import changed, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, Rule, rule
from megatron_trainjob.args.tree import ARGUMENTS

RLHF: tuple[Task, ...] = ("rlhf",)
# Losses on the difference z of the chosen and the rejected log-ratio; the others treat them separately.
OF_THE_DIFFERENCE = ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "hinge", "ipo", "discopop", "sft")
# Losses of kto.
OF_SINGLE_ANSWERS = ("kto", "apo_zero_unpaired")
# Arguments that apply only to the comparison of two answers.
OF_PAIRS = (
    "loss_types",
    "loss_weights",
    "label_smoothing",
    "rpo_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "discopop_tau",
)
# Losses whose formula has no label noise.
WITHOUT_LABEL_NOISE = ("hinge", "ipo", "bco_pair", "sppo_hard", "nca_pair", "discopop", "apo_zero", "apo_down", "sft")
ALWAYS_WITH_REFERENCE = ("bco_pair", "sppo_hard", "nca_pair", "aot", "aot_pair", "aot_unpaired", "discopop")
# The others weight tokens, but a sum of log-probabilities can only include or exclude a token.
# Arguments that compare a policy with another.
OF_THE_REFERENCE = ("beta", "ref_load", "ref_adapter_load", "reference_free", "precompute_ref_log_probs")
WITHOUT_REFERENCE = "a reward model has one loss and no reference model"
WITHOUT_PAIRS = "it judges each answer alone"
BINARY_LOSS_SCALES = ("default", "last_round", "all", "ignore_empty_think", "last_round_with_ignore_empty_think")


@rule("enable_dft_loss", tasks=RLHF, severity="warning")
def dynamic_fine_tuning_is_no_preference_loss(facts: Facts) -> str:
    """It reweights the tokens of one answer; preference losses judge answers as a whole."""
    return "has no effect in preference training" if facts.args.enable_dft_loss else ""


@rule("loss_weights", "loss_types", tasks=RLHF)
def each_of_several_losses_has_a_weight(facts: Facts) -> str:
    """Weights are matched by position."""
    weights, types = facts.args.loss_weights, facts.args.loss_types
    return f"are {len(weights)} for {len(types)} loss_types; use one for each" if 0 < len(weights) != len(types) else ""


@rule("label_smoothing", "loss_types", tasks=RLHF, severity="warning")
def label_smoothing_is_part_of_some_loss(facts: Facts) -> str:
    """Without a loss with label noise it would have no effect."""
    types = facts.args.loss_types
    if not facts.args.label_smoothing or not types or not set(types) <= set(WITHOUT_LABEL_NOISE):
        return ""
    return f"has no effect, because none of loss_types {', '.join(types)} has label noise"


@rule("f_divergence_type", "loss_types", tasks=RLHF)
def a_divergence_is_part_of_every_loss(facts: Facts) -> str:
    """Losses on single answers support no other divergence: its constant cancels only in a difference."""
    others = [name for name in facts.args.loss_types if name not in OF_THE_DIFFERENCE]
    if facts.args.f_divergence_type == "reverse_kl" or not others:
        return ""
    return f"is not part of {', '.join(others)}; remove these from loss_types or use reverse_kl"


@rule("reference_free", "loss_types", tasks=RLHF)
def some_of_several_losses_always_have_a_reference(facts: Facts) -> str:
    """Their formulas are meaningless without it."""
    bound = [name for name in facts.args.loss_types if name in ALWAYS_WITH_REFERENCE]
    if not facts.args.reference_free or not bound:
        return ""
    return f"cannot be combined with {', '.join(bound)}, which always subtract the reference; remove one of the two"


@rule("discopop_tau", "loss_type", "loss_types", tasks=RLHF, severity="warning")
def a_temperature_is_discopops(facts: Facts) -> str:
    """No other loss has one."""
    args = facts.args
    is_default = args.discopop_tau == ARGUMENTS["discopop_tau"].default
    if is_default or "discopop" in (args.loss_types or (args.loss_type,)):
        return ""
    return "has no effect without loss_type: discopop"


@rule("loss_type", "rlhf_type", tasks=RLHF)
def a_loss_belongs_to_its_algorithm(facts: Facts) -> str:
    """dpo's losses compare two answers, those of kto judge one."""
    args, name = facts.args, facts.args.loss_type
    if args.rlhf_type == "kto" and "loss_type" in facts.given and name not in OF_SINGLE_ANSWERS:
        return f"compares two answers, and kto judges each alone; use {' or '.join(OF_SINGLE_ANSWERS)}, or remove it"
    if args.rlhf_type == "rm" and name != ARGUMENTS["loss_type"].default:
        return "is not part of rm, which has one loss; remove it"
    if args.rlhf_type == "dpo" and name in OF_SINGLE_ANSWERS:
        return "judges each answer alone; it needs rlhf_type: kto"
    return ""


@rule("loss_types", tasks=RLHF)
def losses_of_single_answers_are_not_mixed(facts: Facts) -> str:
    """The others have no value for them."""
    alone = [name for name in facts.args.loss_types if name in OF_SINGLE_ANSWERS]
    return f"cannot hold {', '.join(alone)}, which judge each answer alone; remove them" if alone else ""


@rule("micro_batch_size", "packing", "rlhf_type", "loss_type", "precompute_ref_log_probs", tasks=RLHF)
def a_divergence_is_estimated_from_several_answers(facts: Facts) -> str:
    """A prompt needs the answer of another sample of its micro-batch."""
    args = facts.args
    is_settled = args.precompute_ref_log_probs  # for each sample of a dataset, wherever it is read
    is_enough = args.micro_batch_size > 1 or args.packing or is_settled
    if is_enough or not derive.estimates_divergence(args, facts.task):
        return ""
    return (
        "is too small for kto, whose KL estimate gives each prompt the answer of another sample of its micro-batch; "
        "set it to 2 or more, or packing: true, or precompute_ref_log_probs: true, or loss_type: apo_zero_unpaired"
    )


@rule("no_initialization", "load", tasks=RLHF)
def preference_training_starts_from_a_trained_model(facts: Facts) -> str:
    """Random answers have no preference, and the reference would be another random model."""
    args = facts.args
    return (
        ""
        if args.no_initialization or args.load
        else "must be true, or load a checkpoint; random weights have no preferences"
    )


@rule("loss_scale", tasks=RLHF)
def preference_losses_have_no_token_weights(facts: Facts) -> str:
    """Other strategies give some tokens more or less of a loss that pairs have as a whole."""
    if facts.args.loss_scale in BINARY_LOSS_SCALES:
        return ""
    return f"gives tokens weights, which preference losses do not have; use one of {', '.join(BINARY_LOSS_SCALES)}"


@rule("enable_channel_loss", tasks=RLHF, severity="warning")
def channels_have_no_preference_loss(facts: Facts) -> str:
    """The loss of a pair is not a sum over tokens."""
    return "has no effect in preference training" if facts.args.enable_channel_loss else ""


DETAILS = ("label_smoothing", "f_alpha_divergence_coef", "discopop_tau", *OF_THE_REFERENCE)
"""Arguments without which the same loss is trained; others ask for another loss."""


def _without(name: str) -> Callable[..., Rule]:
    return idle_with if name in DETAILS else excludes


RULES = (
    a_loss_belongs_to_its_algorithm,
    losses_of_single_answers_are_not_mixed,
    a_divergence_is_estimated_from_several_answers,
    *(
        _without(name)(f"kto_has_no_{name}", changed(name), is_("rlhf_type", "kto"), because=WITHOUT_PAIRS, tasks=RLHF)
        for name in OF_PAIRS
    ),
    *(
        _without(name)(
            f"rm_has_no_{name}", changed(name), is_("rlhf_type", "rm"), because=WITHOUT_REFERENCE, tasks=RLHF
        )
        for name in (*OF_PAIRS, *OF_THE_REFERENCE)
    ),
    idle_without(
        "rewards_are_centered_in_rm", is_set("center_rewards_coefficient"), is_("rlhf_type", "rm"), tasks=RLHF
    ),
    excludes(
        "kto_has_a_reference",
        is_("reference_free", True),
        is_("rlhf_type", "kto"),
        because="its rewards are log-ratios of policy and reference",
        tasks=RLHF,
    ),
    *(
        idle_without(f"{name}_belongs_to_kto", changed(name), is_("rlhf_type", "kto"), tasks=RLHF)
        for name in ("desirable_weight", "undesirable_weight")
    ),
    excludes(
        "a_loss_is_chosen_in_one_way",
        is_set("loss_types"),
        changed("loss_type"),
        tasks=RLHF,
    ),
    idle_without(
        "a_coefficient_belongs_to_the_alpha_divergence",
        changed("f_alpha_divergence_coef"),
        is_("f_divergence_type", "alpha_divergence"),
        tasks=RLHF,
    ),
    each_of_several_losses_has_a_weight,
    label_smoothing_is_part_of_some_loss,
    a_divergence_is_part_of_every_loss,
    some_of_several_losses_always_have_a_reference,
    a_temperature_is_discopops,
    preference_training_starts_from_a_trained_model,
    preference_losses_have_no_token_weights,
    channels_have_no_preference_loss,
    idle_with(
        "label_smoothing_is_part_of_the_loss",
        changed("label_smoothing"),
        one_of("loss_type", *WITHOUT_LABEL_NOISE),
        because="these losses have no label noise",
        tasks=RLHF,
    ),
    needs(
        "a_divergence_is_part_of_the_loss",
        changed("f_divergence_type"),
        one_of("loss_type", *OF_THE_DIFFERENCE),
        tasks=RLHF,
    ),
    excludes(
        "some_losses_always_have_a_reference",
        is_("reference_free", True),
        one_of("loss_type", *ALWAYS_WITH_REFERENCE),
        because="these losses always subtract the reference",
        tasks=RLHF,
    ),
    *(
        idle_with(name, condition, is_("reference_free", True), because="there is no reference model", tasks=RLHF)
        for name, condition in (
            ("without_a_reference_none_is_asked", is_("precompute_ref_log_probs", True)),
            ("without_a_reference_none_is_loaded", is_set("ref_load")),
            ("without_a_reference_no_adapter_of_it_is_loaded", is_set("ref_adapter_load")),
        )
    ),
    excludes(
        "a_stream_is_not_known_beforehand",
        is_("precompute_ref_log_probs", True),
        is_("streaming", True),
        because="the pairs of a stream are not known before training",
        tasks=RLHF,
    ),
    idle_with(
        "pairs_that_are_known_beforehand_are_not_lazy",
        is_("lazy_tokenize", True),
        is_("precompute_ref_log_probs", True),
        because="all pairs are tokenized before training",
        tasks=RLHF,
    ),
    dynamic_fine_tuning_is_no_preference_loss,
)
