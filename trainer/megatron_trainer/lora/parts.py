"""The three parts of a model with images, and which of them freeze_llm, freeze_vit and freeze_aligner freeze."""

from __future__ import annotations

from typing import Literal

from megatron_trainjob.args.head import TOWER, modules_to_save
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.vision import is_aligner, is_tower

Part = Literal["llm", "vit", "aligner"]


def part_of(name: str) -> Part:
    """The part to which a parameter or module belongs, by its whole-model name; a text model is all llm."""
    if not is_tower(name):
        return "llm"
    return "aligner" if is_aligner(name) else "vit"


def gets_no_adapter(name: str, args: TrainArgs) -> bool:
    """Whether all-linear leaves this module out: its part is frozen, or trains in full beside adapters."""
    return is_frozen(name, args) or (is_tower(name) and TOWER in modules_to_save(args))


def is_frozen(name: str, args: TrainArgs) -> bool:
    """Whether the part of this parameter or module is frozen."""
    frozen = {"llm": args.freeze_llm, "vit": args.freeze_vit, "aligner": args.freeze_aligner}
    return frozen[part_of(name)]
