"""What is saved, where, and what is read back."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is saved, where, and what is read back."""

    save: str | None = arg(
        None,
        (
            "Folder for checkpoints and reports, shared by all nodes; unset: megatron_output/{model} (the "
            "operator sets the checkpoint volume)."
        ),
        featured=True,
        aliases=("output_dir",),
        status="works",
    )
    save_interval: int = arg(
        500,
        "Steps between checkpoints; one is always written at the end.",
        unit="steps",
        ge=1,
        featured=True,
        aliases=("save_steps",),
        status="works",
    )
    save_strategy: Literal["steps", "epoch", "no"] = arg(
        "steps",
        (
            'When a checkpoint is written: each save_interval steps, with the last step of each epoch, or ("no", in '
            "quotes) only at the end."
        ),
        status="works",
    )
    no_save_optim: bool = arg(
        False,
        "Do not save the optimizer and scheduler state.",
        featured=True,
        status="works",
    )
    no_save_rng: bool = arg(
        False,
        "Do not save the state of the random number generators.",
        featured=True,
        status="works",
    )
    load: str | None = arg(
        None,
        "Folder of the Megatron-Core checkpoint to start from or to resume.",
        featured=True,
        aliases=("mcore_model",),
        status="works",
    )
    no_load_optim: bool = arg(
        False,
        "Do not restore the optimizer state.",
        featured=True,
        status="works",
    )
    no_load_rng: bool = arg(
        False,
        "Do not restore the state of the random number generators.",
        featured=True,
        status="works",
    )
    finetune: bool = arg(
        False,
        (
            "Load only the weights from load and start at iteration 0; false resumes where the checkpoint "
            "stopped, data included (streams cannot skip data)."
        ),
        featured=True,
        status="works",
    )
    ckpt_format: Literal["torch", "torch_dist", "zarr"] = arg(
        "torch_dist",
        "Format of checkpoints on disk.",
        applies_to=EVERY_TASK,
        status="works",
        refused_choices={
            "zarr": "Megatron-Core no longer reads or writes zarr; use torch_dist",
        },
        warned_choices={
            "torch": (
                "is read where load holds it, in the layout that wrote it; checkpoints are written in torch_dist, "
                "which every layout loads"
            ),
        },
    )
    no_initialization: bool = arg(
        True,
        ("Skip random initialization because weights are loaded; false trains from scratch if no weights are given."),
        inverted_aliases=("perform_initialization",),
        status="works",
    )
    auto_detect_ckpt_format: bool = arg(
        True,
        (
            "Recognize checkpoints of other Megatron programs in load by their files and take their weights (with "
            "finetune); false takes only checkpoints with a manifest that proves them complete."
        ),
        status="works",
    )
    exit_on_missing_checkpoint: bool = arg(
        True,
        "Stop if load has no checkpoint; false continues without it.",
        status="works",
    )
    save_total_limit: int | None = arg(
        None,
        (
            "Keep only this many of the newest complete checkpoints, plus the best one "
            "(metric_for_best_model); unset: keep all."
        ),
        unit="checkpoints",
        ge=1,
        status="works",
    )
    save_safetensors: bool = arg(
        False,
        (
            "Also write each checkpoint in Hugging Face format, to safetensors/iter_N of save: the model, or of a LoRA "
            "run the adapter (with merge_lora the merged model)."
        ),
        status="works",
    )
    async_save: bool = arg(
        False,
        (
            "Write checkpoints in the background while training continues, from a copy of the state in host memory; a "
            "save waits until the previous one is written."
        ),
        status="works",
    )
