"""Model source, datasets, packing and streaming."""

from __future__ import annotations

import re

from megatron_trainjob.args import derive
from megatron_trainjob.args.field import TRAINING
from megatron_trainjob.args.rules.condition import changed, is_, is_set, one_of
from megatron_trainjob.args.rules.pair import excludes, idle_with, idle_without
from megatron_trainjob.args.rules.rule import Facts, Rule, rule
from megatron_trainjob.families import untrained

NO_MODEL = "is missing; set it to a Hub id or a folder with config.json and tokenizer"
NO_DATA = "is missing; set it, or cached_dataset, to the data to train on"
PLACES = (
    *("model", "load", "adapter_load", "ref_load", "ref_adapter_load", "save", "tensorboard_dir"),
    *("dataset", "val_dataset", "cached_dataset", "cached_val_dataset", "custom_dataset_info", "image_root"),
)
SHELL_VARIABLE = re.compile(r"\$(?:\{?[A-Za-z_0-9@*]|\()|`")
HOME = re.compile(r"~(?:[\w-]*/|$)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ROPE_SCALINGS = ("linear", "dynamic", "yarn")


@rule(
    "model",
    "load",
    "adapter_load",
    cel=" || ".join(is_set(name).cel() for name in ("model", "load", "adapter_load")),
    cel_message=NO_MODEL,
)
def the_model_is_given(facts: Facts) -> str:
    """A hub id or folder, or a checkpoint whose args.json names it."""
    if facts.args.model or facts.args.load or facts.args.adapter_load:
        return ""
    return NO_MODEL


@rule("model", "use_hf", severity="warning")
def an_id_of_the_hub_is_fetched_on_request(facts: Facts) -> str:
    """What looks like one is a folder without use_hf, which a container rarely has in its working directory."""
    model = facts.args.model
    if facts.args.use_hf or not HUB_ID.fullmatch(model or ""):
        return ""
    return (
        f"is read as a folder of the working directory; set use_hf: true for the Hub's, or write ./{model} for a folder"
    )


@rule("model", severity="warning")
def the_family_of_a_name_is_trained(facts: Facts) -> str:
    """Where only the name is known; the family of a folder is checked by its config.json."""
    reason = untrained.by_name(facts.args.model or "") if facts.hf_config is None else ""
    return f"by its name this model cannot be trained: {reason}" if reason else ""


@rule(
    "dataset",
    "cached_dataset",
    "load_data_args",
    cel=" || ".join(
        (
            is_set("dataset").cel(),
            is_set("cached_dataset").cel(),
            is_("load_data_args", True).cel(),
        )  # read from args.json
    ),
    cel_message=NO_DATA,
)
def training_data_is_given(facts: Facts) -> str:
    """At least one dataset, tokenized or not, here or in the args.json of the checkpoint."""
    if facts.args.dataset or facts.args.cached_dataset or facts.args.load_data_args:
        return ""
    return NO_DATA


def _no_variable_of_a_shell(name: str) -> Rule:
    """A manifest is no script: `$DATA` and `~` would be folders of that very name."""

    def broken(facts: Facts) -> str:
        values = _listed(getattr(facts.args, name))
        found = next((value for value in values if SHELL_VARIABLE.search(value)), "")
        if found:
            return f"has a variable of a shell in {found!r}, which nothing replaces here; write its value"
        home = next((value for value in values if HOME.match(value)), "")
        return f"begins with the ~ of a shell in {home!r}, which nothing replaces here; write the path" if home else ""

    return Rule(name=f"{name}_is_no_variable_of_a_shell", about=(name,), broken=broken)


def is_of_a_shell(path: str) -> bool:
    """Whether a shell would replace part of this path, which is refused."""
    return bool(SHELL_VARIABLE.search(path) or HOME.match(path))


def _listed(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


@rule("interleave_prob", "dataset")
def each_data_set_has_a_probability(facts: Facts) -> str:
    """As many probabilities as datasets."""
    probabilities, datasets = facts.args.interleave_prob, facts.args.dataset
    if probabilities is None or len(probabilities) == len(datasets):
        return ""
    return f"has {len(probabilities)} values for {len(datasets)} data sets; use one for each"


@rule("interleave_prob")
def the_probabilities_of_data_sets_sum_to_one(facts: Facts) -> str:
    """They are a distribution."""
    probabilities = facts.args.interleave_prob
    if probabilities is None or abs(sum(probabilities) - 1) < 1e-6:
        return ""
    return f"must sum to 1, not to {sum(probabilities):g}"


@rule("num_workers", "streaming", severity="warning")
def a_stream_has_one_worker(facts: Facts) -> str:
    """Several workers would each read the whole stream."""
    if not facts.args.streaming or "num_workers" not in facts.given or facts.args.num_workers == 1:
        return ""
    return "has no effect with streaming: true, because a stream has only one worker"


@rule("dataloader_type", "streaming", severity="warning")
def a_stream_gives_its_own_order(facts: Facts) -> str:
    """Streams are read in their own order."""
    args = facts.args
    if args.streaming and "dataloader_type" in facts.given and args.dataloader_type != "external":
        return "has no effect with streaming: true, because a stream has its own order"
    return ""


@rule("dataloader_type", "streaming")
def stored_data_is_sampled(facts: Facts) -> str:
    """Stored data has no order of its own."""
    if facts.args.streaming or facts.args.dataloader_type != "external":
        return ""
    return "external needs streaming: true; set that, or use cyclic or single"


@rule("use_chat_template", tasks=("pt",), severity="warning")
def pre_training_uses_plain_text(facts: Facts) -> str:
    """Task pt has no conversation."""
    return "has no effect: task pt trains plain text" if facts.args.use_chat_template else ""


@rule("loss_scale", tasks=("pt",), severity="warning")
def pre_training_trains_every_token(facts: Facts) -> str:
    """Task pt has no answers to select."""
    return "has no effect: task pt trains every token" if facts.args.loss_scale != "all" else ""


@rule("max_length", "rope_scaling", "max_position_embeddings", needs_model=True)
def samples_fit_into_the_model(facts: Facts) -> str:
    """max_length <= max_position_embeddings unless rotary scaling extends it."""
    return _fits(facts, facts.args.max_length)


@rule("packing_length", "packing", "max_length")
def packed_samples_fit_into_a_row(facts: Facts) -> str:
    """packing_length >= max_length, both given; a row may be longer than the context of the model."""
    args = facts.args
    if not args.packing or args.packing_length is None or args.max_length is None:
        return ""
    if args.packing_length >= args.max_length:
        return ""
    return f"is less than max_length {args.max_length}, so some samples fit into no row; increase it"


@rule("seq_length", "max_length", "rope_scaling", "max_position_embeddings", needs_model=True)
def the_planned_sequence_fits_into_the_model(facts: Facts) -> str:
    """seq_length, where it stands for max_length, is within the model's positions."""
    return "" if facts.args.max_length else _fits(facts, facts.args.seq_length)


@rule("seq_length", "max_length", severity="warning")
def a_sequence_has_one_length(facts: Facts) -> str:
    """seq_length is another name of max_length."""
    length, longest = facts.args.seq_length, facts.args.max_length
    return "has no effect with max_length, of which it is an alias" if length and longest not in (None, length) else ""


@rule("new_special_tokens", "train_type", "modules_to_save")
def new_tokens_are_not_trained_by_adapters(facts: Facts) -> str:
    """An adapter cannot hold new rows of the embedding, which has to train in full besides it."""
    args = facts.args
    if not args.new_special_tokens or args.train_type == "full" or _is_saved(facts, "word_embeddings"):
        return ""
    return "needs word_embeddings in modules_to_save, because an adapter has no room for the new rows; add it"


@rule("new_special_tokens", "train_type", "modules_to_save", "untie_embeddings_and_output_weights", needs_model=True)
def the_output_of_new_tokens_is_trained_too(facts: Facts) -> str:
    """An untied output layer has new rows too."""
    args = facts.args
    if not args.new_special_tokens or args.train_type == "full" or _is_saved(facts, "output_layer"):
        return ""
    untied = args.untie_embeddings_and_output_weights
    tied = facts.config.get("tie_word_embeddings", True) if untied is None else not untied
    return "" if tied else "needs output_layer in modules_to_save, because it has new rows too; add it"


def _is_saved(facts: Facts, module: str) -> bool:
    return any(name in ("all-embedding", module) or name.endswith(f".{module}") for name in facts.args.modules_to_save)


def _fits(facts: Facts, length: int | None) -> str:
    args, config = facts.args, facts.config
    longest = derive.model_value(args, config, "max_position_embeddings")
    if length is None or longest is None or args.rope_scaling or length <= longest:
        return ""
    return f"exceeds the {longest} positions of the model; use {longest} or fewer, or set rope_scaling"


@rule("rope_scaling", "max_model_len")
def rotary_scaling_is_known_and_has_a_target(facts: Facts) -> str:
    """A bare word names a scaling type and needs the target length."""
    scaling = facts.args.rope_scaling
    if not isinstance(scaling, str):
        return ""
    if scaling not in ROPE_SCALINGS:
        return f"must be an object or one of {', '.join(ROPE_SCALINGS)}"
    return "" if facts.args.max_model_len else "needs max_model_len, the length to reach; set it"


RULES = (
    idle_without(
        "a_revision_belongs_to_a_hub",
        is_set("model_revision"),
        is_("use_hf", True),
        because="a folder has no revisions",
    ),
    idle_without(
        "a_context_length_is_reached_by_scaling",
        is_set("max_model_len"),
        is_set("rope_scaling"),
        because="the positions of the model stay the same",
    ),
    new_tokens_are_not_trained_by_adapters,
    the_output_of_new_tokens_is_trained_too,
    the_model_is_given,
    an_id_of_the_hub_is_fetched_on_request,
    the_family_of_a_name_is_trained,
    training_data_is_given,
    *map(_no_variable_of_a_shell, PLACES),
    each_data_set_has_a_probability,
    the_probabilities_of_data_sets_sum_to_one,
    a_stream_has_one_worker,
    a_stream_gives_its_own_order,
    stored_data_is_sampled,
    pre_training_uses_plain_text,
    pre_training_trains_every_token,
    samples_fit_into_the_model,
    packed_samples_fit_into_a_row,
    the_planned_sequence_fits_into_the_model,
    a_sequence_has_one_length,
    rotary_scaling_is_known_and_has_a_target,
    idle_with(
        "a_stream_is_not_tokenized_lazily",
        is_("lazy_tokenize", True),
        is_("streaming", True),
        because="a stream is tokenized while training in any case",
    ),
    excludes("a_stream_has_no_cached_validation", is_("streaming", True), is_set("cached_val_dataset"), tasks=TRAINING),
    excludes("a_stream_is_not_cached", is_("streaming", True), is_set("cached_dataset"), tasks=TRAINING),
    idle_with("cached_data_is_tokenized_already", is_("lazy_tokenize", True), is_set("cached_dataset")),
    idle_with(
        "packing_knows_all_lengths",
        is_("lazy_tokenize", True),
        is_("packing", True),
        because="packing needs the length of every sample before training",
    ),
    idle_with(
        "packed_rows_are_not_padded",
        is_("padding_free", False),
        is_("packing", True),
        because="packed rows hold several samples, which only padding_free keeps apart",
    ),
    idle_without("a_row_length_belongs_to_packing", is_set("packing_length"), is_("packing", True)),
    idle_with(
        "pad_tokens_are_dropped_only_where_there_are_any",
        is_("mlp_padding_free", True),
        is_("padding_free", True),
        because="its rows have no padding between samples",
    ),
    idle_with(
        "the_length_of_every_sample_is_known",
        is_("lazy_tokenize", True),
        is_("group_by_length", True),
        because="grouping needs the length of every sample before training",
    ),
    excludes(
        "a_stream_is_not_grouped",
        is_("group_by_length", True),
        is_("streaming", True),
        because="grouping needs the length of every sample before training",
    ),
    idle_with(
        "packed_rows_have_one_length",
        is_("group_by_length", True),
        is_("packing", True),
        because="packed rows have one length",
    ),
    idle_with(
        "an_order_that_is_kept_is_not_grouped",
        is_("group_by_length", True),
        is_("dataloader_type", "single"),
        because="it keeps the order of the data",
    ),
    idle_with("validation_data_is_given_once", changed("split_dataset_ratio"), is_set("val_dataset")),
    excludes(
        "only_answers_are_split",
        is_("split_turns", True),
        one_of("task_type", "seq_cls", "embedding", "reranker", "generative_reranker"),
        because="no answer is trained there",
    ),
    excludes(
        "turns_of_a_conversation_are_not_held_out",
        is_("split_turns", True),
        changed("split_dataset_ratio"),
        because="answers of one conversation would be on both sides; set val_dataset",
    ),
    excludes("a_stream_is_not_split", changed("split_dataset_ratio"), is_("streaming", True)),
    idle_without("mixing_stops_only_when_it_happens", changed("stopping_strategy"), is_set("interleave_prob")),
    idle_without("a_shuffle_buffer_belongs_to_a_stream", changed("shuffle_buffer_size"), is_("streaming", True)),
    idle_without("a_shuffle_buffer_shuffles", changed("shuffle_buffer_size"), is_("dataset_shuffle", True)),
    idle_without("only_validation_data_is_shuffled_so", changed("val_dataset_shuffle"), is_set("val_dataset")),
)
