"""Adapters in a distributed checkpoint: which shard of each whole matrix this rank holds."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)

from megatron_trainer.lora.adapter import Offsets
from megatron_trainer.lora.placement import Placement


def sharded_pair(
    a: torch.Tensor,
    b: torch.Tensor,
    place: Placement,
    prefix: str,
    sharded_offsets: Offsets,
    metadata: dict[str, Any] | None,
) -> dict[str, Any]:
    """`{prefix}A` and `{prefix}B` as sharded tensors, on the layer and expert axes that the offsets name.

    B of a gated fc1 is two halves like its weight, and B of an output layer may be padded like its weight;
    Megatron handles both for weights only.
    """
    metadata = ensure_metadata_has_dp_cp_group(metadata)
    axes = {"row": {"A": 1}, "column": {"B": 0}, "none": {}}[place.split]
    entries: dict[str, Any] = make_sharded_tensors_for_checkpoint(
        {"A": a, "B": b},
        prefix,
        axes,
        sharded_offsets,
        tp_group=place.group,
        dp_cp_group=metadata["dp_cp_group"],
    )
    b_key = f"{prefix}B"
    if place.gated:
        entries[b_key] = apply_swiglu_sharded_factory(
            entries[b_key],
            sharded_offsets,
            metadata.get("singleton_local_shards", False),
            tp_group=place.group,
            dp_group=metadata["dp_cp_group"],
        )
    elif place.vocabulary:
        entries[b_key].allow_shape_mismatch = True
    return entries
