"""Conversion of checkpoints."""

from __future__ import annotations

import re
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, Task
from megatron_trainjob.args.rules.condition import changed, is_, is_set
from megatron_trainjob.args.rules.pair import excludes, idle_without, needs
from megatron_trainjob.args.rules.rule import Facts, rule
from megatron_trainjob.args.tree import ARGUMENTS

EXPORT: tuple[Task, ...] = ("export",)
ACTIONS = ("to_mcore", "to_hf", "to_cached_dataset")
TEST_TYPES: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16", "float16")
SIZE = re.compile(r"\d+(\.\d+)?\s*(B|KB|MB|GB|TB|KIB|MIB|GIB|TIB)", re.IGNORECASE)


@rule(*ACTIONS, tasks=EXPORT)
def an_export_does_one_thing(facts: Facts) -> str:
    """Exactly one of to_mcore, to_hf and to_cached_dataset."""
    chosen = [name for name in ACTIONS if getattr(facts.args, name)]
    if len(chosen) == 1:
        return ""
    found = f"{' and '.join(chosen)} are" if chosen else "nothing is"
    return f"exactly one of {', '.join(ACTIONS)} must be true, {found}; choose one"


@rule("to_hf", "mcore_model", "mcore_adapters", "quant_method", "model", tasks=EXPORT)
def a_hugging_face_export_has_a_source(facts: Facts) -> str:
    """mcore_model or mcore_adapters; a model that is quantized may be a Hugging Face folder already."""
    args = facts.args
    if not args.to_hf or args.mcore_model or args.mcore_adapters or (args.quant_method and args.model):
        return ""
    return "needs the checkpoint to convert; set mcore_model or mcore_adapters"


@rule("to_mcore", "model", "mcore_adapters", tasks=EXPORT)
def a_megatron_export_has_a_source(facts: Facts) -> str:
    """A Hugging Face model, or adapters to merge."""
    args = facts.args
    if not args.to_mcore or args.model or args.mcore_adapters:
        return ""
    return "needs the weights to convert; set model or mcore_adapters"


@rule("to_cached_dataset", "dataset", "model", tasks=EXPORT)
def a_cached_data_set_has_a_source(facts: Facts) -> str:
    """Data, and the model whose tokenizer reads it."""
    args = facts.args
    if not args.to_cached_dataset or (args.dataset and args.model):
        return ""
    return "needs the data and the tokenizer; set dataset and model"


@rule("rlhf_type", "to_cached_dataset", tasks=EXPORT)
def a_preference_task_is_that_of_tokenized_data(facts: Facts) -> str:
    """Weights know their own task: a head is exported as the checkpoint says."""
    args, is_given = facts.args, "rlhf_type" in facts.given
    if args.to_cached_dataset or not is_given or args.rlhf_type == ARGUMENTS["rlhf_type"].default:
        return ""
    return "names the task for which to_cached_dataset tokenizes data; set to_cached_dataset, or remove it"


@rule("mcore_adapters", tasks=EXPORT)
def one_adapter_is_exported(facts: Facts) -> str:
    """Further ones would be ignored."""
    count = len(facts.args.mcore_adapters)
    return "" if count <= 1 else f"has {count} folders, but one is exported at a time; keep one"


@rule("max_shard_size", tasks=EVERY_TASK)
def a_shard_size_has_a_unit(facts: Facts) -> str:
    """A number with a unit, such as 5GB."""
    if SIZE.fullmatch(facts.args.max_shard_size.strip()):
        return ""
    return "must be a number with a unit, such as 5GB or 500MB"


@rule("test_convert_dtype", tasks=EXPORT)
def a_test_type_can_be_computed_in(facts: Facts) -> str:
    """float32, bfloat16 or float16."""
    return "" if facts.args.test_convert_dtype in TEST_TYPES else f"must be one of {', '.join(TEST_TYPES)}"


