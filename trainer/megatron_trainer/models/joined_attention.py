"""Attention of a vision tower over all its images and windows in one call, by torch's own kernel for a GPU.

transformers' modules call theirs once for each window where flash-attn is not installed: thousands of times a step.

Shape suffixes: P patches, H hidden.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor, nn

_CLASSES = ("VisionAttention", "Qwen2_5_VLVisionAttention", "Qwen3VLVisionAttention", "Qwen3VLMoeVisionAttention")
"""Those of Qwen: queries, keys and values from one linear, two of them rotated, a last linear."""
_MODULE = "torch.nn.attention.varlen"


def is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has its kernel for sequences of many lengths, and here."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and is_half and importlib.util.find_spec(_MODULE) is not None


def join(tower: nn.Module) -> None:
    """Makes those of its attention modules that are known join their windows; the others stay as they are."""
    for module in tower.modules():
        kind: Any = type(module)
        if kind.__name__ in _CLASSES and hasattr(sys.modules[kind.__module__], _ROTATION):
            module.__class__ = _joined(kind)


_ROTATION = "apply_rotary_pos_emb_vision"


@functools.cache
def _joined(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with its forward pass in one call; its parameters, and their names, are the same."""
    rotate = getattr(sys.modules[kind.__module__], _ROTATION)

    def forward(
        self: Any,  # noqa: ANN401 - differs by family
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: object,
    ) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        parts = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1).unbind(1)
        query, key = rotate(parts[0], parts[1], *position_embeddings)
        bounds, longest = cu_seqlens.int(), longest_of(cu_seqlens)
        attended: Any = varlen_attn(query, key, parts[2].contiguous(), bounds, bounds, longest, longest)
        projected: Tensor = self.proj(attended.reshape(len(hidden_states), -1))
        return projected

    made: Any = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    joined: type[nn.Module] = made
    return joined


def longest_of(bounds: Tensor) -> int:
    """The longest sequence between these bounds; the card is asked once, for every layer gets the same tensor."""
    known: int | None = getattr(bounds, "longest", None)
    if known is None:
        known = int(bounds.diff().max())
        bounds.longest = known  # type: ignore[attr-defined]
    return known
