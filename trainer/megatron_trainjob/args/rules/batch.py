"""Batch arithmetic, the length of the run and its evaluation."""

from __future__ import annotations

from megatron_trainjob.args import derive
from megatron_trainjob.args.field import TRAINING
from megatron_trainjob.args.rules.condition import cel_value, is_, is_set
from megatron_trainjob.args.rules.pair import excludes, needs
from megatron_trainjob.args.rules.rule import Facts, rule

PARALLEL_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
)
NO_LENGTH = "or max_epochs is required to determine the length of the run; set one of them"


@rule(
    "train_iters",
    "max_epochs",
    "streaming",
    cel=f"{is_set('train_iters').cel()} || {is_set('max_epochs').cel()} || {is_('streaming', True).cel()}",
    cel_message=NO_LENGTH,
)
def the_length_of_the_run_is_given(facts: Facts) -> str:
    """train_iters or max_epochs; a stream has a separate rule."""
    args = facts.args
    if args.train_iters is not None or args.max_epochs is not None or args.streaming:
        return ""
    return NO_LENGTH


@rule(
    "global_batch_size",
    "micro_batch_size",
    cel=f"{cel_value('global_batch_size')} % {cel_value('micro_batch_size')} == 0",
    cel_message="must be a multiple of micro_batch_size",
)
def the_global_batch_consists_of_whole_micro_batches(facts: Facts) -> str:
    """global_batch_size % micro_batch_size == 0, necessary whatever the number of ranks."""
    size, micro = facts.args.global_batch_size, facts.args.micro_batch_size
    return "" if size % micro == 0 else _not_a_multiple(size, micro, "micro_batch_size")


@rule("global_batch_size", "micro_batch_size", *PARALLEL_SIZES, needs_world_size=True)
def the_global_batch_divides_over_the_ranks(facts: Facts) -> str:
    """global_batch_size % (micro_batch_size * dp) == 0."""
    args, world_size = facts.args, facts.ranks
    if world_size % derive.model_parallel_size(args) or args.global_batch_size % args.micro_batch_size:
        return ""
    copies = derive.data_parallel_size(args, world_size)
    samples = derive.samples_per_micro_step(args, copies)
    if args.global_batch_size % samples == 0:
        return ""
    factors = f"micro_batch_size * data-parallel size = {args.micro_batch_size} * {copies}"
    return _not_a_multiple(args.global_batch_size, samples, factors)


def _not_a_multiple(size: int, divisor: int, meaning: str) -> str:
    below, above = size // divisor * divisor, (size // divisor + 1) * divisor
    nearest = f"{below} or {above}" if below else f"{above}"
    return f"must be a multiple of {meaning} = {divisor}; use {nearest}"


@rule("eval_interval", "val_dataset", "split_dataset_ratio", "cached_dataset", "cached_val_dataset", severity="warning")
def an_evaluation_interval_needs_a_validation_set(facts: Facts) -> str:
    """Without validation data nothing would ever be evaluated."""
    args = facts.args
    if args.eval_interval is None or _has_validation_data(facts):
        return ""
    return "has no effect without validation data (val_dataset or split_dataset_ratio)"


@rule("eval_iters", "val_dataset", "split_dataset_ratio", "cached_dataset", "cached_val_dataset", severity="warning")
def evaluation_steps_need_a_validation_set(facts: Facts) -> str:
    """Without validation data there is nothing to take steps on."""
    if facts.args.eval_iters < 1 or _has_validation_data(facts):
        return ""
    return "has no effect without validation data (val_dataset or split_dataset_ratio)"


@rule(
    "load_best_model_at_end",
    "save_strategy",
    "eval_strategy",
    "save_interval",
    "eval_interval",
    "val_dataset",
    "split_dataset_ratio",
    "cached_dataset",
    "cached_val_dataset",
)
def the_best_checkpoint_was_evaluated(facts: Facts) -> str:
    """Each checkpoint has an evaluation at its own step."""
    args = facts.args
    if not args.load_best_model_at_end:
        return ""
    if not _has_validation_data(facts):
        return "needs validation data; set val_dataset or split_dataset_ratio"
    evaluates, saves = derive.eval_strategy(args), args.save_strategy
    if "no" in (evaluates, saves) or evaluates != saves:
        return (
            f"needs checkpoints and evaluations at the same steps, not {saves} and {evaluates}; use the same for both"
        )
    if saves == "steps" and args.save_interval % derive.eval_interval(args):
        return f"needs an evaluation at each checkpoint; make save_interval a multiple of {derive.eval_interval(args)}"
    return ""


