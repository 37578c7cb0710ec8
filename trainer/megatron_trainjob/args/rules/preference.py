"""Preference losses: which settings a loss has."""

from __future__ import annotations

from megatron_trainjob.args.field import Task
from megatron_trainjob.args.rules.condition import changed, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, needs
from megatron_trainjob.args.rules.rule import Facts, rule

RLHF: tuple[Task, ...] = ("rlhf",)
# Losses of the difference z between the chosen and the rejected log-ratio; the others treat the two apart.
OF_THE_DIFFERENCE = ("sigmoid", "robust", "exo_pair", "hinge", "ipo")
# Losses whose formula has no label noise.
WITHOUT_LABEL_NOISE = ("hinge", "ipo", "bco_pair", "sppo_hard", "nca_pair", "discopop", "apo_zero", "apo_down")
ALWAYS_WITH_REFERENCE = ("bco_pair", "sppo_hard", "nca_pair", "aot", "aot_pair", "discopop")


@rule("enable_dft_loss", tasks=RLHF)
def dynamic_fine_tuning_is_no_preference_loss(facts: Facts) -> str:
    """It reweights the tokens of one answer; preference losses compare two."""
    return "is not part of preference training; remove it" if facts.args.enable_dft_loss else ""


RULES = (
    excludes(
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
    excludes(
        "without_a_reference_none_is_loaded",
        is_("reference_free", True),
        is_set("ref_load"),
        tasks=RLHF,
    ),
    excludes(
        "without_a_reference_no_adapter_of_it_is_loaded",
        is_("reference_free", True),
        is_set("ref_adapter_load"),
        tasks=RLHF,
    ),
    dynamic_fine_tuning_is_no_preference_loss,
)
