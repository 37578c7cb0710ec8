"""Mixture of experts and multi-head latent attention."""

from __future__ import annotations

from collections.abc import Callable

from megatron_trainjob.args import derive
from megatron_trainjob.args.rules.condition import above, changed, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, Rule, rule
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.violation import Severity

EXPERT_ARGUMENTS = tuple(
    argument.name for argument in ARGUMENTS.values() if argument.group == "moe" and argument.name != "num_experts"
)
SHAPES = (
    "moe_layer_freq",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_router_topk",
    "moe_router_topk_scaling_factor",
    "expert_model_parallel_size",
)
"""Arguments that a dense model contradicts, or with which Megatron-Core builds none; others have no effect there."""
LATENT_ARGUMENTS = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim")


def _belongs(
    name: str, suffix: str, has: Callable[[Facts], bool], what: str, switch: str, severity: Severity = "error"
) -> Rule:
    """The rule that an argument is changed only for models with the part it configures."""

    def broken(facts: Facts) -> str:
        if getattr(facts.args, name) == ARGUMENTS[name].default or has(facts):
            return ""
        remedy = "" if severity == "warning" else "; remove it"
        return f"has no effect, because the model has no {what}{remedy}"

    return Rule(name=f"{name}_{suffix}", about=(name, switch), broken=broken, needs_model=True, severity=severity)


def _has_experts(facts: Facts) -> bool:
    return derive.num_experts(facts.args, facts.config) > 0


def _has_latent_attention(facts: Facts) -> bool:
    return derive.uses_latent_attention(facts.args, facts.config)


@rule("expert_model_parallel_size", "num_experts", needs_model=True)
def the_experts_divide_over_expert_ranks(facts: Facts) -> str:
    """num_experts % ep == 0."""
    experts = derive.num_experts(facts.args, facts.config)
    if experts % facts.args.expert_model_parallel_size == 0:
        return ""
    return f"does not divide the {experts} experts of the model; use a divisor of {experts}"


@rule(
    "expert_tensor_parallel_size",
    "tensor_model_parallel_size",
    "moe_ffn_hidden_size",
    "num_experts",
    "ffn_hidden_size",
    needs_model=True,
)
def the_expert_width_divides_over_its_tensor_ranks(facts: Facts) -> str:
    """moe_ffn_hidden_size % etp == 0."""
    args, config = facts.args, facts.config
    width = derive.expert_width(args, config)
    tensor = derive.expert_tensor_parallel_size(args)
    if not _has_experts(facts) or width is None or width % tensor == 0:
        return ""
    return f"does not divide the {width} columns of an expert ({tensor} ranks); use a divisor of {width}"


@rule("sequence_parallel", "tensor_model_parallel_size", "num_experts", needs_model=True)
def tensor_parallel_experts_need_sequence_parallel(facts: Facts) -> str:
    """Megatron-Core refuses to train experts with tensor parallelism without it."""
    args = facts.args
    if args.sequence_parallel or args.tensor_model_parallel_size == 1 or not _has_experts(facts):
        return ""
    return "must be true for a model with experts when tensor_model_parallel_size > 1; set it"


@rule("sequence_parallel", "tensor_model_parallel_size", "multi_latent_attention", needs_model=True)
def tensor_parallel_latent_attention_needs_sequence_parallel(facts: Facts) -> str:
    """Without it Megatron-Core computes wrong gradients for the down projections."""
    args = facts.args
    if args.sequence_parallel or args.tensor_model_parallel_size == 1 or not _has_latent_attention(facts):
        return ""
    return "must be true for multi-head latent attention when tensor_model_parallel_size > 1; set it"


@rule("moe_router_topk", "num_experts", needs_model=True)
def a_token_goes_to_at_most_all_experts(facts: Facts) -> str:
    """moe_router_topk <= num_experts."""
    experts = derive.num_experts(facts.args, facts.config)
    chosen = facts.args.moe_router_topk
    if chosen is None or experts == 0 or chosen <= experts:
        return ""
    return f"exceeds the {experts} experts of the model; use {experts} or fewer"


@rule(
    "moe_router_pre_softmax",
    "moe_router_topk",
    "moe_router_score_function",
    "moe_router_load_balancing_type",
    "num_experts",
    needs_model=True,
)
def a_single_expert_is_chosen_after_the_softmax(facts: Facts) -> str:
    """With one expert per token a softmax over the chosen score would be constant, its gradient zero."""
    args, config = facts.args, facts.config
    if not _has_experts(facts) or derive.router_topk(args, config) != 1:
        return ""
    softmax = derive.router_score_function(args, config) == "softmax"
    if not softmax or args.moe_router_load_balancing_type == "sinkhorn":
        return ""
    if derive.router_pre_softmax(args, config):
        return ""
    return "must be true when each token goes to one expert (moe_router_topk: 1); set it"


