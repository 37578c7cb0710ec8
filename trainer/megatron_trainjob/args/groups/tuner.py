"""What is trained: all weights or adapters."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """What is trained: all weights or adapters."""

    train_type: Literal["lora", "full", "lora_llm"] = arg(
        "full",
        "Train all weights, or LoRA adapters only; lora_llm: of a model with images the language model gets adapters, "
        "and its vision tower and aligner train in full.",
        aliases=("tuner_type",),
        applies_to=EVERY_TASK,
        status="works",
    )
    freeze_llm: bool = arg(
        False,
        "Freeze the language model of a model with images; under LoRA, all-linear leaves it out.",
        featured=True,
        status="works",
    )
    freeze_vit: bool = arg(
        True,
        "Freeze the vision tower of a model with images; under LoRA, all-linear leaves it out. Not for lora_llm, which "
        "trains it.",
        featured=True,
        status="works",
    )
    freeze_aligner: bool = arg(
        True,
        "Freeze the aligner (merger) of a model with images; under LoRA, all-linear leaves it out. Not for lora_llm, "
        "which trains it.",
        featured=True,
        status="works",
    )
