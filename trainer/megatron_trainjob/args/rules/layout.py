"""How the model fits onto the ranks."""

from __future__ import annotations

from megatron_trainjob.args import derive, placement
from megatron_trainjob.args.field import TRAINING
from megatron_trainjob.args.rules.batch import PARALLEL_SIZES
from megatron_trainjob.args.rules.condition import above, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, rule


@rule(*PARALLEL_SIZES, needs_world_size=True)
def the_ranks_divide_into_copies_of_the_model(facts: Facts) -> str:
    """world size % (tp * pp * cp) == 0."""
    args, ranks = facts.args, derive.model_parallel_size(facts.args)
    if facts.ranks % ranks == 0:
        return ""
    sizes = f"{args.tensor_model_parallel_size} * {args.pipeline_model_parallel_size} * {args.context_parallel_size}"
    return (
        f"times pipeline_model_parallel_size and context_parallel_size is {sizes} = {ranks} ranks for one copy of the "
        f"model, and {facts.ranks} ranks are not divisible by that; use {_multiples(facts.ranks, ranks)} ranks or "
        f"other sizes"
    )


@rule(
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    needs_world_size=True,
)
def the_ranks_divide_into_copies_of_the_experts(facts: Facts) -> str:
    """world size % (etp * ep * pp) == 0, for models that spread experts."""
    args, world_size = facts.args, facts.ranks
    if args.expert_model_parallel_size == 1 and args.expert_tensor_parallel_size is None:
        return ""
    tensor = derive.expert_tensor_parallel_size(args)
    ranks = tensor * args.expert_model_parallel_size * args.pipeline_model_parallel_size
    if world_size % ranks == 0:
        return ""
    sizes = f"{tensor} * {args.expert_model_parallel_size} * {args.pipeline_model_parallel_size}"
    return (
        f"expert tensor * expert * pipeline parallel size = {sizes} = {ranks} ranks hold all experts, and "
        f"{world_size} ranks are not divisible by that; set expert_tensor_parallel_size: 1 or use other sizes"
    )


@rule(
    "pipeline_model_parallel_size",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "pipeline_model_parallel_layout",
    "num_layers",
    needs_model=True,
)
def the_layers_divide_into_stages(facts: Facts) -> str:
    """Layers not explicitly placed on the first or last stage are distributed evenly over the others."""
    args = facts.args
    num_layers = derive.model_value(args, facts.config, "num_layers")
    if num_layers is None or args.pipeline_model_parallel_layout:
        return ""
    try:
        placement.layers_per_stage(args, num_layers)
    except ValueError as err:
        return f"{err}; change it, or set decoder_first_pipeline_num_layers or decoder_last_pipeline_num_layers"
    return ""


@rule(
    "virtual_pipeline_model_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
    "pipeline_model_parallel_size",
    "pipeline_model_parallel_layout",
    "num_layers",
    needs_model=True,
)
def the_layers_divide_into_virtual_stages(facts: Facts) -> str:
    """Every chunk of an interleaved schedule has the same number of layers, unless a layout says otherwise."""
    num_layers = derive.model_value(facts.args, facts.config, "num_layers")
    if num_layers is None or facts.args.pipeline_model_parallel_layout:
        return ""
    try:
        placement.virtual_stages(facts.args, num_layers)
    except ValueError as err:
        return str(err)
    return ""


@rule("pipeline_model_parallel_layout", "pipeline_model_parallel_size", "mtp_num_layers", tasks=TRAINING)
def the_layout_is_one_of_these_stages(facts: Facts) -> str:
    """It can be read, gives each stage as many chunks, and places as many layers of multi-token prediction."""
    args = facts.args
    if not args.pipeline_model_parallel_layout or args.pipeline_model_parallel_size == 1:
        return ""
    try:
        layout = placement.read_layout(args.pipeline_model_parallel_layout)
    except ValueError as err:
        return f"{err}; correct it"
    stages, number = args.pipeline_model_parallel_size, len(layout.chunks)
    if number % stages:
        return f"has {number} chunks, not a multiple of {stages} stages; separate a multiple of {stages} by |"
    placed, predicting = layout.count(placement.PREDICTION), args.mtp_num_layers or 0
    if placed != predicting:
        return f"has {placed} times m, and mtp_num_layers is {predicting}; both count the same layers"
    return ""


@rule(
    "pipeline_model_parallel_layout",
    "virtual_pipeline_model_parallel_size",
    "pipeline_model_parallel_size",
    "mtp_num_layers",
    "num_layers",
    needs_model=True,
)
def the_layout_places_every_layer(facts: Facts) -> str:
    """As many layers as the model has, in as many chunks as virtual_pipeline_model_parallel_size says."""
    args = facts.args
    num_layers = derive.model_value(args, facts.config, "num_layers")
    if not args.pipeline_model_parallel_layout or num_layers is None or the_layout_is_one_of_these_stages.broken(facts):
        return ""
    try:
        placement.virtual_stages(args, num_layers)
    except ValueError as err:
        return f"{err}; correct it"
    return ""


def _interleaves(facts: Facts) -> bool:
    args = facts.args
    if args.pipeline_model_parallel_layout:
        try:
            chunks_in_all = len(placement.read_layout(args.pipeline_model_parallel_layout).chunks)
        except ValueError:
            return False
        return chunks_in_all > args.pipeline_model_parallel_size > 1
    chunks, layers = args.virtual_pipeline_model_parallel_size, args.num_layers_per_virtual_pipeline_stage
    return args.pipeline_model_parallel_size > 1 and ((chunks or 1) > 1 or layers is not None)


