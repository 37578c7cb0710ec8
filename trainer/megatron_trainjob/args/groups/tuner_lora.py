"""LoRA adapters."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class TunerLora:
    """LoRA adapters."""

    adapter_load: str | None = arg(
        None,
        (
            "Adapter to continue from: a checkpoint of LoRA training (resumed, or with finetune started over), "
            "or a PEFT folder, which holds weights to start from."
        ),
        aliases=("mcore_adapter", "adapters"),
        status="works",
    )
    target_modules: tuple[str, ...] = arg(
        ("all-linear",),
        (
            'Modules that get adapters, by suffix of their names; "all-linear", "all-router" and "all-'
            'embedding" stand for all of a kind.'
        ),
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    target_regex: str | None = arg(
        None,
        "Modules that get adapters, by a regular expression for the whole name; replaces target_modules.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    modules_to_save: tuple[str, ...] = arg(
        (),
        "Modules that are trained in full and saved with the adapters.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    lora_rank: int = arg(
        8,
        "Rank of the adapters.",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    lora_alpha: int = arg(
        32,
        "Scale of the adapters; they are multiplied by alpha / rank.",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    lora_dropout: float = arg(
        0.05,
        "Dropout on the input of the adapters.",
        unit="fraction",
        ge=0,
        lt=1,
        status="works",
    )
    lora_bias: Literal["none", "all"] = arg(
        "none",
        "Biases of the model that are trained along with the adapters.",
        status="works",
    )
    use_rslora: bool = arg(
        False,
        "Scale adapters by alpha / sqrt(rank).",
        applies_to=EVERY_TASK,
        status="works",
    )
