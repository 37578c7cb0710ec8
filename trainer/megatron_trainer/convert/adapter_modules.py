"""The modules that a PEFT adapter adapts and those that it stores in full, under megatron-core's names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_trainer.convert import peft_format, table
from megatron_trainer.convert.adapter_source import holds_adapter, open_adapter
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES

_HALF = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.weight)?$")
_EXPERT = re.compile(r"\.local_experts\.\d+")


def start_of(adapter: Path | None, adapter_load: str | None) -> Path | None:
    """The PEFT directory that determines the widths: the adapter itself, or the one that training started from."""
    if adapter is not None:
        return adapter
    return Path(adapter_load) if adapter_load and holds_adapter(Path(adapter_load)) else None


def parts(chunks: Sequence[torch.nn.Module], spec: ModelSpec, directory: Path | None) -> dict[str, int]:
    """This rank's modules that hold several adapters side by side, with the number of adapters.

    Linears that Megatron fuses (q, k, v; gate, up) have adapters with separate A in PEFT. Where these differ, the
    adapter here is as wide as all of them together, with B zero outside their blocks. directory: of the initial
    adapter.
    """
    if directory is None:
        return {}
    source = open_adapter(directory, FAMILIES[spec.model.family].stack_form)
    found: dict[str, int] = {}
    for entry in table.entries(chunks, spec):
        keys = [peft_format.half_key(name.removesuffix(".weight"), "A", is_embedding=False) for name in entry.names]
        stored = [source.file.get_tensor(key) for key in keys if key in source.keys]
        if any(not torch.equal(stored[0], other) for other in stored[1:]):
            module = entry.name.removesuffix(".weight")
            found |= dict.fromkeys((module, _EXPERT.sub("", module)), len(entry.names))
    return found


def with_modules(args: TrainArgs, chunks: Sequence[torch.nn.Module], spec: ModelSpec, directory: Path) -> TrainArgs:
    """The arguments with target_regex and modules_to_save that select the modules of the adapter in `directory`.

    chunks: the built model, to which the names refer.
    """
    keys = [
        key.removeprefix(peft_format.PREFIX)
        for key in open_adapter(directory, FAMILIES[spec.model.family].stack_form).keys
    ]
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