@rule(
    "virtual_pipeline_model_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
    "pipeline_model_parallel_layout",
    "global_batch_size",
    "micro_batch_size",
    *PARALLEL_SIZES,
    needs_world_size=True,
)
def micro_batches_fill_the_interleaved_schedule(facts: Facts) -> str:
    """It needs a multiple of the number of stages."""
    args, stages = facts.args, facts.args.pipeline_model_parallel_size
    if not _interleaves(facts):
        return ""
    try:
        number = derive.num_micro_batches(args, facts.ranks)
    except ValueError:
        return ""
    if number % stages == 0:
        return ""
    each = args.global_batch_size // number * stages
    return (
        f"needs a number of micro-batches divisible by {stages} stages, not {number}; make global_batch_size "
        f"a multiple of {each}"
    )


@rule("tensor_model_parallel_size", "num_attention_heads", needs_model=True)
def the_attention_heads_divide_over_tensor_ranks(facts: Facts) -> str:
    """heads % tp == 0."""
    return _divides(facts, "num_attention_heads", "attention heads")


@rule("tensor_model_parallel_size", "ffn_hidden_size", needs_model=True)
def the_feed_forward_width_divides_over_tensor_ranks(facts: Facts) -> str:
    """ffn_hidden_size % tp == 0."""
    return _divides(facts, "ffn_hidden_size", "columns of the feed-forward block")


@rule("tensor_model_parallel_size", "num_query_groups", "num_attention_heads", needs_model=True)
def the_key_value_heads_match_the_tensor_ranks(facts: Facts) -> str:
    """Key-value heads % tp == 0, or tp % key-value heads == 0: then ranks share a head."""
    args = facts.args
    tensor = args.tensor_model_parallel_size
    groups = derive.model_value(args, facts.config, "num_query_groups")
    if groups % tensor == 0 or tensor % groups == 0:
        return ""
    return f"{groups} key-value heads and {tensor} ranks do not divide; use a divisor of {groups}"


def _divides(facts: Facts, name: str, meaning: str) -> str:
    number = derive.model_value(facts.args, facts.config, name)
    tensor = facts.args.tensor_model_parallel_size
    if number is None or number % tensor == 0:
        return ""
    return f"does not divide the {number} {meaning} of the model; use a divisor of {number}"


def _multiples(world_size: int, ranks: int) -> str:
    below = world_size // ranks * ranks
    return f"{below} or {below + ranks}" if below else f"{ranks}"


RULES = (
    the_ranks_divide_into_copies_of_the_model,
    the_ranks_divide_into_copies_of_the_experts,
    the_layers_divide_into_stages,
    the_layers_divide_into_virtual_stages,
    the_layout_is_one_of_these_stages,
    the_layout_places_every_layer,
    micro_batches_fill_the_interleaved_schedule,
    *(
        idle_without(f"{name}_needs_a_pipeline", is_set(name), above("pipeline_model_parallel_size", 1))
        for name in (
            "virtual_pipeline_model_parallel_size",
            "num_layers_per_virtual_pipeline_stage",
            "pipeline_model_parallel_layout",
        )
    ),
    *(
        excludes(
            f"a_layout_excludes_{other}",
            is_set("pipeline_model_parallel_layout"),
            is_set(other),
            because="the layout says how many layers each chunk has",
        )
        for other in (
            "num_layers_per_virtual_pipeline_stage",
            "decoder_first_pipeline_num_layers",
            "decoder_last_pipeline_num_layers",
        )
    ),
    *(
        excludes(
            f"{virtual}_excludes_{uneven}",
            is_set(virtual),
            is_set(uneven),
            because="the chunks of an interleaved schedule are even",
        )
        for virtual in ("virtual_pipeline_model_parallel_size", "num_layers_per_virtual_pipeline_stage")
        for uneven in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
    ),
    the_attention_heads_divide_over_tensor_ranks,
    the_feed_forward_width_divides_over_tensor_ranks,
    the_key_value_heads_match_the_tensor_ranks,
    *(
        idle_without(
            f"{name}_needs_a_pipeline",
            is_set(name),
            above("pipeline_model_parallel_size", 1),
        )
        for name in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
    ),
    idle_without(
        "sequence_parallel_needs_tensor_parallel",
        is_("sequence_parallel", True),
        above("tensor_model_parallel_size", 1),
    ),
    excludes(
        "sequence_parallel_excludes_dropping_pad_tokens",
        is_("mlp_padding_free", True),
        is_("sequence_parallel", True),
    ),
    excludes(
        "context_parallel_excludes_dropping_pad_tokens",
        is_("mlp_padding_free", True),
        above("context_parallel_size", 1),
        because="each rank has parts of the rows and no mask of their padding",
    ),
    idle_without(
        "tensor_overlap_needs_sequence_parallel",
        is_("tp_comm_overlap", True),
        is_("sequence_parallel", True),
    ),
    idle_without(
        "parameter_overlap_needs_the_distributed_optimizer",
        is_("overlap_param_gather", True),
        is_("use_distributed_optimizer", True),
    ),
    idle_with(
        "parameter_overlap_is_of_adam",
        is_("overlap_param_gather", True),
        one_of("optimizer", "muon", "dist_muon", "lion"),
        because="whole tensors are gathered right after the step",
    ),
    needs(
        "parameter_overlap_needs_gradient_overlap",
        is_("overlap_param_gather", True),
        is_("overlap_grad_reduce", True),
    ),
    idle_without(
        "a_missing_checkpoint_is_tolerated_only_when_one_is_named",
        is_("exit_on_missing_checkpoint", False),
        is_set("load"),
    ),
)
