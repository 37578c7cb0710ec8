"""Masks the columns that pad the vocabulary to a multiple of the tensor-parallel size."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_trainer.models.spec import ModelSpec

_NEVER = -1e9
"""Far below any logit; not infinite, so that no difference of two such columns is undefined. In float16 its least."""


def mask_padded_columns(logits: Tensor, spec: ModelSpec) -> Tensor:
    """Logits with padded columns excluded from the softmax; the same tensor if this rank has none.

    logits: [..., V / tensor-parallel size], any leading dimensions. Without the mask the zero rows of a
    padded embedding take probability from the real tokens, and gradients are wrong by up to one percent.
    """
    width = logits.size(-1)
    num_real = num_real_columns(logits, spec)
    if num_real == width:
        return logits
    padded = logits.new_zeros(width, dtype=torch.bool)
    padded[num_real:] = True
    return logits.masked_fill(padded, max(_NEVER, torch.finfo(logits.dtype).min))


def num_real_columns(logits: Tensor, spec: ModelSpec) -> int:
    """Columns of this rank that stand for a token; those after them are padding. logits: as above."""
    width = logits.size(-1)
    first: int = parallel_state.get_tensor_model_parallel_rank() * width
    return min(max(spec.vocab_size - first, 0), width)
