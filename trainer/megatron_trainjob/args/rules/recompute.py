"""Which settings of activation recomputation belong together."""

from __future__ import annotations

from megatron_trainjob.args import derive, placement
from megatron_trainjob.args.field import EVERY_TASK
from megatron_trainjob.args.rules.condition import changed, contains, is_, is_set
from megatron_trainjob.args.rules.pair import idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, rule


@rule("recompute_modules", "multi_latent_attention", needs_model=True, severity="warning")
def recomputing_the_latent_projection_needs_latent_attention(facts: Facts) -> str:
    """mla_up_proj exists only in multi-head latent attention."""
    if "mla_up_proj" not in facts.args.recompute_modules:
        return ""
    if derive.uses_latent_attention(facts.args, facts.config):
        return ""
    return "has mla_up_proj, which has no effect, because the model has no multi-head latent attention"


@rule(
    "recompute_modules", "recompute_granularity", "num_experts", "moe_layer_freq", needs_model=True, severity="warning"
)
def recomputed_blocks_exist(facts: Facts) -> str:
    """moe and moe_act are parts of layers with experts, mlp is one of the others."""
    args, config = facts.args, facts.config
    if args.recompute_granularity != "selective":
        return ""
    has_experts = derive.num_experts(args, config) > 0
    idle = [name for name in ("moe", "moe_act") if name in args.recompute_modules and not has_experts]
    if idle:
        return f"has {' and '.join(idle)}, which has no effect, because the model has no experts"
    if "mlp" in args.recompute_modules and has_experts and not derive.has_dense_layers(args, config):
        return "has mlp, which has no effect, because every layer of the model has experts; moe recomputes those"
    return ""


@rule("recompute_modules", "fp8_format", "fp8_recipe", "recompute_granularity")
def delayed_fp8_scaling_recomputes_no_outputs(facts: Facts) -> str:
    """moe_act and layernorm discard outputs whose scaling history delayed FP8 would need."""
    args = facts.args
    discarded = sorted({"moe_act", "layernorm"} & set(args.recompute_modules))
    is_delayed = args.fp8_format is not None and args.fp8_recipe == "delayed"
    if not discarded or not is_delayed or args.recompute_granularity != "selective":
        return ""
    return f"cannot have {' and '.join(discarded)} with fp8_recipe: delayed; remove it or use another recipe"


@rule(
    "recompute_num_layers",
    "recompute_method",
    "recompute_granularity",
    "virtual_pipeline_model_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
    "pipeline_model_parallel_size",
    "pipeline_model_parallel_layout",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "num_layers",
    needs_model=True,
)
def recomputed_layers_fit_into_each_stage(facts: Facts) -> str:
    """1 <= recompute_num_layers <= layers of a stage; uniform chunks fill the stage exactly."""
    args = facts.args
    num_layers = derive.model_value(args, facts.config, "num_layers")
    if args.recompute_num_layers is None or args.recompute_granularity != "full" or num_layers is None:
        return ""
    try:
        stages = placement.layers_per_chunk(args, num_layers)
    except ValueError:
        return ""
    if args.recompute_num_layers > min(stages):
        return f"exceeds the {min(stages)} layers of a pipeline stage; use {min(stages)} or fewer"
    uneven = [layers for layers in stages if layers % args.recompute_num_layers]
    if args.recompute_method == "uniform" and uneven:
        return f"does not divide the {uneven[0]} layers of a pipeline stage; use a divisor of {uneven[0]}"
    return ""


MOE_ACT, SELECTIVE = contains("recompute_modules", "moe_act"), is_("recompute_granularity", "selective")
GROUPED = is_("moe_grouped_gemm", True)
WITHOUT_GROUPS = "needs moe_grouped_gemm: true for moe_act; set that, or remove moe_act"


@rule(
    *("recompute_modules", "recompute_granularity", "moe_grouped_gemm"),
    tasks=EVERY_TASK,
    cel=f"!{MOE_ACT.cel()} || !{SELECTIVE.cel()} || {GROUPED.cel()}",
    cel_message=WITHOUT_GROUPS,
)
def recomputing_the_expert_activation_needs_grouped_experts(facts: Facts) -> str:
    """Under other granularities the modules are not read at all, which another rule says."""
    args, task = facts.args, facts.task
    is_asked_for = MOE_ACT.holds(args, task) and SELECTIVE.holds(args, task)
    return WITHOUT_GROUPS if is_asked_for and not GROUPED.holds(args, task) else ""


RULES = (
    idle_without(
        "a_recompute_method_belongs_to_full_recomputation",
        is_set("recompute_method"),
        is_("recompute_granularity", "full"),
    ),
    idle_without(
        "recomputed_layers_belong_to_full_recomputation",
        is_set("recompute_num_layers"),
        is_("recompute_granularity", "full"),
    ),
    needs(
        "full_recomputation_has_a_method",
        is_("recompute_granularity", "full"),
        is_set("recompute_method"),
    ),
    needs(
        "full_recomputation_has_a_number_of_layers",
        is_("recompute_granularity", "full"),
        is_set("recompute_num_layers"),
    ),
    idle_without(
        "recomputed_modules_belong_to_selective_recomputation",
        changed("recompute_modules"),
        is_("recompute_granularity", "selective"),
    ),
    recomputing_the_expert_activation_needs_grouped_experts,
    recomputing_the_latent_projection_needs_latent_attention,
    recomputed_blocks_exist,
    delayed_fp8_scaling_recomputes_no_outputs,
    recomputed_layers_fit_into_each_stage,
)