@rule(
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
    tasks=EXPORT,
    severity="warning",
)
def an_export_is_one_process(facts: Facts) -> str:
    """No layout: one process converts a checkpoint, whatever its source or target layout."""
    args = facts.args
    sizes = (args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.expert_model_parallel_size)
    return "" if sizes == (1, 1, 1) else "has no effect: one process converts checkpoints of every layout"


@rule("quant_bits", "quant_method", tasks=EXPORT)
def fp8_has_eight_bits(facts: Facts) -> str:
    """The one method that is written has eight bits."""
    args = facts.args
    if args.quant_method is None or args.quant_bits in (None, 8):
        return ""
    return "must be 8 with quant_method: fp8; set that, or remove it"


@rule("push_to_hub", "to_hf", "save_safetensors", "train_type")
def what_is_uploaded_was_written(facts: Facts) -> str:
    """A model in Hugging Face form, or the adapter that a LoRA run always writes."""
    args = facts.args
    is_written = args.to_hf or args.save_safetensors or args.train_type != "full"
    return "" if is_written or not args.push_to_hub else "needs to_hf: true, which writes what is uploaded; set that"


RULES = (
    an_export_does_one_thing,
    what_is_uploaded_was_written,
    needs("an_export_uploads_a_hugging_face_folder", is_("push_to_hub", True), is_("to_hf", True), tasks=EXPORT),
    fp8_has_eight_bits,
    needs("quantized_weights_are_a_hugging_face_model", is_set("quant_method"), is_("to_hf", True), tasks=EXPORT),
    excludes(
        "quantized_weights_are_merged",
        is_set("quant_method"),
        is_("merge_lora", False),
        because="an adapter alone is not quantized",
        tasks=EXPORT,
    ),
    excludes(
        "quantized_weights_differ_from_their_source",
        is_set("quant_method"),
        is_("test_convert_precision", True),
        because="rounding to 8 bits exceeds its bound",
        tasks=EXPORT,
    ),
    a_hugging_face_export_has_a_source,
    a_megatron_export_has_a_source,
    a_cached_data_set_has_a_source,
    a_preference_task_is_that_of_tokenized_data,
    one_adapter_is_exported,
    a_shard_size_has_a_unit,
    a_test_type_can_be_computed_in,
    an_export_is_one_process,
    idle_without("only_an_adapter_stays_unmerged", is_("merge_lora", False), is_set("mcore_adapters"), tasks=EXPORT),
    excludes(
        "a_precision_test_needs_the_same_model_twice",
        is_("test_convert_precision", True),
        is_("to_cached_dataset", True),
        because="data have no logits",
        tasks=EXPORT,
    ),
    excludes(
        "cached_data_is_packed_later",
        is_("to_cached_dataset", True),
        is_("packing", True),
        because="packing happens at training time",
        tasks=EXPORT,
    ),
    excludes(
        "a_stream_is_not_stored",
        is_("to_cached_dataset", True),
        is_("streaming", True),
        tasks=EXPORT,
    ),
    idle_without(
        "a_file_count_belongs_to_a_megatron_export",
        is_set("thread_count"),
        is_("to_mcore", True),
        tasks=EXPORT,
    ),
    idle_without(
        "a_test_type_belongs_to_a_precision_test",
        changed("test_convert_dtype"),
        is_("test_convert_precision", True),
        tasks=EXPORT,
    ),
    needs("an_upload_has_a_repository", is_("push_to_hub", True), is_set("hub_model_id")),
    idle_without("bits_belong_to_a_quantization", is_set("quant_bits"), is_set("quant_method"), tasks=EXPORT),
    idle_without("a_repository_belongs_to_an_upload", is_set("hub_model_id"), is_("push_to_hub", True)),
    idle_without("a_private_repository_belongs_to_an_upload", is_("hub_private_repo", True), is_("push_to_hub", True)),
    idle_without("a_commit_message_belongs_to_an_upload", changed("commit_message"), is_("push_to_hub", True)),
)
