"""Conversion between Hugging Face and Megatron-Core checkpoints."""

from dataclasses import dataclass

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Export:
    """Conversion between Hugging Face and Megatron-Core checkpoints."""

    output_dir: str | None = arg(
        None,
        ("Folder for the result; unset: next to the input, with the suffix -mcore, -hf, -merged or -cached_dataset."),
        featured=True,
        aliases=("save",),
        applies_to=("export",),
        status="works",
    )
    exist_ok: bool = arg(
        False,
        (
            "Write into an existing output_dir: weights of an earlier export in it are replaced, other files stay; "
            "false stops if it exists."
        ),
        applies_to=("export",),
        status="works",
    )
    to_mcore: bool = arg(
        False,
        "Convert Hugging Face weights, or merge an adapter, into a Megatron-Core checkpoint.",
        featured=True,
        applies_to=("export",),
        essential=True,
        status="works",
    )
    to_hf: bool = arg(
        False,
        "Write a Hugging Face folder: from a checkpoint, or at the end of training.",
        applies_to=EVERY_TASK,
        status="works",
    )
    mcore_model: str | None = arg(
        None,
        "Checkpoint to convert: the folder with iter_* folders (the newest complete one is used), or one of those.",
        aliases=("load",),
        applies_to=("export",),
        status="works",
    )
    mcore_adapters: tuple[str, ...] = arg(
        (),
        "Adapter to convert or merge, one folder: a checkpoint of LoRA training, or a PEFT adapter.",
        aliases=("adapter_load", "mcore_adapter", "adapters"),
        applies_to=("export",),
        essential=True,
        status="works",
    )
    thread_count: int | None = arg(
        None,
        "Files that to_mcore writes; unset: about 10 GB each, at least two.",
        ge=1,
        applies_to=("export",),
        status="works",
    )
    test_convert_precision: bool = arg(
        False,
        (
            "Compare the logits of both models on a prompt and print how much and where they differ; exits with code 1 "
            "beyond the bound."
        ),
        featured=True,
        applies_to=("export",),
        status="works",
    )
    test_convert_dtype: str = arg(
        "float32",
        "Compute type of that comparison: float32, bfloat16 or float16.",
        applies_to=("export",),
        status="works",
    )
    to_cached_dataset: bool = arg(
        False,
        "Tokenize the data and store it for cached_dataset.",
        applies_to=("export",),
        essential=True,
        status="works",
    )
    merge_lora: bool = arg(
        False,
        (
            "Merge the adapter into the written weights; false in an export writes only the adapter: to_hf "
            "as PEFT loads it, to_mcore as a checkpoint of LoRA training."
        ),
        applies_to=EVERY_TASK,
        task_defaults={"export": True},
        status="works",
    )
    safe_serialization: bool = arg(
        True,
        "Write safetensors.",
        applies_to=EVERY_TASK,
        status="works",
        refused_choices={
            False: "weights are written as safetensors only, which everything reads that reads .bin files; remove it"
        },
    )
    max_shard_size: str = arg(
        "5GB",
        "Largest weight file of a Hugging Face folder.",
        applies_to=EVERY_TASK,
        status="works",
    )
    push_to_hub: bool = arg(
        False,
        (
            "Upload to the Hugging Face Hub what to_hf wrote, the adapter of a LoRA run, or else the last output of "
            "save_safetensors. The token is HF_TOKEN, from a Secret through envFrom."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
    hub_model_id: str | None = arg(
        None,
        "Repository for the upload, such as name/model; it is created if there is none.",
        applies_to=EVERY_TASK,
        status="works",
    )
    hub_private_repo: bool = arg(
        False,
        "Make that repository private.",
        applies_to=EVERY_TASK,
        status="works",
    )
    commit_message: str = arg(
        "update files",
        "Commit message of the upload.",
        applies_to=EVERY_TASK,
        status="works",
    )