@rule(
    "moe_router_enable_expert_bias",
    "moe_router_score_function",
    "num_experts",
    needs_model=True,
)
def an_expert_bias_needs_sigmoid_scores(facts: Facts) -> str:
    """The bias is added to independent scores; softmax scores are not."""
    score = derive.router_score_function(facts.args, facts.config)
    if not facts.args.moe_router_enable_expert_bias or score == "sigmoid":
        return ""
    return "needs moe_router_score_function: sigmoid; set that, or remove moe_router_enable_expert_bias"


@rule(
    "moe_router_bias_update_rate",
    "moe_router_enable_expert_bias",
    "moe_router_score_function",
    needs_model=True,
    severity="warning",
)
def a_bias_update_rate_needs_an_expert_bias(facts: Facts) -> str:
    """Without the bias there is nothing to update."""
    args, config = facts.args, facts.config
    if args.moe_router_bias_update_rate == ARGUMENTS["moe_router_bias_update_rate"].default:
        return ""
    if derive.router_has_bias(args, config):
        return ""
    return "has no effect without moe_router_enable_expert_bias: true"


@rule(
    "moe_shared_expert_overlap",
    "moe_shared_expert_intermediate_size",
    "moe_ffn_hidden_size",
    needs_model=True,
    severity="warning",
)
def overlapped_shared_experts_exist(facts: Facts) -> str:
    """There is something to overlap."""
    if not facts.args.moe_shared_expert_overlap or derive.shared_expert_size(facts.args, facts.config):
        return ""
    return "has no effect, because the model has no shared experts (moe_shared_expert_intermediate_size)"


RULES = (
    *(
        _belongs(
            name,
            "needs_experts",
            _has_experts,
            "experts",
            "num_experts",
            "error" if name in SHAPES else "warning",
        )
        for name in EXPERT_ARGUMENTS
    ),
    *(
        _belongs(
            name,
            "needs_latent_attention",
            _has_latent_attention,
            "multi-head latent attention",
            "multi_latent_attention",
        )
        for name in LATENT_ARGUMENTS
    ),
    the_experts_divide_over_expert_ranks,
    the_expert_width_divides_over_its_tensor_ranks,
    tensor_parallel_experts_need_sequence_parallel,
    tensor_parallel_latent_attention_needs_sequence_parallel,
    a_token_goes_to_at_most_all_experts,
    a_single_expert_is_chosen_after_the_softmax,
    an_expert_bias_needs_sigmoid_scores,
    a_bias_update_rate_needs_an_expert_bias,
    overlapped_shared_experts_exist,
    excludes(
        "spread_experts_are_not_trained_in_fp16",
        above("expert_model_parallel_size", 1),
        is_("fp16", True),
        because="Megatron-Core does not train spread experts in float16",
    ),
    excludes("grouped_experts_are_not_trained_in_fp16", is_("moe_grouped_gemm", True), is_("fp16", True)),
    idle_without(
        "deepep_needs_the_flex_dispatcher",
        is_("moe_enable_deepep", True),
        is_("moe_token_dispatcher_type", "flex"),
    ),
    needs(
        "overlapped_shared_experts_need_the_alltoall_dispatcher",
        is_("moe_shared_expert_overlap", True),
        one_of("moe_token_dispatcher_type", "alltoall"),
    ),
    excludes(
        "spread_experts_do_not_gather_all_tokens",
        above("expert_model_parallel_size", 1),
        is_("moe_token_dispatcher_type", "allgather"),
        because="ranks hold rows of different lengths, which this dispatcher cannot gather",
    ),
    excludes(
        "limited_experts_are_not_balanced_by_sinkhorn",
        is_set("moe_expert_capacity_factor"),
        is_("moe_router_load_balancing_type", "sinkhorn"),
    ),
    idle_with(
        "a_balancing_loss_is_computed_by_its_own_types",
        above("moe_aux_loss_coeff", 0),
        one_of("moe_router_load_balancing_type", "sinkhorn", "none"),
        because="these compute no balancing loss",
    ),
    idle_without(
        "a_balancing_loss_needs_a_weight",
        one_of("moe_router_load_balancing_type", "aux_loss", "seq_aux_loss"),
        above("moe_aux_loss_coeff", 0),
    ),
    idle_without(
        "a_drop_policy_needs_limited_experts",
        changed("moe_token_drop_policy"),
        is_set("moe_expert_capacity_factor"),
    ),
)