@rule("save_interval", "save_strategy", severity="warning")
def a_distance_of_checkpoints_belongs_to_steps(facts: Facts) -> str:
    """Other strategies do not count steps."""
    args = facts.args
    idle = args.save_strategy != "steps" and "save_interval" in facts.given
    return f"has no effect with save_strategy: {args.save_strategy}" if idle else ""


@rule("eval_interval", "eval_strategy", severity="warning")
def a_distance_of_evaluations_belongs_to_steps(facts: Facts) -> str:
    """Other strategies do not count steps."""
    args = facts.args
    idle = args.eval_interval is not None and derive.eval_strategy(args) != "steps"
    return f"has no effect with eval_strategy: {args.eval_strategy}" if idle else ""


@rule("val_dataset", "eval_strategy", "eval_interval", "save_strategy", severity="warning")
def validation_data_is_evaluated(facts: Facts) -> str:
    """Validation data would otherwise never be used."""
    args = facts.args
    if not args.val_dataset or derive.eval_strategy(args) != "no":
        return ""
    return "has no effect without evaluations; set eval_strategy to steps or epoch"


@rule("split_dataset_ratio", "val_dataset", "eval_strategy", "eval_interval", "save_strategy", severity="warning")
def rows_split_off_are_evaluated(facts: Facts) -> str:
    """They would be neither trained nor evaluated."""
    args = facts.args
    if not args.split_dataset_ratio or args.val_dataset or derive.eval_strategy(args) != "no":
        return ""
    return (
        "keeps rows out of training for evaluations, and there are none; set eval_strategy to steps or epoch, or this "
        "to 0"
    )


@rule("cached_val_dataset", "eval_strategy", "eval_interval", "save_strategy", severity="warning")
def cached_validation_data_is_evaluated(facts: Facts) -> str:
    """As for validation data that is not cached."""
    args = facts.args
    is_idle = bool(args.cached_val_dataset) and derive.eval_strategy(args) == "no"
    return "has no effect without evaluations; set eval_strategy to steps or epoch" if is_idle else ""


def _has_validation_data(facts: Facts) -> bool:
    args = facts.args
    return bool(args.val_dataset or args.split_dataset_ratio or args.cached_dataset or args.cached_val_dataset)


@rule("eval_iters", "streaming", "val_dataset")
def a_streamed_evaluation_has_a_given_length(facts: Facts) -> str:
    """The size of a streamed validation set is unknown."""
    args = facts.args
    if not args.streaming or not args.val_dataset or args.eval_iters >= 0:
        return ""
    return "cannot be derived from a streamed val_dataset; set the number of steps"


RULES = (
    the_best_checkpoint_was_evaluated,
    a_distance_of_checkpoints_belongs_to_steps,
    a_distance_of_evaluations_belongs_to_steps,
    validation_data_is_evaluated,
    rows_split_off_are_evaluated,
    cached_validation_data_is_evaluated,
    *(
        excludes(
            f"a_stream_has_no_epoch_for_{name}",
            is_(name, "epoch"),
            is_("streaming", True),
            because="the length of a stream's epoch is not known in advance",
        )
        for name in ("save_strategy", "eval_strategy")
    ),
    the_length_of_the_run_is_given,
    needs("a_stream_has_a_given_length", is_("streaming", True), is_set("train_iters"), tasks=TRAINING),
    the_global_batch_consists_of_whole_micro_batches,
    the_global_batch_divides_over_the_ranks,
    an_evaluation_interval_needs_a_validation_set,
    evaluation_steps_need_a_validation_set,
    a_streamed_evaluation_has_a_given_length,
)
