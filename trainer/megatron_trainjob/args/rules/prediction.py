"""Rules about multi-token prediction."""

from __future__ import annotations

from megatron_trainjob.args.field import TRAINING
from megatron_trainjob.args.rules.condition import changed, is_set
from megatron_trainjob.args.rules.pair import idle_without
from megatron_trainjob.args.rules.rule import Facts, rule


@rule("mtp_num_layers", "recompute_granularity", "recompute_method", "recompute_num_layers", tasks=TRAINING)
def predicting_layers_are_recomputed_one_by_one(facts: Facts) -> str:
    """Megatron-Core recomputes each of them alone."""
    args = facts.args
    is_full = args.recompute_granularity == "full" and args.recompute_method == "uniform"
    if args.mtp_num_layers is None or not is_full or args.recompute_num_layers in (None, 1):
        return ""
    return "cannot be recomputed in chunks of several layers; set recompute_num_layers to 1, or recompute_method: block"


@rule("mtp_num_layers", "train_type", "merge_lora", tasks=TRAINING, severity="warning")
def adapters_of_predicting_layers_need_a_merged_model(facts: Facts) -> str:
    """transformers builds no such layers, so PEFT has nowhere to put their adapters."""
    args = facts.args
    if args.mtp_num_layers is None or args.train_type == "full" or args.merge_lora:
        return ""
    return (
        "has no effect where PEFT loads the adapter, for transformers builds no such layers; set merge_lora: true to "
        "get a model that has them, or merge later with mtj export"
    )


RULES = (
    predicting_layers_are_recomputed_one_by_one,
    adapters_of_predicting_layers_need_a_merged_model,
    idle_without("a_loss_factor_needs_predicting_layers", changed("mtp_loss_scaling_factor"), is_set("mtp_num_layers")),
)
