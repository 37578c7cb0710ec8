"""What some families do to embeddings and logits, and the columns of logits that pad the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from megatron_trainer.models.spec import ModelSpec

_NEVER = -1e9
"""Far below any logit; not infinite, so that no difference of two such columns is undefined. In float16 its least."""


def scale_embeddings(model: GPTModel, factor: float) -> None:
    """Multiplies what the embedding gives, rounded to its type as transformers does; 1 changes nothing."""
    if factor == 1.0 or not hasattr(model, "embedding"):
        return

    def scaled(_module: nn.Module, _inputs: object, output_TBH: Tensor) -> Tensor:
        return output_TBH * torch.tensor(factor, dtype=output_TBH.dtype, device=output_TBH.device)

    model.embedding.register_forward_hook(scaled)


def cap_logits(model: GPTModel, cap: float) -> None:
    """Keeps logits within a bound, after an adapter of the output layer has added its term; 0 changes nothing."""
    if not cap:
        return

    def capped(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Any]:
        logits, bias = output
        return torch.tanh(logits / cap) * cap, bias

    model.output_layer.register_forward_hook(capped)
    model.output_layer.logit_cap = cap


def is_capped(output_layer: nn.Module) -> bool:
    """Whether its logits are no product of hidden states and weight."""
    return bool(getattr(output_layer, "logit_cap", 0.0))


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
