"""Conversion between Hugging Face and Megatron-Core checkpoints."""

from dataclasses import dataclass

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Export:
    """Conversion between Hugging Face and Megatron-Core checkpoints."""

    output_dir: str | None = arg(
        None,
        ("Folder for the result; unset: beside the input, with the suffix -mcore, -hf, -merged or -cached_dataset."),
        featured=True,
        applies_to=("export",),
        status="not yet",
    )
    exist_ok: bool = arg(
        False,
        "Write into an existing output_dir.",
        applies_to=("export",),
        status="not yet",
    )
    to_mcore: bool = arg(
        False,
        "Convert Hugging Face weights, or merge an adapter, into a Megatron-Core checkpoint.",
        featured=True,
        applies_to=("export",),
        status="not yet",
    )
    to_hf: bool = arg(
        False,
        "Write a Hugging Face folder: from a checkpoint, or at the end of training.",
        applies_to=EVERY_TASK,
        status="works",
    )
    mcore_model: str | None = arg(
        None,
        "Checkpoint to convert: the folder that holds iter_*.",
        applies_to=("export",),
        status="not yet",
    )
    mcore_adapters: tuple[str, ...] = arg(
        (),
        "Adapter checkpoint to convert or merge; one folder.",
        applies_to=("export",),
        status="not yet",
    )
    thread_count: int | None = arg(
        None,
        "Files that to_mcore writes; unset: about 10 GB each.",
        ge=1,
        applies_to=("export",),
        status="not yet",
    )
    test_convert_precision: bool = arg(
        False,
        "Compare the logits of both models after conversion.",
        featured=True,
        applies_to=("export",),
        status="not yet",
    )
    test_convert_dtype: str = arg(
        "float32",
        "Type in which that comparison computes.",
        applies_to=("export",),
        status="not yet",
    )
    to_cached_dataset: bool = arg(
        False,
        "Tokenise the data and store it for cached_dataset.",
        applies_to=("export",),
        status="works",
    )
    merge_lora: bool = arg(
        False,
        "Merge the adapter into the weights that are written.",
        applies_to=EVERY_TASK,
        status="works",
    )
    safe_serialization: bool = arg(
        True,
        "Write safetensors.",
        applies_to=EVERY_TASK,
        status="not yet",
        refused_choices={False: "weights are written as safetensors only"},
    )
    max_shard_size: str = arg(
        "5GB",
        "Largest weight file of a Hugging Face folder.",
        applies_to=EVERY_TASK,
        status="not yet",
    )
    push_to_hub: bool = arg(
        False,
        "Upload the result.",
        applies_to=EVERY_TASK,
        status="not yet",
    )
    hub_model_id: str | None = arg(
        None,
        "Repository for the upload.",
        applies_to=EVERY_TASK,
        status="not yet",
    )
    hub_private_repo: bool = arg(
        False,
        "Make that repository private.",
        applies_to=EVERY_TASK,
        status="not yet",
    )
    commit_message: str = arg(
        "update files",
        "Commit message of the upload.",
        applies_to=EVERY_TASK,
        status="not yet",
    )
