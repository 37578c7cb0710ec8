"""What is trained: all weights or adapters."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """What is trained: all weights or adapters."""

    train_type: Literal["lora", "full"] = arg(
        "full",
        "Train all weights, or LoRA adapters only.",
        aliases=("tuner_type",),
        applies_to=EVERY_TASK,
        status="works",
    )
    freeze_llm: bool = arg(
        False,
        "Freeze the language model of a multimodal model.",
        featured=True,
        status="refused",
        reason="a text model has no other part to train",
    )
    freeze_vit: bool = arg(
        True,
        "Freeze the vision and audio towers of a multimodal model.",
        featured=True,
        status="no effect",
        reason="a text model has no vision tower",
    )
    freeze_aligner: bool = arg(
        True,
        "Freeze the projector of a multimodal model.",
        featured=True,
        status="no effect",
        reason="a text model has no vision tower",
    )
