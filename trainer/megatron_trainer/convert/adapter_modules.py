"""Which modules a PEFT adapter adapts and which it holds whole, in megatron-core's names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_trainer.convert import peft_format, table
from megatron_trainer.convert.adapter_source import open_adapter
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.args.tree import TrainArgs

_HALF = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$")
_EXPERT = re.compile(r"\.local_experts\.\d+")


def with_modules(args: TrainArgs, chunks: Sequence[torch.nn.Module], spec: ModelSpec, directory: Path) -> TrainArgs:
    """The arguments whose target_regex and modules_to_save select what the adapter in `directory` holds.

    chunks: the built model, whose names they are.
    """
    keys = [key.removeprefix(peft_format.PREFIX) for key in open_adapter(directory).keys]
    adapted = {_HALF.sub("", key) for key in keys if _HALF.search(key)}
    whole = {key.replace(".base_layer.", ".") for key in keys if not _HALF.search(key)}
    targets, saved = set(), set()
    for entry in table.entries(chunks, spec):
        module, _, own_name = entry.name.rpartition(".")
        if adapted & {name.removesuffix(".weight") for name in entry.names}:
            # TransformerEngine keeps the experts of a layer in one module.
            targets |= {module, _EXPERT.sub("", module)}
        if own_name != "bias" and whole & set(entry.names):
            saved.add(module)
    return replace(args, target_regex="|".join(map(re.escape, sorted(targets))), modules_to_save=tuple(sorted(saved)))
